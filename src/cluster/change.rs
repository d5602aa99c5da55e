//! Removes nodes with their disks: by replacing them, and by a document that does not name them any more.
//!
//! [`next`] says what may be done; here it is done, step by step, with a new look at all nodes before each.

use super::{
    Cluster, Lock, PAUSE, PowerState, REQUEST_WITHIN, View, addresses,
    copies::{Step, next},
    names,
};
use crate::{
    document::Document,
    error::UserError,
    model::{DOCUMENT_PATH, Synchronous, keys::Keys},
    poll::PollInterval,
    progress::Progress,
    seed::{Seeds, with_secret},
};
use anyhow::Result;
use std::time::{Duration, Instant};

/// How long a node may take to leave: a primary hands over first, and PostgreSQL writes a checkpoint.
const LEAVE_WITHIN: Duration = Duration::from_secs(300);

/// How nodes are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Care {
    /// Only when the other nodes have everything that they have; waits for that so long.
    Within(Duration),
    /// At once, as if they were lost: whatever only they have is lost.
    Forced,
}

impl Cluster {
    /// Replaces each of `nodes` by a new one with the same name and address, and an empty disk.
    ///
    /// # Errors
    /// When the others do not have all that a node has, or could not go on without it, unless it is forced; when a node
    /// cannot leave, or the driver cannot.
    pub fn replace(&self, _: &Lock, nodes: &[String], care: Care, progress: &Progress) -> Result<()> {
        for node in nodes {
            let own = self.index(node)?;
            // Whether it is this cluster's and a new one could be made is known before anything goes.
            self.driver.power(node)?;
            self.driver.check_create()?;
            let (one, synchronous) = (std::slice::from_ref(node), &self.seeds.spec.synchronous);
            match care {
                Care::Forced => self.tell_the_risk(one, synchronous, progress),
                Care::Within(within) => {
                    self.farewell(one, synchronous, within, progress, |view| view.etcd_leader().is_some())?;
                }
            }
            self.driver.destroy(node)?;
            self.driver.create(&self.plan(own))?;
            self.driver.start(node)?;
            progress.note(&format!("{node} has an empty disk now, and copies the data from the others"));
        }
        Ok(())
    }

    /// Removes `nodes` with their disks as soon as the others have everything that they have and can go on without them,
    /// the primary last. Those for which `leaves` holds leave the cluster first. `synchronous` is how commits wait for
    /// replicas after that.
    fn farewell(
        &self,
        nodes: &[String],
        synchronous: &Synchronous,
        within: Duration,
        progress: &Progress,
        leaves: fn(&View) -> bool,
    ) -> Result<()> {
        if nodes.is_empty() {
            return Ok(());
        }
        let mut going = nodes.to_vec();
        let within = self.driver.patience(within);
        let mut deadline = Instant::now() + within;
        let mut poll = PollInterval::new(PAUSE);
        let mut told = String::new();
        loop {
            let names: Vec<&str> = going.iter().map(String::as_str).collect();
            let views = self.views()?;
            match next(&names, &views, synchronous) {
                Step::Done => return Ok(()),
                Step::Remove(node) => {
                    if views.iter().any(|view| view.node == node && view.power == PowerState::On && leaves(view)) {
                        self.leave(&node, false)?;
                    }
                    self.driver.destroy(&node)?;
                    going.retain(|other| *other != node);
                    deadline = Instant::now() + within;
                }
                Step::HandOver { from, to } if Instant::now() < deadline => {
                    progress.note(&format!("{to} becomes the primary instead of {from}"));
                    self.switchover(Some(&to))?;
                }
                Step::Wait(reason) if Instant::now() < deadline => {
                    if reason != told {
                        progress.note(&format!("waiting: {reason}"));
                        told = reason;
                    }
                    poll.wait();
                }
                Step::HandOver { from, .. } => {
                    return Err(self.refusal(&names, &format!("{from} is the primary again and again")).into());
                }
                Step::Wait(reason) | Step::Refuse(reason) => return Err(self.refusal(&names, &reason).into()),
            }
        }
    }

    fn refusal(&self, going: &[&str], reason: &str) -> UserError {
        let name = &self.seeds.spec.cluster;
        UserError::runtime(format!("{} cannot go with its data: {reason}", going.join(", "))).hint(format!(
            "start the other nodes and wait until all is well: pgha-image cluster start {name} && pgha-image cluster status \
             {name} --wait; --force removes the disk even if nobody else has what is on it, and does not hand over"
        ))
    }

