//! Removes a cluster: prints what will be removed, and asks before it removes what may be another's.

use super::{
    Cluster, ClusterNetwork, DriverKind, Lock, StateDir, Thing, Title, docker,
    driver::Driver as _,
    qemu::{self, QemuDriver},
    record::{IMAGE, is_plain},
};
use crate::{
    container_engine::{Engine, Which},
    error::UserError,
    progress::size,
};
use anyhow::Result;
use std::{
    fmt::{self, Write as _},
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::{Duration, Instant},
};

/// How long it may take to find out how much data goes.
const MEASURED_WITHIN: Duration = Duration::from_secs(2);

/// A cluster to be removed, and everything that has its name.
#[derive(Debug)]
pub struct Removal {
    name: String,
    state_dir: StateDir,
    known: bool,
    source: Source,
    things: Vec<(Thing, Option<u64>)>,
}

/// Who has the things.
#[derive(Debug)]
enum Source {
    Cluster(Box<Cluster>),
    Engine(Engine),
    Machines(QemuDriver),
}

/// Whether a person must say so before a cluster goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consent {
    /// Everything is this state folder's.
    NotNeeded,
    /// It must be said: the cluster was made by another, or something else has its name, too.
    Needed,
    /// It must be said with force: nothing shows that it is this state folder's.
    Forceful,
}

impl Removal {
    /// Looks at everything that has the name `name`.
    ///
    /// # Errors
    /// A wrong request when there is nothing of that name; failed work when that cannot be told.
    pub fn look(state_dir: &StateDir, _: &Lock, name: &str) -> Result<Removal> {
        let known = state_dir.has(name)?;
        let source = match known {
            true => Source::Cluster(Box::new(Cluster::open(state_dir, name)?)),
            false => unknown(state_dir, name)?,
        };
        let things = match &source {
            Source::Cluster(cluster) => cluster.driver.things()?,
            Source::Engine(engine) => docker::namesakes(engine, name, false)?,
            Source::Machines(machines) => machines.things()?,
        };
        if !known && things.is_empty() {
            // It says which clusters there are.
            state_dir.load(name)?;
        }
        let things = things.into_iter().map(|thing| (thing, None)).collect();
        Ok(Removal { name: name.to_owned(), state_dir: state_dir.clone(), known, source, things })
    }

    /// Finds out how much data goes, for a person who decides, as far as that takes a moment.
    pub fn weigh(&mut self) {
        let deadline = Instant::now() + MEASURED_WITHIN;
        let mut things = std::mem::take(&mut self.things);
        for (thing, data) in &mut things {
            let left = deadline.saturating_duration_since(Instant::now());
            *data = if left.is_zero() { None } else { self.measure(thing, left) };
        }
        self.things = things;
    }

    fn measure(&self, thing: &Thing, within: Duration) -> Option<u64> {
        match &self.source {
            Source::Cluster(cluster) => cluster.driver.measure(thing, within),
            Source::Engine(engine) => docker::measure(engine, thing, within),
            Source::Machines(machines) => machines.measure(thing, within),
        }
    }

    /// Whether somebody must say that it may go.
    pub fn consent(&self) -> Consent {
        let titles: Vec<Title> = self.things.iter().map(|(thing, _)| thing.title).collect();
        consent(self.known, matches!(self.source, Source::Machines(_)), &titles)
    }

    /// Removes what is the cluster's, and forgets the cluster; with force everything that has its name. Returns what
    /// stays in the cluster's folder, as it may be another cluster's.
    ///
    /// # Errors
    /// When something stays that should not.
    pub fn carry_out(self, force: bool) -> Result<Vec<PathBuf>> {
        let has_folder = self.has_folder();
        let things: Vec<Thing> = self.things.into_iter().map(|(thing, _)| thing).collect();
        let going: Vec<Thing> = things.into_iter().filter(|thing| goes(self.known, force, thing.title)).collect();
        match self.source {
            Source::Cluster(cluster) => cluster.driver.discard(&going)?,
            Source::Engine(engine) => docker::discard(&engine, &going)?,
            Source::Machines(machines) => machines.discard(&going)?,
        }
        // Nothing shows that a document is that of what was found in the engine alone.
        if has_folder { self.state_dir.forget(&self.name) } else { Ok(Vec::new()) }
    }

    /// Whether the cluster's folder is a part of it.
    fn has_folder(&self) -> bool {
        self.known || matches!(self.source, Source::Machines(_))
    }

    /// What stays in the cluster's folder, by name, as far as that can be told.
    fn staying(&self) -> Vec<String> {
        let machines = match &self.source {
            Source::Cluster(cluster) => cluster.record.driver == DriverKind::Qemu,
            Source::Machines(_) => true,
            Source::Engine(_) => false,
        };
        staying(&self.state_dir.strange(&self.name).unwrap_or_default(), machines)
    }

