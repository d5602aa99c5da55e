//! The gate before Patroni: reads the keys, the disk and the mark, and does what [`first::may_start`] decides until Patroni
//! may start.
//!
//! Each act is small and can be cut off: the next look finds what is there. Nothing is removed. What is set aside is what
//! this node itself has begun and written down; another node's beginning stays as it is.

use super::{
    aside::{self, measure},
    begun::{self, BEGUN_PATH, Begun, What},
    database::{self, Database},
    first::{self, Completion, Step, Store, View},
    state::POSTGRESQL_DATA,
};
use crate::{error::UserError, etcd::Client, files::Presence, log};
use anyhow::Result;
use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How often it is looked again while Patroni may not start.
const PAUSE: Duration = Duration::from_millis(500);
/// How many files are counted to learn how large a copy is.
const COUNTED: u64 = 1_000_000;

/// The gate of one node.
#[derive(Debug)]
pub struct Gate<'a> {
    /// A client of etcd.
    pub client: &'a Client,
    /// The cluster's name.
    pub cluster: &'a str,
    /// This node's name.
    pub me: &'a str,
    /// Whether this node formed the cluster's etcd with others, and has never been complete.
    pub forms: bool,
    /// The major version of the image's PostgreSQL.
    pub version: u32,
    /// Where the node's own files are: `/`.
    pub root: PathBuf,
}

/// Why Patroni does not start.
#[derive(Debug)]
pub enum Closed {
    /// A person must do something first.
    Refused(UserError),
    /// Something failed, and may go better later.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Closed {
    fn from(error: anyhow::Error) -> Closed {
        Closed::Failed(error)
    }
}

impl Gate<'_> {
    /// The folder of the data that Patroni uses.
    pub fn folder(&self) -> PathBuf {
        self.below(POSTGRESQL_DATA).join(self.version.to_string()).join("main")
    }

    fn below(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn mark(&self) -> PathBuf {
        self.below(BEGUN_PATH)
    }

    fn store(&self) -> Store<'_> {
        Store { client: self.client, cluster: self.cluster }
    }

    /// Returns when Patroni, which does not run, may start; what it begins is written down then. `tell` is told why it may
    /// not yet, and `rest` rests until the next look.
    ///
    /// # Errors
    /// When a person must do something first, or the disk fails.
    pub fn admit(
        &self,
        mut tell: impl FnMut(&str),
        mut rest: impl FnMut(Duration) -> Result<()>,
    ) -> Result<(), Closed> {
        loop {
            let why = match self.look() {
                Err(error) => format!("etcd does not say which node makes the first database: {error}"),
                Ok(view) => match first::may_start(&view) {
                    Step::Start(what) => return Ok(self.write_down(what, view.keys.revision)?),
                    Step::Wait(why) => why,
                    Step::Refuse(what, way_out) => return Err(Closed::Refused(UserError::usage(what).hint(way_out))),
                    step => match self.act(&view, step) {
                        Ok(()) => continue,
                        Err(error) => match error.downcast_ref::<aside::Elsewhere>() {
                            Some(elsewhere) => elsewhere.to_string(),
                            None => match error.downcast::<first::StoreError>() {
                                Ok(error) => {
                                    format!("etcd does not record which node makes the first database: {error}")
                                }
                                Err(error) => return Err(Closed::Failed(error)),
                            },
                        },
                    },
                },
            };
            tell(&why);
            rest(PAUSE)?;
        }
    }

    /// What this node sees now.
    ///
    /// # Errors
    /// When etcd does not answer, or its keys cannot be understood.
    pub fn look(&self) -> Result<View, first::StoreError> {
        let keys = self.store().read()?;
        let folder = self.folder();
        let database = database::of_version(self.version, Database::look(&folder));
        let begun = Begun::load(&self.mark());
        // Only what was cut off is ever copied again.
        let is_copy = matches!(&database, Database::Present(facts) if facts.unstarted_copy);
        let in_doubt = database != Database::Absent && (begun.is_present() || is_copy);
        let started = in_doubt && database::may_have_started(&folder);
        let room = !in_doubt || has_room(&folder);
        let led = in_doubt && self.store().leader()?.is_some_and(|leader| leader != self.me);
        let half_gone = self.is_half_gone(&begun);
        let (me, forms, version) = (self.me.to_owned(), self.forms, self.version);
        Ok(View { me, forms, version, keys, database, begun, started, half_gone, led, room })
    }

    fn is_half_gone(&self, begun: &Presence<Begun>) -> bool {
        matches!(begun, Presence::Present(begun) if begun.may_be_half_gone(self.version, &self.folder()))
    }

    fn act(&self, view: &View, step: Step) -> Result<()> {
        let store = self.store();
        // Where the keys have changed meanwhile, the next look sees how.
        match step {
            Step::Open => {
                if store.open(&view.keys, self.me)? {
                    log::info!("this node makes the cluster's first database");
                }
            }
            Step::Pin(system) => {
                if store.pin(&view.keys, self.me, &system)? {
                    log::info!("the cluster's database has the system identifier {system}");
                }
            }
            Step::GiveUpOwnBeginning(_) => {
                if store.give_up(&view.keys)? {
                    log::warning!(
                        "this node had begun the cluster's first database and not finished it: it begins again"
                    );
                }
            }
            Step::SetAsideThenLookAgain(why) => {
                let folder = self.folder();
                database::stop_server(&folder)?;
                aside::set_database_aside(&folder, why)?;
                begun::forget(&self.mark())?;
            }
            Step::Start(_) | Step::Wait(_) | Step::Refuse(..) => {}
        }
        Ok(())
    }

    fn write_down(&self, what: Option<What>, revision: u64) -> Result<()> {
        let Some(what) = what else { return Ok(()) };
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
        Begun { what, version: self.version, revision, time, replaces: None }.store(&self.mark())
    }

    /// Whether the node has a whole database now, while Patroni runs: `None` if it has, and what was begun is done then;
    /// otherwise what is missing.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn missing(&self) -> Result<Option<String>> {
        let keys = match self.store().read() {
            Ok(keys) => keys,
            Err(error) => return Ok(Some(format!("etcd does not say which node makes the first database: {error}"))),
        };
        let begun = Begun::load(&self.mark());
        if let Presence::Unknown(doubt) = &begun {
            return Ok(Some(format!("it is not known what this node has begun: {doubt}")));
        }
        let half_gone = self.is_half_gone(&begun);
        let database = database::of_version(self.version, Database::look(&self.folder()));
        match first::completion(&keys, &database, half_gone) {
            Completion::Wait(why) => return Ok(Some(why)),
            Completion::Pin(system) if !self.store().pin(&keys, self.me, &system).unwrap_or(false) => {
                return Ok(Some("recording in etcd which database is the cluster's".to_owned()));
            }
            Completion::Pin(_) | Completion::Done => {}
        }
        begun::forget(&self.mark())?;
        Ok(None)
    }
}

/// Whether the file system of `folder` is known to have room for as much as is in `folder`.
fn has_room(folder: &Path) -> bool {
    let size = measure(folder, COUNTED);
    rustix::fs::statvfs(folder).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) > size.bytes)
}
