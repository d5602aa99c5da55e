//! Nodes as containers: the image's own systemd as PID 1, one bridge network, fixed addresses.
//!
//! An engine is shared by all users of a machine, so nothing is done to a container or network by its name alone: it is
//! looked up, its labels must say that it is this cluster's ([`Claim::title`]), and it is then acted on by its id, which
//! no engine uses twice.

use super::{
    addresses::overlap,
    driver::{ClusterNetwork, Driver, NodePlan, Peer, PowerState, Prepared, Thing, ThingKind},
    owner::{CLUSTER_LABEL, CREATION_LABEL, Claim, Labels, NODE_LABEL, Title, made_by},
};
use crate::{
    container_engine::{Container, ContainerSpec, ContainerState, Engine, Executed, Kind, Network, NetworkSpec},
    document::Document,
    error::UserError,
    model::{ClusterSpec, DOCUMENT_PATH, keys::Keys, scope::ports},
};
use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, SystemTime},
};

/// Where cloud-init looks for a seed in the file system.
const SEED_FOLDER: &str = "var/lib/cloud/seed/nocloud";
/// The rules' place among the kernel's routing rules: before all others but the first.
const RULE: &str = "7";
/// An address that no interface has: frames to it are lost.
const NOBODY: &str = "02:00:00:00:00:01";
/// How long a command that changes a node's network may take.
const QUICK: Duration = Duration::from_secs(30);
/// How often a network is made again because somebody else made one of the same name at the same moment.
const ATTEMPTS: u32 = 8;

/// The driver.
#[derive(Debug)]
pub struct Docker {
    engine: Engine,
    network: ClusterNetwork,
    image: String,
    memory: Option<u64>,
    claim: Claim,
}

/// The name of a cluster's network.
pub fn network_name(cluster: &str) -> String {
    format!("pgha-{cluster}")
}

/// The name of a node's container.
pub fn container_name(cluster: &str, node: &str) -> String {
    format!("pgha-{cluster}-{node}")
}

impl Docker {
    /// Drives the cluster on `network` with nodes made of `image`, each with `memory` bytes at most, in `engine`. What
    /// `claim` claims is its own.
    pub fn new(engine: Engine, network: ClusterNetwork, image: &str, memory: Option<u64>, claim: Claim) -> Docker {
        Docker { engine, network, image: image.to_owned(), memory, claim }
    }

    fn container(&self, node: &str) -> String {
        container_name(&self.network.cluster, node)
    }

    /// The node's container, if there is one.
    ///
    /// # Errors
    /// When another cluster has the name.
    fn find(&self, node: &str) -> Result<Option<Container>> {
        let Some(found) = self.engine.container(&self.container(node))? else { return Ok(None) };
        if self.title(&found)? == Title::Foreign {
            return Err(self.foreign(&found).into());
        }
        Ok(Some(found))
    }

    /// The id of the node's container.
    fn id(&self, node: &str) -> Result<String> {
        let found = self.find(node)?;
        found.map(|container| container.id).ok_or_else(|| {
            let cluster = &self.network.cluster;
            UserError::runtime(format!(
                "{node} does not exist: {} has no container {}",
                self.engine,
                self.container(node)
            ))
            .hint(format!("pgha-image cluster start {cluster} {node} makes it, with an empty disk"))
            .into()
        })
    }

    fn title(&self, container: &Container) -> Result<Title> {
        self.claim.title(&container.labels, || proof(&self.engine, &container.id, &self.network.cluster))
    }

    fn foreign(&self, container: &Container) -> UserError {
        let cluster = &self.network.cluster;
        UserError::runtime(format!(
            "the container {} is not this cluster's: it was {}",
            container.name,
            made_by(&container.labels, &container.created)
        ))
        .hint(format!(
            "nothing was changed. The state folder knows another cluster `{cluster}` than {} has; see both with \
             `pgha-image cluster down {cluster}`, which lists everything before it asks",
            self.engine
        ))
    }

    /// This cluster's containers.
    fn own(&self) -> Result<Vec<Container>> {
        let mut own = Vec::new();
        for container in self.engine.containers(|_, labels| self.is_namesake(labels))? {
            if self.title(&container)? != Title::Foreign {
                own.push(container);
            }
        }
        Ok(own)
    }

    fn is_namesake(&self, labels: &Labels) -> bool {
        labels.get(CLUSTER_LABEL) == Some(&self.network.cluster)
    }

