//! Makes a new record of a cluster whose state folder is lost, from its nodes. Nothing is removed or changed.

use super::{
    Claim, Cluster, ClusterNetwork, DriverKind, Lock, Record, StateDir, Title, addresses,
    docker::{Held, held, is_in, network_name},
    driver::Driver as _,
    owner::{CLUSTER_LABEL, CREATION_LABEL, NODE_LABEL, made_by},
    qemu::{self, QemuDriver},
    record::{self, DOCUMENT, is_there},
    seeds_of,
};
use crate::{
    container_engine::{Container, Engine, Network, Which},
    document::Document,
    error::UserError,
    files::read_text,
    model::{ClusterSpec, DOCUMENT_PATH, keys::Keys},
    progress::Progress,
    seed::Seeds,
};
use anyhow::{Context as _, Result};
use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a machine may take to show its document.
const SHOWN_WITHIN: Duration = Duration::from_secs(30);

/// Remembers the cluster `name`, which the engine has or whose machines are in its folder, on `state_dir`. `image` is what new
/// nodes are made of, if it is not what the others were made of.
///
/// # Errors
/// A wrong request when the state directory knows the cluster, or there is none; failed work when what is there does not agree with
/// itself.
pub fn adopt(state_dir: &StateDir, _: &Lock, name: &str, image: Option<&str>, progress: &Progress) -> Result<Cluster> {
    if state_dir.has(name)? {
        return Err(UserError::usage(format!(
            "the cluster `{name}` is remembered in {}",
            state_dir.folder(name).display()
        ))
        .hint(format!("see `pgha-image cluster status {name}`"))
        .into());
    }
    let (record, document) = match qemu::found(&state_dir.folder(name))? {
        Some(found) => of_machines(state_dir, name, image, &found)?,
        None => of_containers(state_dir, name, image, progress)?,
    };
    if let Some(kept) = state_dir.keep_document(name, &document)? {
        let known = state_dir.folder(name).join(DOCUMENT);
        progress.note(&format!("{} was another one: it is kept as {}", known.display(), kept.display()));
    }
    state_dir.store(&record, &document)?;
    Cluster::open(state_dir, name)
}

/// The record and the document of a cluster of containers.
fn of_containers(
    state_dir: &StateDir,
    name: &str,
    image: Option<&str>,
    progress: &Progress,
) -> Result<(Record, Document)> {
    let engine = Engine::connect(Which::Auto)?;
    let containers = engine.containers(|_, labels| labels.get(CLUSTER_LABEL).is_some_and(|of| of == name))?;
    let Some(last) = containers.iter().max_by(|a, b| a.created.cmp(&b.created)) else {
        return Err(nothing_there(&engine, name)?.into());
    };
    let mut found = Vec::new();
    for container in &containers {
        let documents = held(&engine, &container.id, name)?;
        found.push((container, documents));
    }
    let newest = newest(name, &found)?;
    for (container, held) in &found {
        let own = held.iter().max_by_key(|held| held.modified);
        if own.is_some_and(|own| own.document.text != newest.document.text) {
            progress.warn(&format!("{} has an older document", container.name));
        }
    }
    let document = Document::new(format!("the document of the cluster {name}"), newest.document.text.clone());
    let seeds = seeds_of(DriverKind::Docker, document)?;
    let record = Record {
        schema: Record::SCHEMA,
        driver: DriverKind::Docker,
        image: image.map_or_else(|| last.image.clone(), ToOwned::to_owned),
        memory: last.memory,
        network: cluster_network(&engine, &seeds.spec, &containers, progress)?,
        creation: creation(name, &containers, &Keys::new(&seeds.spec).identity())?,
        adopted: true,
    };
    verify(&engine, state_dir, &record, &seeds, &containers, progress)?;
    Ok((record, seeds.document))
}

