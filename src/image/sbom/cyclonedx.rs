//! CycloneDX 1.6 (ECMA-424, <https://cyclonedx.org/docs/1.6/json/>).

use super::{Materials, OverlayMaterial, PackageMaterial, text};
use crate::{calendar, model::Digest};
use anyhow::Result;
use serde::Serialize;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Bom {
    #[serde(rename = "$schema")]
    schema: &'static str,
    bom_format: &'static str,
    spec_version: &'static str,
    serial_number: String,
    version: u32,
    metadata: Metadata,
    components: Vec<Component>,
    dependencies: Vec<Dependency>,
}

#[derive(Serialize)]
struct Metadata {
    timestamp: String,
    tools: Tools,
    component: Component,
}

#[derive(Serialize)]
struct Tools {
    components: [Component; 1],
}

#[derive(Serialize)]
struct Component {
    r#type: &'static str,
    #[serde(rename = "bom-ref", skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hashes: Vec<Hash>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purl: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    properties: Vec<Property>,
}

#[derive(Serialize)]
struct Hash {
    alg: &'static str,
    content: String,
}

#[derive(Serialize)]
struct Property {
    name: &'static str,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dependency {
    r#ref: String,
    depends_on: Vec<String>,
}

/// The CycloneDX 1.6 document, as JSON. Licences are not known, and are left out.
///
/// # Errors
/// None that materials can cause.
pub fn cyclonedx(materials: &Materials) -> Result<String> {
    let image = format!("image:{}", materials.name);
    let components: Vec<Component> = materials
        .sorted_packages()
        .into_iter()
        .map(|package| of_package(package, &materials.release))
        .chain(materials.overlays.iter().map(of_overlay))
        .collect();
    let depends_on = components.iter().filter_map(|component| component.reference.clone()).collect();
    text(&Bom {
        schema: "http://cyclonedx.org/schema/bom-1.6.schema.json",
        bom_format: "CycloneDX",
        spec_version: "1.6",
        serial_number: format!("urn:uuid:{}", materials.uuid()?),
        version: 1,
        metadata: Metadata {
            timestamp: calendar::utc(materials.created),
            tools: Tools {
                components: [Component {
                    version: Some(env!("CARGO_PKG_VERSION").to_owned()),
                    ..component("application", None, env!("CARGO_PKG_NAME"))
                }],
            },
            component: Component {
                version: materials.version.clone(),
                description: Some(materials.description.clone()),
                ..component("operating-system", Some(image.clone()), &materials.name)
            },
        },
        components,
        dependencies: vec![Dependency { r#ref: image, depends_on }],
    })
}

fn component(r#type: &'static str, reference: Option<String>, name: &str) -> Component {
    Component {
        r#type,
        reference,
        name: name.to_owned(),
        version: None,
        description: None,
        hashes: Vec::new(),
        purl: None,
        properties: Vec::new(),
    }
}

fn of_package(package: &PackageMaterial, release: &str) -> Component {
    let purl = package.purl(release);
    let source = |source: &String| Property { name: "pgha-image:source-package", value: source.clone() };
    Component {
        version: Some(package.version.clone()),
        hashes: vec![sha256(&package.sha256)],
        purl: Some(purl.clone()),
        properties: package.source.iter().map(source).collect(),
        ..component("library", Some(purl), &package.name)
    }
}

fn of_overlay(overlay: &OverlayMaterial) -> Component {
    Component {
        description: Some(overlay.description.clone()),
        hashes: overlay.layer.iter().map(sha256).collect(),
        ..component("application", Some(format!("overlay:{}", overlay.name)), &overlay.name)
    }
}

fn sha256(digest: &Digest) -> Hash {
    Hash { alg: "SHA-256", content: digest.hex() }
}