    /// The networks with the cluster's name, and whose each is. One that tells nothing itself is that of the containers in
    /// it.
    fn networks(&self, own: &[Container]) -> Result<Vec<(Network, Title)>> {
        let name = network_name(&self.network.cluster);
        let networks = self.engine.networks()?.into_iter();
        networks
            .filter(|network| network.name == name && self.is_namesake(&network.labels))
            .map(|network| {
                let used = own.iter().any(|container| is_in(container, &network));
                let proof = || Ok(used.then(|| self.claim.identity.clone()));
                let title = self.claim.title(&network.labels, proof)?;
                Ok((network, title))
            })
            .collect()
    }

    /// What this cluster's network is called where containers are made: by its id, as Docker gives a name twice. Podman
    /// does not, and knows networks by name.
    fn network(&self) -> Result<String> {
        let found = self.networks(&[])?;
        let own = found.iter().find(|(_, title)| *title != Title::Foreign);
        // One that was made before there were creation ids may be used, if not removed.
        let old = found.iter().find(|(network, _)| {
            !network.labels.contains_key(CREATION_LABEL) && network.subnets.contains(&self.network.subnet)
        });
        let called = |network: &Network| match self.engine.kind() {
            Kind::Docker => network.id.clone(),
            Kind::Podman => network.name.clone(),
        };
        own.or(old).map(|(network, _)| called(network)).ok_or_else(|| {
            let name = network_name(&self.network.cluster);
            UserError::runtime(format!("{} has no network {name} of this cluster", self.engine))
                .hint("`docker network prune` removes the networks of clusters that are switched off")
                .into()
        })
    }

    fn check_image(&self) -> Result<()> {
        if self.engine.image_id(&self.image)?.is_some() {
            return Ok(());
        }
        Err(UserError::usage(format!("{} has no image {}", self.engine, self.image))
            .hint(format!("build and load it: pgha-image build {} --load", self.image))
            .into())
    }

    /// Refuses if the engine has anything of the cluster's name: a new cluster has nothing yet.
    fn refuse_namesakes(&self) -> Result<()> {
        let cluster = &self.network.cluster;
        let found = namesakes(&self.engine, cluster, true)?;
        if found.is_empty() {
            return Ok(());
        }
        let folder = &self.claim.owner.folder;
        let mut message = format!("{} has a cluster `{cluster}` already, which {folder} does not know", self.engine);
        for thing in found {
            message.push_str(&format!("\n{} {}{}, {}", thing.kind, thing.name, thing.about, thing.made));
        }
        Err(UserError::usage(message)
            .hint(format!(
                "take another name; or, if this cluster is yours and its state folder is lost: pgha-image cluster adopt \
                 {cluster}; or, if nobody needs it: pgha-image cluster down {cluster}"
            ))
            .into())
    }

    /// Whether addresses of the cluster's network are another network's, as far as the engine tells.
    fn is_taken(&self, error: &anyhow::Error) -> Result<bool> {
        // One that somebody is making at this moment is not listed yet.
        let text = format!("{error:#}");
        let told = ["overlap", "already used"].iter().any(|word| text.contains(word));
        let networks = self.engine.networks()?;
        let mut subnets = networks.iter().flat_map(|network| &network.subnets);
        Ok(told || subnets.any(|subnet| overlap(subnet, &self.network.subnet)))
    }

    /// Runs a shell script in a node; it must end well.
    fn script(&self, node: &str, script: &str) -> Result<()> {
        let command = ["sh", "-euc", script].map(str::to_owned);
        let done = self.exec(node, &command, &[], QUICK)?;
        ensure!(done.status == 0, "{}", String::from_utf8_lossy(&done.stderr).trim());
        Ok(())
    }

    /// Where a peer is.
    fn address(&self, peer: &Peer) -> IpAddr {
        match peer {
            Peer::Node(_, address) => *address,
            Peer::Outside => self.network.gateway,
        }
    }
}

impl Driver for Docker {
    fn vacant(&self) -> Result<()> {
        self.refuse_namesakes()
    }

