//! What the agent reports: logged once when it begins and once when it ends, and kept in a file for
//! `pgha-node status`.

use crate::{
    files::NewFile,
    log::{self, Level},
    model::status::Attention,
};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// The file for `pgha-node status`.
pub const REPORT_PATH: &str = "/run/pgha/agent.json";
/// How long a concern may fail to look before a person is told, in seconds: while a node starts, much does not answer.
const BLIND_AFTER: u64 = 300;

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The digest of the document with which the agent works.
    pub document: String,
    /// What a person should know.
    pub attention: Vec<Attention>,
}

impl Report {
    /// Reads it; nothing is told if there is no file, or none that can be read.
    pub fn load(path: &Path) -> Report {
        fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }
}

/// Keeps what each concern has told.
#[derive(Debug)]
pub struct Board {
    path: PathBuf,
    document: String,
    concerns: BTreeMap<&'static str, Standing>,
    written: Option<Report>,
}

/// Where one concern stands.
#[derive(Debug, Default)]
struct Standing {
    attention: Vec<Attention>,
    trouble: Option<Trouble>,
}

/// Why a concern cannot look.
#[derive(Debug)]
struct Trouble {
    text: String,
    since: u64,
}

impl Board {
    /// A board that goes on where the file at `path` ended, so that an agent that starts again does not tell all again.
    /// What is told belongs to the concern whose name its key opens with.
    pub fn load(path: &Path, document: &str, concerns: &[&'static str]) -> Board {
        let earlier = Report::load(path);
        let standing = |name: &'static str| {
            let own = |attention: &&Attention| attention.key.split('/').next() == Some(name);
            let attention = earlier.attention.iter().filter(own).filter(|attention| attention.key != blind(name));
            (name, Standing { attention: attention.cloned().collect(), trouble: None })
        };
        Board {
            path: path.to_owned(),
            document: document.to_owned(),
            concerns: concerns.iter().map(|name| standing(name)).collect(),
            written: None,
        }
    }

    /// Takes what a concern found at `now` (seconds since 1970), and returns the lines for the journal.
    ///
    /// A concern that could not look has found nothing, so what it told last stays.
    pub fn take(&mut self, concern: &'static str, found: Result<Vec<Attention>>, now: u64) -> Vec<(Level, String)> {
        let standing = self.concerns.entry(concern).or_default();
        let mut found = match found {
            Ok(found) => found,
            Err(error) if standing.trouble.is_some() => {
                if let Some(trouble) = &mut standing.trouble {
                    trouble.text = format!("{error:#}");
                }
                return Vec::new();
            }
            Err(error) => {
                let text = format!("{error:#}");
                let line = (Level::Info, format!("{concern}: {text}"));
                standing.trouble = Some(Trouble { text, since: now });
                return vec![line];
            }
        };
        let mut lines = Vec::new();
        if standing.trouble.take().is_some() {
            lines.push((Level::Info, format!("{concern}: this is resolved")));
        }
        for attention in &mut found {
            match standing.attention.iter().find(|earlier| earlier.key == attention.key) {
                Some(earlier) => {
                    attention.since = earlier.since;
                    if attention.serious && !earlier.serious {
                        lines.push((Level::Warn, attention.text.clone()));
                    }
                }
                None => {
                    attention.since = now;
                    lines.push((Level::Warn, attention.text.clone()));
                }
            }
        }
        for earlier in &standing.attention {
            if found.iter().all(|attention| attention.key != earlier.key) {
                lines.push((Level::Info, format!("no longer: {}", earlier.text)));
            }
        }
        standing.attention = found;
        lines
    }

    /// What the file should say at `now`.
    fn report(&self, now: u64) -> Report {
        let mut attention: Vec<Attention> = Vec::new();
        for (name, standing) in &self.concerns {
            attention.extend(standing.attention.iter().cloned());
            if let Some(trouble) = &standing.trouble
                && now.saturating_sub(trouble.since) >= BLIND_AFTER
            {
                let text = format!("the agent cannot check {name}: {}", trouble.text);
                attention.push(Attention { since: trouble.since, ..Attention::notice(&blind(name), text) });
            }
        }
        attention.sort_by_key(|attention| !attention.serious);
        Report { document: self.document.clone(), attention }
    }

    /// Writes the file, if it should say something else than it does.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&mut self, now: u64) -> Result<()> {
        let report = self.report(now);
        if self.written.as_ref() == Some(&report) {
            return Ok(());
        }
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut new = NewFile::beside(&self.path)?;
        new.write_all(&serde_json::to_vec_pretty(&report)?)?;
        // Errors of other programs may say more than everybody should read.
        new.file().set_permissions(Permissions::from_mode(0o640))?;
        new.publish(&self.path)?;
        self.written = Some(report);
        Ok(())
    }
}

fn blind(concern: &str) -> String {
    format!("{concern}/blind")
}

/// Writes lines to the journal.
pub fn say(lines: Vec<(Level, String)>) {
    for (level, text) in lines {
        log::line(level, format_args!("{text}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    fn board(folder: &Path) -> Board {
        Board::load(&folder.join("agent.json"), "digest", &["disk", "members"])
    }

    fn texts(lines: Vec<(Level, String)>) -> Vec<String> {
        lines.into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn what_lasts_is_told_once_and_when_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = board(folder.path());
        let full = |part: u32| Ok(vec![Attention::notice("disk/full", format!("{part} % of the disk are used"))]);
        assert_eq!(texts(board.take("disk", full(81), 10)), ["81 % of the disk are used"]);
        assert_eq!(texts(board.take("disk", full(82), 20)), [""; 0]);
        let report = board.report(20);
        assert_eq!((report.attention[0].text.as_str(), report.attention[0].since), ("82 % of the disk are used", 10));
        let worse = Ok(vec![Attention::serious("disk/full", "96 % of the disk are used")]);
        assert_eq!(texts(board.take("disk", worse, 30)), ["96 % of the disk are used"]);
        assert_eq!(texts(board.take("disk", Ok(vec![]), 40)), ["no longer: 96 % of the disk are used"]);
        assert_eq!(board.report(40).attention, []);
    }

    #[test]
    fn who_cannot_look_has_not_seen_that_it_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = board(folder.path());
        let _ = board.take("disk", Ok(vec![Attention::notice("disk/full", "full")]), 0);
        assert_eq!(texts(board.take("disk", Err(anyhow!("no answer")), 10)), ["disk: no answer"]);
        assert_eq!(texts(board.take("disk", Err(anyhow!("still none")), 20)), [""; 0]);
        assert_eq!(board.report(20).attention.len(), 1);
        let late = board.report(310);
        assert_eq!(late.attention[1].text, "the agent cannot check disk: still none");
        assert_eq!(texts(board.take("disk", Ok(vec![]), 320)), ["disk: this is resolved", "no longer: full"]);
    }

    #[test]
    fn an_agent_that_starts_again_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = board(folder.path());
        let _ = first.take("members", Ok(vec![Attention::notice("members/old", "old")]), 7);
        let _ = first.take("disk", Err(anyhow!("no answer")), 7);
        first.write(400).unwrap();
        let path = folder.path().join("agent.json");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        let report = Report::load(&path);
        assert_eq!((report.document.as_str(), report.attention.len()), ("digest", 2));
        let mut second = board(folder.path());
        assert_eq!(texts(second.take("members", Ok(vec![Attention::notice("members/old", "old")]), 500)), [""; 0]);
        assert_eq!(second.report(500).attention.iter().map(|told| told.since).collect::<Vec<_>>(), [7]);
        assert_eq!(Report::load(Path::new("/no/such")), Report::default());
    }
}
