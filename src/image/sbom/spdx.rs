//! SPDX 2.3 (<https://spdx.github.io/spdx-spec/v2.3/>).

use super::{Materials, OverlayMaterial, PackageMaterial, text};
use crate::{calendar, model::Digest};
use anyhow::Result;
use serde::Serialize;

const UNKNOWN: &str = "NOASSERTION";
const IMAGE: &str = "SPDXRef-Image";
const DOCUMENT: &str = "SPDXRef-DOCUMENT";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    spdx_version: &'static str,
    data_license: &'static str,
    #[serde(rename = "SPDXID")]
    id: &'static str,
    name: String,
    document_namespace: String,
    creation_info: CreationInfo,
    packages: Vec<Package>,
    relationships: Vec<Relationship>,
}

#[derive(Serialize)]
struct CreationInfo {
    created: String,
    creators: [String; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Package {
    #[serde(rename = "SPDXID")]
    id: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version_info: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_info: Option<String>,
    primary_package_purpose: &'static str,
    supplier: &'static str,
    download_location: &'static str,
    files_analyzed: bool,
    license_concluded: &'static str,
    license_declared: &'static str,
    copyright_text: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    checksums: Vec<Checksum>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    external_refs: Vec<ExternalRef>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Checksum {
    algorithm: &'static str,
    checksum_value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExternalRef {
    reference_category: &'static str,
    reference_type: &'static str,
    reference_locator: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Relationship {
    spdx_element_id: String,
    relationship_type: &'static str,
    related_spdx_element: String,
}

/// The SPDX 2.3 document, as JSON.
///
/// # Errors
/// None that materials can cause.
pub fn spdx(materials: &Materials) -> Result<String> {
    let parts: Vec<Package> = materials
        .sorted_packages()
        .into_iter()
        .map(|package| of_package(package, &materials.release))
        .chain(materials.overlays.iter().map(of_overlay))
        .collect();
    let contains = parts.iter().map(|part| relationship(IMAGE, "CONTAINS", &part.id));
    let relationships = std::iter::once(relationship(DOCUMENT, "DESCRIBES", IMAGE)).chain(contains).collect();
    let name = format!("{}-{}", materials.name, materials.arch);
    text(&Document {
        spdx_version: "SPDX-2.3",
        data_license: "CC0-1.0",
        id: DOCUMENT,
        document_namespace: format!("https://spdx.org/spdxdocs/{name}-{}", materials.uuid()?),
        name,
        creation_info: CreationInfo {
            created: calendar::utc(materials.created),
            creators: [concat!("Tool: ", env!("CARGO_PKG_NAME"), "-", env!("CARGO_PKG_VERSION")).to_owned()],
        },
        packages: std::iter::once(of_image(materials)).chain(parts).collect(),
        relationships,
    })
}

fn part(id: String, name: &str, purpose: &'static str) -> Package {
    Package {
        id,
        name: name.to_owned(),
        version_info: None,
        summary: None,
        source_info: None,
        primary_package_purpose: purpose,
        supplier: UNKNOWN,
        download_location: UNKNOWN,
        files_analyzed: false,
        license_concluded: UNKNOWN,
        license_declared: UNKNOWN,
        copyright_text: UNKNOWN,
        checksums: Vec::new(),
        external_refs: Vec::new(),
    }
}

fn of_image(materials: &Materials) -> Package {
    Package {
        version_info: materials.version.clone(),
        summary: Some(materials.description.clone()),
        ..part(IMAGE.to_owned(), &materials.name, "OPERATING_SYSTEM")
    }
}

fn of_package(package: &PackageMaterial, release: &str) -> Package {
    let purl = ExternalRef {
        reference_category: "PACKAGE-MANAGER",
        reference_type: "purl",
        reference_locator: package.purl(release),
    };
    Package {
        version_info: Some(package.version.clone()),
        source_info: package.source.as_ref().map(|source| format!("built from the source package {source}")),
        checksums: vec![sha256(&package.sha256)],
        external_refs: vec![purl],
        ..part(format!("SPDXRef-Package-{}", id(&package.name)), &package.name, "LIBRARY")
    }
}

fn of_overlay(overlay: &OverlayMaterial) -> Package {
    Package {
        summary: Some(overlay.description.clone()),
        checksums: overlay.layer.iter().map(sha256).collect(),
        ..part(format!("SPDXRef-Overlay-{}", id(&overlay.name)), &overlay.name, "APPLICATION")
    }
}

fn relationship(one: &str, kind: &'static str, other: &str) -> Relationship {
    Relationship { spdx_element_id: one.to_owned(), relationship_type: kind, related_spdx_element: other.to_owned() }
}

fn sha256(digest: &Digest) -> Checksum {
    Checksum { algorithm: "SHA256", checksum_value: digest.hex() }
}

/// A name as part of an identifier, which has letters, digits, dots and dashes only: what is not one of them, nor a small
/// letter, becomes `X` and its number, so that no two names meet.
fn id(name: &str) -> String {
    name.bytes().fold(String::new(), |mut id, byte| {
        if byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'.' || byte == b'-' {
            id.push(byte.into());
        } else {
            id.push_str(&format!("X{byte:02X}"));
        }
        id
    })
}