    /// Docker gives a name to two networks, but no address twice; so whoever made a network and then sees another one
    /// of that name has lost, and tries again. Of two that do so at once, no one or one goes on. Containers are only made
    /// by the one.
    fn prepare(&self) -> Result<Prepared> {
        self.check_image()?;
        let name = network_name(&self.network.cluster);
        for _ in 0..ATTEMPTS {
            self.refuse_namesakes()?;
            let made = self.engine.create_network(&NetworkSpec {
                name: name.clone(),
                subnet: self.network.subnet.clone(),
                gateway: self.network.gateway,
                labels: self.claim.labels(),
            });
            let id = match made {
                Ok(id) => id,
                Err(error) => {
                    // Podman refuses a name that is taken.
                    self.refuse_namesakes()?;
                    return if self.is_taken(&error)? { Ok(Prepared::Taken) } else { Err(error) };
                }
            };
            if self.engine.networks()?.iter().all(|network| network.name != name || network.id == id) {
                return Ok(Prepared::Ready);
            }
            self.engine.remove_network(&id)?;
            thread::sleep(some_time());
        }
        Err(UserError::runtime(format!(
            "another program is creating a cluster `{}` at this moment",
            self.network.cluster
        ))
        .hint("choose another name, or try again")
        .into())
    }

    fn check_create(&self) -> Result<()> {
        self.check_image()?;
        self.network().map(drop)
    }

    fn create(&self, node: &NodePlan) -> Result<()> {
        let mut labels = self.claim.labels();
        labels.insert(NODE_LABEL.to_owned(), node.name.clone());
        let id = self.engine.create_container(&ContainerSpec {
            name: self.container(&node.name),
            image: self.image.clone(),
            host_name: node.name.clone(),
            network: self.network()?,
            address: node.address,
            ports: ports::ALL.into(),
            memory: self.memory,
            labels,
        })?;
        let seeded = archive(node).and_then(|seed| self.engine.put_archive(&id, "/", seed));
        if seeded.is_err() {
            // A node without a seed must not start. The first error is the one to tell.
            let _ = self.engine.remove_container(&id);
        }
        seeded
    }

    fn start(&self, node: &str) -> Result<()> {
        self.engine.start(&self.id(node)?)
    }

    fn kill(&self, node: &str) -> Result<()> {
        self.engine.kill(&self.id(node)?)
    }

    fn pause(&self, node: &str) -> Result<()> {
        self.engine.pause(&self.id(node)?)
    }

    fn resume(&self, node: &str) -> Result<()> {
        self.engine.unpause(&self.id(node)?)
    }

    fn destroy(&self, node: &str) -> Result<()> {
        match self.find(node)? {
            Some(container) => self.engine.remove_container(&container.id),
            None => Ok(()),
        }
    }

    fn power(&self, node: &str) -> Result<PowerState> {
        Ok(match self.find(node)?.map(|container| container.state) {
            None => PowerState::Absent,
            Some(ContainerState::Running) => PowerState::On,
            Some(ContainerState::Paused) => PowerState::Paused,
            Some(ContainerState::Stopped) => PowerState::Off,
        })
    }

    fn exec(&self, node: &str, command: &[String], input: &[u8], within: Duration) -> Result<Executed> {
        self.engine.exec(&self.id(node)?, command, input, within)
    }

    fn interactive(&self, node: &str, command: &[String]) -> Result<Option<(String, Vec<String>)>> {
        Ok(Some(self.engine.interactive(&self.id(node)?, command)))
    }

    fn console(&self, node: &str) -> Result<String> {
        self.engine.logs(&self.id(node)?)
    }

    /// Each side drops what comes from the other before it is answered, the kernel's replies to ARP included
    /// (`arp_process` asks the routing rules), and sends what goes there to an address that nobody has. So connections
    /// fall silent, as they do when a switch dies; a route of the kind `blackhole` would tell senders at once.
    fn cut(&self, one: &[Peer], other: &[Peer]) -> Result<()> {
        for (side, far) in [(one, other), (other, one)] {
            for peer in side {
                let Peer::Node(name, _) = peer else { continue };
                if self.power(name)? != PowerState::On {
                    continue;
                }
                let mut script = "dev=$(ip -o route show default | sed -n 's/.* dev \\([^ ]*\\).*/\\1/p')\n".to_owned();
                for address in far.iter().map(|peer| self.address(peer)) {
                    script.push_str(&format!(
                        "ip rule add pref {RULE} iif $dev from {address} blackhole\n\
                         ip neigh replace {address} lladdr {NOBODY} nud permanent dev $dev\n"
                    ));
                }
                self.script(name, &script).with_context(|| format!("cutting {name} off"))?;
            }
        }
        Ok(())
    }