fn nothing_there(engine: &Engine, name: &str) -> Result<UserError> {
    let others = engine.containers(|_, labels| labels.contains_key(CLUSTER_LABEL))?;
    let names: BTreeSet<&str> =
        others.iter().filter_map(|container| container.labels.get(CLUSTER_LABEL)).map(String::as_str).collect();
    let hint = if names.is_empty() {
        "machines of QEMU are adopted where they are, in the folder of their cluster's name in the state folder"
            .to_owned()
    } else {
        format!("it has containers of {}", names.into_iter().collect::<Vec<_>>().join(", "))
    };
    Ok(UserError::usage(format!("{engine} has no containers of a cluster `{name}`")).hint(hint))
}

/// The newest document of all; they must be of one cluster.
fn newest<'a>(name: &str, found: &'a [(&Container, Vec<Held>)]) -> Result<&'a Held, UserError> {
    let all = || found.iter().flat_map(|(_, held)| held);
    let identities: BTreeSet<String> = all().map(|held| Keys::new(&held.spec).identity()).collect();
    if identities.len() > 1 {
        return Err(UserError::runtime(format!("the containers of `{name}` have documents with different secrets"))
            .hint("they are nodes of more than one cluster: remove or rename what does not belong to it"));
    }
    all().max_by_key(|held| held.modified).ok_or_else(|| {
        UserError::runtime(format!("no container of `{name}` has the cluster's document"))
            .hint(format!("a node has it in {DOCUMENT_PATH}"))
    })
}

/// The creation id that all containers have; `None` if they were made before there were any.
fn creation(name: &str, containers: &[Container], identity: &str) -> Result<Option<String>, UserError> {
    let ids: BTreeSet<Option<&str>> =
        containers.iter().map(|container| container.labels.get(CREATION_LABEL).map(String::as_str)).collect();
    let old = format!("of-{identity}");
    if ids.iter().all(|id| id.is_none_or(|id| id == old)) {
        return Ok(None);
    }
    if let [Some(id)] = ids.iter().collect::<Vec<_>>()[..] {
        return Ok(Some((*id).to_owned()));
    }
    let list = containers
        .iter()
        .map(|container| format!("\n{}: {}", container.name, made_by(&container.labels, &container.created)));
    Err(UserError::runtime(format!("the containers of `{name}` were not made together{}", list.collect::<String>()))
        .hint("they are nodes of more than one cluster: remove what does not belong to it, by its id"))
}

/// The network that the containers are in.
fn cluster_network(
    engine: &Engine,
    spec: &ClusterSpec,
    containers: &[Container],
    progress: &Progress,
) -> Result<ClusterNetwork> {
    let usual = addresses::cluster_network(spec)?;
    let name = network_name(&spec.cluster);
    let is_used = |network: &Network| containers.iter().any(|container| is_in(container, network));
    let Some(network) = engine.networks()?.into_iter().find(|network| network.name == name && is_used(network)) else {
        progress.warn(&format!("{engine} has lost the network {name}: nodes that are switched off do not start"));
        return Ok(usual);
    };
    if !network.subnets.contains(&usual.subnet) {
        let (has, says) = (network.subnets.join(", "), usual.subnet);
        return Err(UserError::runtime(format!(
            "the network {name} has the addresses {has}, the document says {says}"
        ))
        .into());
    }
    Ok(ClusterNetwork { gateway: network.gateway.unwrap_or(usual.gateway), ..usual })
}

/// Whether what was rebuilt describes what is there.
fn verify(
    engine: &Engine,
    state_dir: &StateDir,
    record: &Record,
    seeds: &Seeds,
    containers: &[Container],
    progress: &Progress,
) -> Result<()> {
    let claim = Claim::new(state_dir, record, seeds);
    let mut seen = BTreeSet::new();
    for container in containers {
        let proof = || {
            let held = held(engine, &container.id, &claim.cluster)?;
            Ok(held.first().map(|held| Keys::new(&held.spec).identity()))
        };
        if claim.title(&container.labels, proof)? == Title::Foreign {
            return Err(
                UserError::runtime(format!("nothing shows that {} is a node of the cluster", container.name)).into()
            );
        }
        let node = container.labels.get(NODE_LABEL).map(String::as_str).unwrap_or_default();
        let Some(member) = seeds.spec.members.iter().find(|member| member.name == node) else {
            progress.warn(&format!("{} is not a member by the newest document", container.name));
            continue;
        };
        let addresses: Vec<IpAddr> = container.networks.values().copied().flatten().collect();
        if !addresses.is_empty() && !addresses.contains(&member.address) {
            let (has, says) = (addresses[0], member.address);
            return Err(UserError::runtime(format!(
                "{} has the address {has}, its document says {says}",
                container.name
            ))
            .into());
        }
        seen.insert(node);
    }
    let missing: Vec<&str> =
        seeds.spec.members.iter().map(|member| member.name.as_str()).filter(|name| !seen.contains(name)).collect();
    if !missing.is_empty() {
        let name = &seeds.spec.cluster;
        progress.warn(&format!(
            "there is no container of {}: `pgha-image cluster start {name}` makes one with an empty disk",
            missing.join(", ")
        ));
    }
    Ok(())
}

