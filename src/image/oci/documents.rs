//! The JSON documents of an image.

use super::{OciSpec, PackedLayer};
use crate::{
    calendar,
    model::{Arch, Digest},
};
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;

/// The file `oci-layout` (image-layout.md).
pub(super) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const CREATED: &str = "org.opencontainers.image.created";

/// What a blob's digest and size are.
type Named = (Digest, u64);

#[derive(Serialize)]
struct Object {}

/// config.md; names are spelled as Docker spelled them.
#[derive(Serialize)]
struct Config<'a> {
    created: String,
    #[serde(flatten)]
    platform: Platform,
    config: Execution<'a>,
    rootfs: RootFs,
    history: Vec<History>,
}

#[derive(Serialize)]
struct Platform {
    architecture: &'static str,
    os: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Execution<'a> {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    exposed_ports: BTreeMap<String, Object>,
    env: [&'static str; 2],
    cmd: [&'static str; 1],
    working_dir: &'static str,
    labels: BTreeMap<&'a str, String>,
    stop_signal: &'static str,
}

#[derive(Serialize)]
struct RootFs {
    r#type: &'static str,
    diff_ids: Vec<Digest>,
}

#[derive(Serialize)]
struct History {
    created: String,
    created_by: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: &'static str,
    digest: Digest,
    size: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<Platform>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u8,
    media_type: &'static str,
    config: Descriptor,
    layers: Vec<Descriptor>,
    annotations: BTreeMap<&'a str, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u8,
    media_type: &'static str,
    manifests: Vec<Descriptor>,
}

/// Docker's image specification 1.2, "Combined Image JSON + Filesystem Changeset Format".
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

fn platform(arch: Arch) -> Platform {
    let variant = match arch {
        Arch::Amd64 => None,
        Arch::Arm64 => Some("v8"),
    };
    Platform { architecture: arch.debian(), os: "linux", variant }
}

fn annotations(spec: &OciSpec) -> BTreeMap<&str, String> {
    let given = spec.annotations.iter().map(|(key, value)| (key.as_str(), value.clone()));
    std::iter::once((CREATED, calendar::utc(spec.created))).chain(given).collect()
}

fn descriptor(media_type: &'static str, (digest, size): Named) -> Descriptor {
    Descriptor { media_type, digest, size, annotations: BTreeMap::new(), platform: None }
}

pub(super) fn config(spec: &OciSpec, packed: &[PackedLayer]) -> Result<Vec<u8>> {
    let created = calendar::utc(spec.created);
    let history = |title: &str| History { created: created.clone(), created_by: format!("pgha-image {title}") };
    let config = Config {
        created: created.clone(),
        platform: platform(spec.arch),
        config: Execution {
            exposed_ports: spec.ports.iter().map(|port| (format!("{port}/tcp"), Object {})).collect(),
            env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "container=oci"],
            cmd: ["/sbin/init"],
            working_dir: "/",
            labels: annotations(spec),
            stop_signal: "SIGRTMIN+3",
        },
        rootfs: RootFs { r#type: "layers", diff_ids: packed.iter().map(|layer| layer.diff_id).collect() },
        history: spec.layers.iter().map(|layer| history(&layer.title)).collect(),
    };
    Ok(serde_json::to_vec(&config)?)
}

pub(super) fn manifest(spec: &OciSpec, packed: &[PackedLayer], config: Named) -> Result<Vec<u8>> {
    let layer = |layer: &PackedLayer| descriptor(layer.compression.media_type(), (layer.digest, layer.size));
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST_TYPE,
        config: descriptor(CONFIG_TYPE, config),
        layers: packed.iter().map(layer).collect(),
        annotations: annotations(spec),
    };
    Ok(serde_json::to_vec(&manifest)?)
}

/// One entry per name: containerd and Podman take the whole name from `io.containerd.image.name`, as they do from what
/// Docker's own builder writes; everything else selects by the tag.
pub(super) fn index(spec: &OciSpec, manifest: Named) -> Result<Vec<u8>> {
    let entry = |annotations| Descriptor {
        annotations,
        platform: Some(platform(spec.arch)),
        ..descriptor(MANIFEST_TYPE, manifest)
    };
    let named = spec.references.iter().map(|reference| {
        entry(BTreeMap::from([
            ("io.containerd.image.name", reference.canonical()),
            ("org.opencontainers.image.created", calendar::utc(spec.created)),
            ("org.opencontainers.image.ref.name", reference.tag().to_owned()),
        ]))
    });
    let mut manifests: Vec<Descriptor> = named.collect();
    if manifests.is_empty() {
        manifests.push(entry(BTreeMap::new()));
    }
    Ok(serde_json::to_vec(&Index { schema_version: 2, media_type: INDEX_TYPE, manifests })?)
}

pub(super) fn docker_manifest(spec: &OciSpec, packed: &[PackedLayer], config: Digest) -> Result<Vec<u8>> {
    let path = |digest: Digest| format!("blobs/sha256/{}", digest.hex());
    let image = DockerImage {
        config: path(config),
        repo_tags: spec.references.iter().map(|reference| reference.to_string()).collect(),
        layers: packed.iter().map(|layer| path(layer.digest)).collect(),
    };
    Ok(serde_json::to_vec(&[image])?)
}