    fn heal(&self) -> Result<()> {
        for container in self.own()?.iter().filter(|container| container.state == ContainerState::Running) {
            let Some(node) = container.labels.get(NODE_LABEL) else { continue };
            let script = format!(
                "while ip rule del pref {RULE} 2>/dev/null; do :; done\n\
                 ip neigh show nud permanent | while read -r address dev name rest; do\n\
                 case $rest in *{NOBODY}*) ip neigh del \"$address\" dev \"$name\";; esac\ndone"
            );
            self.script(node, &script).with_context(|| format!("healing {node}"))?;
        }
        Ok(())
    }

    fn endpoint(&self, node: &str, port: u16) -> Result<Option<SocketAddr>> {
        Ok(self.find(node)?.and_then(|container| container.ports.get(&port).copied()))
    }

    /// The host is in the containers' network itself.
    fn vip_endpoint(&self, port: u16) -> Result<Option<SocketAddr>> {
        Ok(self.network.vip.map(|vip| SocketAddr::new(vip, port)))
    }

    fn things(&self) -> Result<Vec<Thing>> {
        let containers = self.engine.containers(|_, labels| self.is_namesake(labels))?;
        let mut things = Vec::new();
        let mut own = Vec::new();
        for container in containers {
            let title = self.title(&container)?;
            things.push(thing_of_container(&container, title));
            if title != Title::Foreign {
                own.push(container);
            }
        }
        let networks = self.networks(&own)?;
        things.extend(networks.iter().map(|(network, title)| thing_of_network(network, *title)));
        Ok(things)
    }

    fn measure(&self, thing: &Thing, within: Duration) -> Option<u64> {
        measure(&self.engine, thing, within)
    }

    fn discard(&self, things: &[Thing]) -> Result<()> {
        discard(&self.engine, things)
    }
}

/// Whether a container is in a network. Podman tells its name for the id.
pub fn is_in(container: &Container, network: &Network) -> bool {
    [&network.id, &network.name].into_iter().any(|id| container.networks.contains_key(id))
}

/// A moment that is another one for another process.
fn some_time() -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Duration::from_millis(100 + u64::from(now.subsec_micros() % 500))
}

/// Everything in the engine that this program made for a cluster `cluster`, whoever called it; with `by_name`, also what
/// has such names and was made by hand.
///
/// # Errors
/// When the engine does not answer.
pub fn namesakes(engine: &Engine, cluster: &str, by_name: bool) -> Result<Vec<Thing>> {
    // Another cluster's name may begin with this one: then the label tells.
    let chosen = |labels: &Labels, named: bool| match labels.get(CLUSTER_LABEL) {
        Some(of) => of == cluster,
        None => by_name && named,
    };
    let (network, prefix) = (network_name(cluster), container_name(cluster, ""));
    let containers = engine.containers(|name, labels| chosen(labels, name.starts_with(&prefix)))?;
    let mut things: Vec<Thing> =
        containers.iter().map(|container| thing_of_container(container, Title::Foreign)).collect();
    let networks = engine.networks()?;
    let networks = networks.iter().filter(|found| chosen(&found.labels, found.name == network));
    things.extend(networks.map(|network| thing_of_network(network, Title::Foreign)));
    Ok(things)
}

fn thing_of_container(container: &Container, title: Title) -> Thing {
    let state = match container.state {
        ContainerState::Running => "running",
        ContainerState::Paused => "paused",
        ContainerState::Stopped => "off",
    };
    let volumes: String = container.volumes.iter().map(|volume| format!(", volume {volume}")).collect();
    Thing {
        kind: ThingKind::Container,
        id: container.id.clone(),
        name: container.name.clone(),
        title,
        about: format!(" ({state}{volumes})"),
        made: made_by(&container.labels, &container.created),
    }
}

fn thing_of_network(network: &Network, title: Title) -> Thing {
    Thing {
        kind: ThingKind::Network,
        id: network.id.clone(),
        name: network.name.clone(),
        title,
        about: format!(" ({})", network.subnets.join(", ")),
        made: made_by(&network.labels, &network.created),
    }
}