    /// Says what is risked, as far as it can be seen.
    fn tell_the_risk(&self, nodes: &[String], synchronous: &Synchronous, progress: &Progress) {
        let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
        let risk = match self.views().map(|views| next(&names, &views, synchronous)) {
            Ok(Step::Wait(reason) | Step::Refuse(reason)) => reason,
            Ok(Step::HandOver { from, .. }) => format!("{from} is the primary"),
            Ok(Step::Remove(_) | Step::Done) => return,
            Err(error) => format!("{error:#}"),
        };
        progress.warn(&format!("{} goes all the same: {risk}", names.join(", ")));
    }

    /// Lets a running node leave its cluster.
    fn leave(&self, node: &str, forced: bool) -> Result<()> {
        let mut command = ["pgha-node", "leave", "--yes"].map(str::to_owned).to_vec();
        command.extend(forced.then(|| "--force".to_owned()));
        let done = self.driver.exec(node, &command, &[], self.driver.patience(LEAVE_WITHIN))?;
        if done.status == 0 {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&done.stderr).trim().to_owned();
        Err(UserError::runtime(format!("{node} cannot leave: {why}"))
            .hint("nothing of it was removed; --force goes on without its leave")
            .into())
    }

    /// Gives every node a changed document: new members are made and started, members that are gone leave and are
    /// removed, all others take up the change.
    ///
    /// # Errors
    /// A wrong request when the document is another cluster's or wrong; failed work when a node cannot take it, or one
    /// that goes may have the last good copy of the data, unless that is forced. The same update may be given again then.
    pub fn update(&mut self, lock: &Lock, document: Document, care: Care, progress: &Progress) -> Result<()> {
        let seeds = self.changed(document)?;
        // Whoever goes is gone before the new document is remembered: if one cannot leave, the same update can be given
        // again, and no node runs that nobody knows of.
        let now = names(&seeds.spec);
        let going: Vec<String> = self.nodes().into_iter().filter(|node| !now.contains(node)).collect();
        match care {
            Care::Within(within) => {
                self.farewell(&going, &seeds.spec.synchronous, within, progress, |_| true)?;
            }
            Care::Forced => {
                if !going.is_empty() {
                    self.tell_the_risk(&going, &seeds.spec.synchronous, progress);
                }
                self.let_go(&going, progress)?;
            }
        }
        self.seeds = seeds;
        self.state_dir.store(&self.record, &self.seeds.document)?;
        let mut absent = Vec::new();
        for node in now {
            match self.driver.power(&node)? {
                PowerState::On => self.give_document(&node)?,
                PowerState::Absent => absent.push(node),
                power @ (PowerState::Off | PowerState::Paused) => {
                    progress.warn(&format!("{node} is {power}: it keeps the document that it has"));
                }
            }
        }
        self.start(lock, &absent).map(drop)
    }

    /// The seeds by the changed document.
    fn changed(&self, document: Document) -> Result<Seeds> {
        let (document, _) = with_secret(document, Some(&self.seeds.document))?;
        let seeds = Seeds::new(document, self.seeds.extras.clone())?;
        let ours = Keys::new(&self.seeds.spec).identity() == Keys::new(&seeds.spec).identity();
        if seeds.spec.cluster != self.seeds.spec.cluster || !ours {
            return Err(UserError::usage(format!(
                "the document is not that of the cluster `{}`: its name and its secret cannot change",
                self.seeds.spec.cluster
            ))
            .into());
        }
        let network = addresses::cluster_network(&seeds.spec)?;
        if network.subnet != self.record.network.subnet {
            return Err(UserError::usage("the document's members lie in another network than the cluster's").into());
        }
        Ok(seeds)
    }

    /// Removes `nodes` with their disks, without a look at their data. Those that run and can leave do so first.
    fn let_go(&self, nodes: &[String], progress: &Progress) -> Result<()> {
        for node in nodes {
            if self.driver.power(node)? == PowerState::On
                && let Err(error) = self.leave(node, true)
            {
                progress.warn(&format!("{error:#}"));
            }
            self.driver.destroy(node)?;
        }
        Ok(())
    }

    /// Gives a running node the document, which a person gives now.
    fn give_document(&self, node: &str) -> Result<()> {
        let script = format!(
            "cat > {DOCUMENT_PATH}.new && chmod 600 {DOCUMENT_PATH}.new && mv {DOCUMENT_PATH}.new {DOCUMENT_PATH} && \
             pgha-node init --changed"
        );
        let command = ["sh", "-c", &script].map(str::to_owned);
        let text = self.seeds.document.text.as_bytes();
        let done = self.driver.exec(node, &command, text, self.driver.patience(REQUEST_WITHIN))?;
        anyhow::ensure!(
            done.status == 0,
            "{node} cannot take the document up: {}",
            String::from_utf8_lossy(&done.stderr).trim()
        );
        Ok(())
    }
}