    /// The question for a person, who answers with the cluster's name.
    pub fn question(&self) -> String {
        format!("All data of `{}` are lost then. Type the cluster's name to remove it: ", self.name)
    }

    /// The error for whoever cannot be asked.
    pub fn unanswered(&self) -> UserError {
        let name = &self.name;
        let (why, flag) = match self.consent() {
            Consent::Forceful => (format!("nothing shows that the cluster `{name}` is yours"), "--force"),
            _ => (format!("not everything of the cluster `{name}` was made for this state folder"), "--yes"),
        };
        UserError::usage(format!("{why}, so nothing was removed")).hint(format!(
            "look at the list above; if all of it may go: pgha-image cluster down {name} {flag}; on a terminal, the \
             cluster's name is asked for"
        ))
    }
}

/// Whether a person must say that a cluster may go whose things have these titles.
fn consent(known: bool, machines: bool, titles: &[Title]) -> Consent {
    match known {
        // Machines lie in the state folder itself; only their record is lost.
        false if machines => Consent::Needed,
        false => Consent::Forceful,
        true if titles.iter().all(|title| *title == Title::Mine) => Consent::NotNeeded,
        true => Consent::Needed,
    }
}

/// The names of `strange` that stay. Machines go if they are among the things that were listed.
fn staying(strange: &[PathBuf], machines: bool) -> Vec<String> {
    let names = strange.iter().filter_map(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| !machines || ![qemu::FOLDER, IMAGE].contains(&name.as_str())).collect()
}

/// Whether a thing goes once that is agreed.
fn goes(known: bool, force: bool, title: Title) -> bool {
    title != Title::Foreign || !known || force
}

/// Who has the things of a cluster that the state directory does not know.
fn unknown(state_dir: &StateDir, name: &str) -> Result<Source> {
    if is_plain(name) && qemu::found(&state_dir.folder(name)).map_or(true, |found| found.is_some()) {
        // Only its place matters to remove it.
        let nowhere = IpAddr::from(Ipv4Addr::UNSPECIFIED);
        let network = ClusterNetwork { cluster: name.to_owned(), subnet: String::new(), gateway: nowhere, vip: None };
        return Ok(Source::Machines(QemuDriver::new(&state_dir.folder(name), network, "", None)));
    }
    match Engine::connect(Which::Auto) {
        Ok(engine) => Ok(Source::Engine(engine)),
        // Where there is no engine, the first thing to say is that the cluster is not known.
        Err(error) => Err(state_dir.load(name).err().map_or(error, |unknown| unknown)),
    }
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (thing, data) in &self.things {
            let mut line = format!("{} {}{}", thing.kind, thing.name, thing.about);
            if let Some(data) = data {
                let _ = write!(line, ", {} of data", size(*data));
            }
            if thing.title != Title::Mine {
                let _ = write!(line, ", {}", thing.made);
            }
            if self.known && thing.title == Title::Foreign {
                line.push_str("; it is not this cluster's, and stays without --force");
            }
            writeln!(f, "{line}")?;
        }
        if self.has_folder() {
            write!(f, "folder {}", self.state_dir.folder(&self.name).display())?;
            match self.staying()[..] {
                [] => writeln!(f)?,
                ref staying => writeln!(f, " without {}, which may be another cluster's", staying.join(", "))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_all_ours_goes_without_a_word() {
        let titles = [Title::Mine, Title::Adopted, Title::Foreign];
        for one in titles {
            for other in titles {
                let mine = one == Title::Mine && other == Title::Mine;
                let needed = if mine { Consent::NotNeeded } else { Consent::Needed };
                assert_eq!(consent(true, false, &[one, other]), needed);
                assert_eq!(consent(false, false, &[one, other]), Consent::Forceful);
                assert_eq!(consent(false, true, &[one, other]), Consent::Needed);
            }
        }
        assert_eq!(consent(true, false, &[]), Consent::NotNeeded, "a record of a cluster that is gone");
    }

    #[test]
    fn machines_go_only_where_they_were_listed() {
        let strange = ["/c/cluster.yaml.before", "/c/image", "/c/qemu"].map(PathBuf::from);
        assert_eq!(staying(&strange, true), ["cluster.yaml.before"]);
        assert_eq!(staying(&strange, false), ["cluster.yaml.before", "image", "qemu"]);
    }

    #[test]
    fn things_of_others_stay_unless_forced() {
        for title in [Title::Mine, Title::Adopted] {
            assert!(goes(true, false, title));
        }
        assert!(!goes(true, false, Title::Foreign) && goes(true, true, Title::Foreign));
        assert!(goes(false, true, Title::Foreign), "the whole cluster is another's, and was agreed to");
    }
}