/// How much a container of `engine` has written.
pub fn measure(engine: &Engine, thing: &Thing, within: Duration) -> Option<u64> {
    match thing.kind {
        ThingKind::Container => engine.written(&thing.id, within),
        ThingKind::Machine | ThingKind::Network => None,
    }
}

/// Removes `things` from `engine` by their ids: containers with their volumes first, networks last.
///
/// # Errors
/// When something stays.
pub fn discard(engine: &Engine, things: &[Thing]) -> Result<()> {
    let of_kind = |kind| things.iter().filter(move |thing| thing.kind == kind);
    for thing in of_kind(ThingKind::Container) {
        engine.remove_container(&thing.id).with_context(|| format!("removing {}", thing.name))?;
    }
    for thing in of_kind(ThingKind::Network) {
        engine.remove_network(&thing.id).with_context(|| format!("removing {}", thing.name))?;
    }
    Ok(())
}

/// A document that a container holds.
#[derive(Debug, Clone)]
pub struct Held {
    /// The document.
    pub document: Document,
    /// What it says.
    pub spec: ClusterSpec,
    /// When it was written, in seconds since 1970; 0 for the seed.
    pub modified: u64,
}

/// The documents of the cluster `cluster` that a container holds: the one that its node uses, and its seed's. What is no
/// document of that cluster is left out.
///
/// # Errors
/// When the engine does not answer.
pub fn held(engine: &Engine, container: &str, cluster: &str) -> Result<Vec<Held>> {
    let mut found = Vec::new();
    let mut offer = |text: String, name: &str, modified: u64| {
        let document = Document::new(format!("{name} of the container"), text);
        if let Ok(spec) = document.parse::<ClusterSpec>()
            && spec.cluster == cluster
        {
            found.push(Held { document, spec, modified });
        }
    };
    if let Some(file) = engine.file(container, DOCUMENT_PATH)? {
        offer(String::from_utf8_lossy(&file.bytes).into_owned(), DOCUMENT_PATH, file.modified);
    }
    let seed = format!("/{SEED_FOLDER}/user-data");
    if let Some(file) = engine.file(container, &seed)? {
        let text = String::from_utf8_lossy(&file.bytes).into_owned();
        offer(document_of_user_data(&text).unwrap_or_default(), &seed, 0);
    }
    Ok(found)
}

/// The cluster's document in user data as `Seeds::user_data` writes them.
fn document_of_user_data(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct CloudConfig {
        write_files: Vec<WriteFile>,
    }
    #[derive(Deserialize)]
    struct WriteFile {
        path: String,
        content: String,
    }
    let config: CloudConfig = Document::new("user-data", text).parse().ok()?;
    config.write_files.into_iter().find(|file| file.path == DOCUMENT_PATH).map(|file| file.content)
}

/// Which secret the documents of a container have, if they agree: the identity.
fn proof(engine: &Engine, container: &str, cluster: &str) -> Result<Option<String>> {
    let mut identities = held(engine, container, cluster)?.into_iter().map(|held| Keys::new(&held.spec).identity());
    let first = identities.next();
    Ok(first.filter(|first| identities.all(|other| other == *first)))
}

/// The seed as a tar archive of the guest's `/`.
fn archive(node: &NodePlan) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut folder = String::new();
    let directory = |archive: &mut tar::Builder<Vec<u8>>, path: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        archive.append_data(&mut header, path, std::io::empty())
    };
    for part in SEED_FOLDER.split('/') {
        folder.push_str(part);
        folder.push('/');
        directory(&mut archive, &folder).context("packing the seed")?;
    }
    for (name, text) in &node.seed.files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(text.len() as u64);
        archive
            .append_data(&mut header, format!("{SEED_FOLDER}/{name}"), text.as_bytes())
            .context("packing the seed")?;
    }
    archive.into_inner().context("packing the seed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::{Extras, Seeds};

    #[test]
    fn the_document_is_found_in_a_seed() {
        let text = "schema: 1\ncluster: demo\nsecret: BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n\
                    members: [{name: pg-1, address: 10.0.0.11}]\n\ntiming: fast\n";
        let extras = Extras { ssh_keys: vec!["ssh-ed25519 AAAA".to_owned()], ..Extras::default() };
        let seeds = Seeds::new(Document::new("demo", text), extras).unwrap();
        assert_eq!(document_of_user_data(&seeds.user_data()).as_deref(), Some(text));
        assert_eq!(document_of_user_data("#cloud-config\n"), None);
    }
}
