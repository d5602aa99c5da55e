//! Reports the progress of the node's first boot: console, journal, systemd's status line, and a file for
//! `pgha-node status`.

use crate::{
    files::NewFile,
    log,
    model::status::{BootProgress, Phase},
};
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// The file for `pgha-node status`.
pub const PROGRESS_PATH: &str = "/run/pgha/progress.json";

/// The progress that the file has; the default if there is no file, or none that can be read.
pub fn load(path: &Path) -> BootProgress {
    fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Tells where the node stands, once for each change.
#[derive(Debug)]
pub struct Reporter {
    path: PathBuf,
    console: Option<PathBuf>,
    progress: BootProgress,
}

impl Reporter {
    /// Tells to the node's own places.
    pub fn of_the_node() -> Reporter {
        Reporter::new(PathBuf::from(PROGRESS_PATH), Some(PathBuf::from("/dev/console")))
    }

    fn new(path: PathBuf, console: Option<PathBuf>) -> Reporter {
        let progress = load(&path);
        Reporter { path, console, progress }
    }

    /// Says what is known of the cluster.
    pub fn cluster(&mut self, name: &str, warnings: Vec<String>) {
        for warning in &warnings {
            log::warning!("{warning}");
        }
        self.progress.cluster = name.to_owned();
        self.progress.warnings = warnings;
    }

    /// Says which node this is.
    pub fn node(&mut self, name: &str) {
        self.progress.node = name.to_owned();
    }

    /// Says that the node stands elsewhere than before; nothing if it does not.
    pub fn report(&mut self, phase: Phase, step: &str, reason: &str) {
        let now = &self.progress;
        if (now.phase, now.step.as_str(), now.reason.as_str()) == (phase, step, reason) {
            return;
        }
        self.progress.phase = phase;
        step.clone_into(&mut self.progress.step);
        reason.clone_into(&mut self.progress.reason);
        self.progress.since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let text = if reason.is_empty() { step.to_owned() } else { format!("{step}: {reason}") };
        match phase {
            Phase::Failed | Phase::Refused => log::error!("{text}"),
            _ => log::info!("{text}"),
        }
        let line = text.lines().next().unwrap_or_default().to_owned();
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Status(&line)]);
        // Telling must never stop the work: a console that is not there, a full /run.
        let _ = self.write();
        if let Some(console) = &self.console {
            let _ = to_console(console, &text);
        }
    }

    fn write(&self) -> anyhow::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
        }
        let mut new = NewFile::beside(&self.path)?;
        new.write_all(&serde_json::to_vec_pretty(&self.progress)?)?;
        new.file().set_permissions(fs::Permissions::from_mode(0o644))?;
        new.publish(&self.path)
    }
}

fn to_console(console: &Path, text: &str) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // O_NOCTTY: the console must not become this program's terminal; O_NONBLOCK: a stopped console must not stop it.
    let flags = rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::NONBLOCK;
    let mut file = fs::OpenOptions::new().write(true).custom_flags(flags.bits() as i32).open(console)?;
    file.write_all(format!("pgha: {}\r\n", text.replace('\n', "\r\n      ")).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let (path, console) = (folder.path().join("run/progress.json"), folder.path().join("console"));
        fs::write(&console, "").unwrap();
        let mut reporter = Reporter::new(path.clone(), Some(console.clone()));
        reporter.cluster("demo", vec!["an even number".into()]);
        reporter.report(Phase::Waiting, "forming the cluster", "not yet pg-2");
        // A file that is written from its start each time shows the last line only.
        assert_eq!(fs::read_to_string(&console).unwrap(), "pgha: forming the cluster: not yet pg-2\r\n");
        fs::write(&console, "").unwrap();
        reporter.report(Phase::Waiting, "forming the cluster", "not yet pg-2");
        Reporter::new(path.clone(), Some(console.clone())).report(
            Phase::Waiting,
            "forming the cluster",
            "not yet pg-2",
        );
        assert_eq!(fs::read_to_string(&console).unwrap(), "");
        let progress = load(&path);
        assert_eq!((progress.phase, progress.cluster.as_str()), (Phase::Waiting, "demo"));
        assert_eq!(progress.warnings, ["an even number"]);
        assert_eq!(load(Path::new("/no/such")), BootProgress::default());
    }
}
