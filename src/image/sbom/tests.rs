use super::*;
use serde_json::Value;
use std::collections::BTreeSet;

fn package(name: &str, version: &str, source: Option<&str>) -> PackageMaterial {
    PackageMaterial {
        name: name.to_owned(),
        version: version.to_owned(),
        architecture: "amd64".to_owned(),
        source: source.map(str::to_owned),
        sha256: Digest::of(name),
    }
}

fn materials() -> Materials {
    Materials {
        name: "demo".to_owned(),
        version: None,
        description: "A demonstration".to_owned(),
        created: 1_700_000_000,
        arch: Arch::Amd64,
        release: "trixie".to_owned(),
        packages: vec![package("libstdc++6", "1:14.2.0-19+b1~x", Some("gcc-14")), package("adduser", "3.152", None)],
        overlays: vec![
            OverlayMaterial { name: "haproxy".to_owned(), description: "Load balancer".to_owned(), layer: None },
            OverlayMaterial {
                name: "node_X".to_owned(),
                description: "Guest program".to_owned(),
                layer: Some(Digest::of("layer")),
            },
        ],
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_package_url_is_encoded_as_its_specification_says() {
    assert_eq!(
        materials().packages[0].purl("trixie"),
        "pkg:deb/debian/libstdc%2B%2B6@1:14.2.0-19%2Bb1~x?arch=amd64&distro=trixie"
    );
    assert_eq!(percent_encoded("a b/c@é?&="), "a%20b%2Fc%40%C3%A9%3F%26%3D");
}

#[test]
fn the_spdx_document_is_golden() {
    insta::assert_snapshot!(spdx(&materials()).unwrap().replace(env!("CARGO_PKG_VERSION"), "VERSION"));
}

#[test]
fn the_cyclonedx_document_is_golden() {
    insta::assert_snapshot!(cyclonedx(&materials()).unwrap().replace(env!("CARGO_PKG_VERSION"), "VERSION"));
}

#[test]
fn equal_materials_have_equal_documents_and_others_have_other_names() {
    let mut shuffled = materials();
    shuffled.packages.reverse();
    assert_eq!(spdx(&shuffled).unwrap(), spdx(&materials()).unwrap());
    assert_eq!(cyclonedx(&shuffled).unwrap(), cyclonedx(&materials()).unwrap());
    let mut newer = materials();
    newer.packages[0].sha256 = Digest::of("rebuilt");
    assert_ne!(newer.uuid().unwrap(), materials().uuid().unwrap());
}

/// What the published schema asks of every document and package, and the specification of its identifiers.
#[test]
fn the_spdx_document_has_what_its_specification_requires() {
    let document = json(&spdx(&materials()).unwrap());
    for key in ["SPDXID", "creationInfo", "dataLicense", "name", "spdxVersion", "documentNamespace"] {
        assert!(!document[key].is_null(), "{key}");
    }
    let packages = document["packages"].as_array().unwrap();
    let mut ids = BTreeSet::from(["SPDXRef-DOCUMENT"]);
    for package in packages {
        for key in ["name", "downloadLocation", "licenseConcluded", "copyrightText"] {
            assert!(package[key].is_string(), "{key} of {package}");
        }
        let id = package["SPDXID"].as_str().unwrap();
        let tail = id.strip_prefix("SPDXRef-").unwrap();
        assert!(tail.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c)), "{id}");
        assert!(ids.insert(id), "{id} twice");
    }
    assert_eq!(packages.len(), 1 + 2 + 2);
    for relationship in document["relationships"].as_array().unwrap() {
        for end in ["spdxElementId", "relatedSpdxElement"] {
            assert!(ids.contains(relationship[end].as_str().unwrap()), "{relationship}");
        }
    }
}

#[test]
fn the_cyclonedx_document_has_what_its_specification_requires() {
    let bom = json(&cyclonedx(&materials()).unwrap());
    assert_eq!((bom["bomFormat"].as_str(), bom["specVersion"].as_str()), (Some("CycloneDX"), Some("1.6")));
    let serial = bom["serialNumber"].as_str().unwrap().strip_prefix("urn:uuid:").unwrap();
    assert_eq!(serial.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
    assert_eq!(serial.as_bytes()[14], b'8', "version 8");
    let mut references = BTreeSet::new();
    for component in bom["components"].as_array().unwrap() {
        assert!(component["type"].is_string() && component["name"].is_string(), "{component}");
        assert!(references.insert(component["bom-ref"].as_str().unwrap()), "{component} twice");
    }
    let depends: BTreeSet<_> =
        bom["dependencies"][0]["dependsOn"].as_array().unwrap().iter().map(|on| on.as_str().unwrap()).collect();
    assert_eq!(depends, references);
    assert_eq!(bom["dependencies"][0]["ref"], bom["metadata"]["component"]["bom-ref"]);
}