/// The record and the document of a cluster of machines, which are in its folder.
fn of_machines(
    state_dir: &StateDir,
    name: &str,
    image: Option<&str>,
    found: &qemu::Found,
) -> Result<(Record, Document)> {
    let folder = state_dir.folder(name);
    let document = document_of_machines(&folder, name, found)?;
    let seeds = seeds_of(DriverKind::Qemu, document)?;
    if seeds.spec.cluster != name {
        let (path, other) = (folder.display(), &seeds.spec.cluster);
        return Err(UserError::runtime(format!("{path} has the document of the cluster `{other}`"))
            .hint(format!("give the folder its name: {}", state_dir.folder(other).display()))
            .into());
    }
    let usual = addresses::cluster_network(&seeds.spec)?;
    let (_, prefix) = usual.subnet.split_once('/').context("the subnet has a prefix")?;
    if prefix.parse() != Ok(found.prefix) {
        let has = found.prefix;
        return Err(UserError::runtime(format!(
            "the machines' network has a prefix of {has} bits, the document says {prefix}"
        ))
        .into());
    }
    let record = Record {
        schema: Record::SCHEMA,
        driver: DriverKind::Qemu,
        image: match image {
            Some(image) => QemuDriver::find_image(image)?,
            None => image_of_machines(&folder, found)?.to_string_lossy().into_owned(),
        },
        memory: found.memory,
        network: ClusterNetwork { gateway: found.gateway, ..usual },
        creation: None,
        adopted: true,
    };
    Ok((record, seeds.document))
}

/// The document in the cluster's folder, or else that of a machine that runs.
fn document_of_machines(folder: &Path, name: &str, found: &qemu::Found) -> Result<Document> {
    let path = folder.join(DOCUMENT);
    if is_there(&path)? {
        return Ok(Document::new(path.display().to_string(), read_text(&path)?));
    }
    let network = ClusterNetwork { cluster: name.to_owned(), subnet: String::new(), gateway: found.gateway, vip: None };
    let machines = QemuDriver::new(folder, network, "", None);
    let command = ["cat", DOCUMENT_PATH].map(str::to_owned);
    for node in &found.nodes {
        if let Ok(done) = machines.exec(node, &command, &[], SHOWN_WITHIN)
            && done.status == 0
        {
            let text = String::from_utf8_lossy(&done.stdout).into_owned();
            return Ok(Document::new(format!("{DOCUMENT_PATH} on {node}"), text));
        }
    }
    Err(UserError::runtime(format!("{} is lost, and no machine of the cluster runs and shows its own", path.display()))
        .hint(format!("a machine has it in {DOCUMENT_PATH} on its disk; put it back, then adopt the cluster again"))
        .into())
}

/// An image for new machines: a further name of one that a machine was made of, which stays when that machine goes.
fn image_of_machines(folder: &Path, found: &qemu::Found) -> Result<PathBuf> {
    let Some(image) = &found.image else {
        return Err(UserError::runtime("no machine has kept the image that it was made of")
            .hint("give --image FILE")
            .into());
    };
    let kept = folder.join(record::IMAGE);
    if !is_there(&kept)? {
        std::fs::hard_link(image, &kept).with_context(|| format!("giving {} a second name", image.display()))?;
    }
    Ok(kept)
}
