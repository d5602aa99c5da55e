//! Nodes as containers: the image's own systemd as PID 1, one bridge network, fixed addresses.

use super::driver::{Driver, Ground, NodePlan, Peer, Power};
use crate::{
    container_engine::{Container, ContainerSpec, ContainerState, Engine, Executed, NetworkSpec, Which},
    error::Fault,
    model::scope::ports,
};
use anyhow::{Context as _, Result, ensure};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// The label of everything of a cluster; its value is the cluster's name.
const CLUSTER_LABEL: &str = "io.pgha.cluster";
/// The label of a node; its value is the node's name.
const NODE_LABEL: &str = "io.pgha.node";
/// Where cloud-init looks for a seed in the file system.
const SEED_FOLDER: &str = "var/lib/cloud/seed/nocloud";
/// The rules' place among the kernel's routing rules: before all others but the first.
const RULE: &str = "7";
/// An address that no interface has: frames to it are lost.
const NOBODY: &str = "02:00:00:00:00:01";
/// How long a command that changes a node's network may take.
const QUICK: Duration = Duration::from_secs(30);

/// The driver.
#[derive(Debug)]
pub struct Docker {
    engine: Engine,
    ground: Ground,
    image: String,
    memory: Option<u64>,
}

impl Docker {
    /// Drives the cluster on `ground` with nodes made of `image`, each with `memory` bytes at most.
    ///
    /// # Errors
    /// When no engine answers.
    pub fn new(which: Which, ground: Ground, image: &str, memory: Option<u64>) -> Result<Docker> {
        Ok(Docker { engine: Engine::connect(which)?, ground, image: image.to_owned(), memory })
    }

    /// The networks that the engine has already.
    ///
    /// # Errors
    /// When no engine answers.
    pub fn taken_subnets(which: Which) -> Result<Vec<String>> {
        let networks = Engine::connect(which)?.networks()?;
        Ok(networks.into_iter().flat_map(|(_, subnets)| subnets).collect())
    }

    fn network(&self) -> String {
        format!("pgha-{}", self.ground.cluster)
    }

    fn container(&self, node: &str) -> String {
        format!("pgha-{}-{node}", self.ground.cluster)
    }

    fn labels(&self) -> BTreeMap<String, String> {
        [(CLUSTER_LABEL.to_owned(), self.ground.cluster.clone())].into()
    }

    fn all(&self) -> Result<Vec<Container>> {
        self.engine.containers(CLUSTER_LABEL, Some(&self.ground.cluster))
    }

    fn find(&self, node: &str) -> Result<Option<Container>> {
        let name = self.container(node);
        Ok(self.all()?.into_iter().find(|container| container.name == name))
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
            Peer::Outside => self.ground.gateway,
        }
    }
}

impl Driver for Docker {
    fn prepare(&self) -> Result<()> {
        if self.engine.image_id(&self.image)?.is_none() {
            return Err(Fault::request(format!("{} has no image {}", self.engine, self.image))
                .hint(format!("build and load it: pgha-image build {} --load", self.image))
                .into());
        }
        let name = self.network();
        if self.engine.networks()?.iter().any(|(known, _)| *known == name) {
            return Ok(());
        }
        self.engine.create_network(&NetworkSpec {
            name,
            subnet: self.ground.subnet.clone(),
            gateway: self.ground.gateway,
            labels: self.labels(),
        })
    }

    fn create(&self, node: &NodePlan) -> Result<()> {
        let mut labels = self.labels();
        labels.insert(NODE_LABEL.to_owned(), node.name.clone());
        let container = self.container(&node.name);
        self.engine.create_container(&ContainerSpec {
            name: container.clone(),
            image: self.image.clone(),
            host_name: node.name.clone(),
            network: self.network(),
            address: node.address,
            ports: ports::ALL.into(),
            memory: self.memory,
            labels,
        })?;
        self.engine.put_archive(&container, "/", archive(node)?)
    }

    fn start(&self, node: &str) -> Result<()> {
        self.engine.start(&self.container(node))
    }

    fn kill(&self, node: &str) -> Result<()> {
        self.engine.kill(&self.container(node))
    }

    fn pause(&self, node: &str) -> Result<()> {
        self.engine.pause(&self.container(node))
    }

    fn resume(&self, node: &str) -> Result<()> {
        self.engine.unpause(&self.container(node))
    }

    fn destroy(&self, node: &str) -> Result<()> {
        self.engine.remove_container(&self.container(node))
    }

    fn power(&self, node: &str) -> Result<Power> {
        Ok(match self.find(node)?.map(|container| container.state) {
            None => Power::Absent,
            Some(ContainerState::Running) => Power::On,
            Some(ContainerState::Paused) => Power::Paused,
            Some(ContainerState::Stopped) => Power::Off,
        })
    }

    fn exec(&self, node: &str, command: &[String], input: &[u8], within: Duration) -> Result<Executed> {
        self.engine.exec(&self.container(node), command, input, within)
    }

    fn interactive(&self, node: &str, command: &[String]) -> Option<(String, Vec<String>)> {
        Some(self.engine.interactive(&self.container(node), command))
    }

    fn console(&self, node: &str) -> Result<String> {
        self.engine.logs(&self.container(node))
    }

    /// Each side drops what comes from the other before it is answered, the kernel's replies to ARP included
    /// (`arp_process` asks the routing rules), and sends what goes there to an address that nobody has. So connections
    /// fall silent, as they do when a switch dies; a route of the kind `blackhole` would tell senders at once.
    fn cut(&self, one: &[Peer], other: &[Peer]) -> Result<()> {
        for (side, far) in [(one, other), (other, one)] {
            for peer in side {
                let Peer::Node(name, _) = peer else { continue };
                if self.power(name)? != Power::On {
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
        for container in self.all()?.iter().filter(|container| container.state == ContainerState::Running) {
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
        Ok(self.ground.vip.map(|vip| SocketAddr::new(vip, port)))
    }

    fn remove(&self) -> Result<()> {
        for container in self.all()? {
            self.engine.remove_container(&container.name)?;
        }
        self.engine.remove_network(&self.network())
    }
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
