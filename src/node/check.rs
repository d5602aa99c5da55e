//! Checks for other programs: whether HAProxy answers, whether Patroni is healthy, whether it may start its server.

use super::{
    agent::patroni::Server,
    begun::{BEGUN_PATH, Begun, HALF_GONE},
    database::Database,
    peers::TlsCredentials,
    state::{POSTGRESQL_DATA, State},
    this_node,
};
use crate::{
    error::UserError,
    files::{NewFile, read_text},
    model::{
        MANIFEST_PATH, Manifest,
        scope::{host_port, ports},
    },
};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// HAProxy's own socket.
const HAPROXY_SOCKET: &str = "/run/haproxy/admin.sock";
/// Where HAProxy's next worker reads which servers were up.
const HAPROXY_STATE: &str = "/run/haproxy/servers.state";
/// confd's template resources.
const CONFD_RESOURCES: &str = "/etc/confd/conf.d";
/// For an answer of a program on this node.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether HAProxy answers within this time and its doors are open. A process that hangs accepts connections too (the kernel does), so
/// it must say something.
///
/// # Errors
/// When it does not.
pub fn haproxy(within: Duration) -> Result<()> {
    // Proxies of every number (-1), front ends only (1), of every number (-1).
    let table = ask_haproxy("show stat -1 1 -1", within)?;
    match closed_frontends(&table) {
        None => bail!("HAProxy has no front end `primary`"),
        Some(closed) if closed.is_empty() => Ok(()),
        Some(closed) => bail!("HAProxy's front ends are closed: {}", closed.join(", ")),
    }
}

/// The front ends that are not open; `None` if `primary` is not among them all.
fn closed_frontends(table: &str) -> Option<Vec<String>> {
    let mut lines = table.lines();
    let status = lines.next()?.trim_start_matches("# ").split(',').position(|column| column == "status")?;
    let rows: Vec<Vec<&str>> = lines.filter(|line| !line.is_empty()).map(|line| line.split(',').collect()).collect();
    rows.iter().find(|row| row[0] == "primary")?;
    let closed = rows.iter().filter(|row| row.get(status) != Some(&"OPEN"));
    Some(closed.map(|row| row[0].to_owned()).collect())
}

/// Keeps which servers HAProxy holds for up, for the worker that replaces this one.
///
/// # Errors
/// When HAProxy does not answer, or the file cannot be written.
pub fn save_haproxy_state() -> Result<()> {
    let text = ask_haproxy("show servers state", PATIENCE)?;
    let path = Path::new(HAPROXY_STATE);
    let mut new = NewFile::beside(path)?;
    new.write_all(text.as_bytes()).with_context(|| format!("writing {HAPROXY_STATE}"))?;
    new.publish(path)
}

fn ask_haproxy(command: &str, within: Duration) -> Result<String> {
    let ask = || -> std::io::Result<String> {
        let mut socket = UnixStream::connect(HAPROXY_SOCKET)?;
        socket.set_read_timeout(Some(within))?;
        socket.set_write_timeout(Some(within))?;
        socket.write_all(format!("{command}\n").as_bytes())?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().with_context(|| format!("asking HAProxy at {HAPROXY_SOCKET}"))
}

/// Whether confd has written every file that it is there for, at this boot or before.
///
/// # Errors
/// When one is missing, or a resource cannot be read.
pub fn confd() -> Result<()> {
    let missing = missing_files(Path::new(CONFD_RESOURCES), Path::new("/"))?;
    if missing.is_empty() { Ok(()) } else { bail!("confd has not written yet: {}", missing.join(", ")) }
}

fn missing_files(resources: &Path, root: &Path) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for entry in fs::read_dir(resources).with_context(|| format!("reading the folder {}", resources.display()))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let resource: toml::Table = read_text(&path)?.parse().with_context(|| format!("reading {}", path.display()))?;
        let dest = resource.get("template").and_then(|template| template.get("dest")).and_then(toml::Value::as_str);
        let Some(dest) = dest else { bail!("{} names no `dest`", path.display()) };
        if !root.join(dest.trim_start_matches('/')).exists() {
            missing.push(dest.to_owned());
        }
    }
    Ok(missing)
}

/// Whether this node's PostgreSQL does its part: as the primary, or as a replica that streams. A replica that only runs beside
/// a primary (it is being cloned, reads an archive, or cannot follow) cannot take over.
///
/// # Errors
/// When it does not, with how it stands.
pub fn patroni(state: &State) -> Result<()> {
    let agent = TlsCredentials::of_the_node().agent(PATIENCE)?;
    let url = format!("https://{}/patroni", host_port(state.address, ports::PATRONI));
    let mut answer = agent.get(&url).call().context("asking Patroni")?;
    let server: Server = answer.body_mut().read_json().context("reading Patroni's answer")?;
    if server.is_ready() { Ok(()) } else { Err(UserError::runtime(server.words()).into()) }
}

/// Whether Patroni may start its server with this node's database. systemd starts a Patroni again that has ended, also
/// while it was removing a database. Where a server runs, nothing is removed, and it needs its Patroni: without it, a
/// primary would go on beside another.
///
/// # Errors
/// When no server runs, and half of the database may be gone or that is not known.
pub fn database() -> Result<()> {
    let manifest: Manifest = serde_json::from_str(&read_text(Path::new(MANIFEST_PATH))?)
        .with_context(|| format!("reading {MANIFEST_PATH}"))?;
    match this_node::postgresql_version(&manifest)? {
        Some(version) => verify_whole(version, Path::new(BEGUN_PATH), Path::new(POSTGRESQL_DATA)),
        None => Ok(()),
    }
}

fn verify_whole(version: u32, mark: &Path, data: &Path) -> Result<()> {
    let folder = data.join(version.to_string()).join("main");
    if matches!(super::database::server(&folder), Ok(Some(_))) {
        return Ok(());
    }
    match Begun::load(mark).known()? {
        Some(begun) if begun.may_be_half_gone(version, &folder) && Database::look(&folder) != Database::Absent => {
            Err(UserError::runtime(format!("the database in {} is not started: {HALF_GONE}", folder.display()))
                .hint("systemctl restart pgha-node, which has it copied again; see `pgha-node status`")
                .into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_confd_has_not_written_are_named() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("one.toml"), "[template]\ndest = \"/one.conf\"\n").unwrap();
        fs::write(root.path().join("note.txt"), "none").unwrap();
        assert_eq!(missing_files(root.path(), root.path()).unwrap(), ["/one.conf"]);
        fs::write(root.path().join("one.conf"), "").unwrap();
        assert_eq!(missing_files(root.path(), root.path()).unwrap(), [""; 0]);
        fs::write(root.path().join("two.toml"), "[template]\n").unwrap();
        assert!(missing_files(root.path(), root.path()).is_err());
    }

    #[test]
    fn half_of_a_database_is_not_started() {
        use crate::node::{
            begun::{Replaced, What},
            database::samples,
        };
        let root = tempfile::tempdir().unwrap();
        let (mark, main) = (root.path().join("begun.json"), root.path().join("17/main"));
        let check = || verify_whole(17, &mark, root.path());
        samples::database(&main, 7);
        assert!(check().is_ok(), "nothing was begun");
        let begun = |replaces| Begun { what: What::Clone, version: 17, revision: 9, time: 0, replaces };
        begun(None).store(&mark).unwrap();
        assert!(check().is_ok(), "a copy");
        begun(Some(Replaced::of(&main).unwrap())).store(&mark).unwrap();
        let error = crate::error::report(&check().unwrap_err());
        assert!(error.contains("17/main is not started") && error.contains("restart pgha-node"), "{error}");
        assert!(verify_whole(18, &mark, root.path()).is_ok(), "another version's");
        let mut server = std::process::Command::new("sleep").arg("60").current_dir(&main).spawn().unwrap();
        fs::write(main.join("postmaster.pid"), format!("{}\n", server.id())).unwrap();
        assert!(check().is_ok(), "its server runs");
        server.kill().unwrap();
        server.wait().unwrap();
        assert!(check().is_err(), "its server has ended");
        fs::remove_dir_all(&main).unwrap();
        assert!(check().is_ok(), "all of it is gone: Patroni copies");
        fs::write(&mark, "{").unwrap();
        assert!(check().is_err(), "a doubt");
    }

    #[test]
    fn closed_front_ends_are_seen() {
        let table = |status: &str| {
            format!(
                "# pxname,svname,qcur,status,weight,\nstatistics,FRONTEND,,OPEN,,\nprimary,FRONTEND,,{status},,\n\n"
            )
        };
        assert_eq!(closed_frontends(&table("OPEN")), Some(vec![]));
        assert_eq!(closed_frontends(&table("STOP")), Some(vec!["primary".into()]));
        assert_eq!(closed_frontends("# pxname,svname,status,\nother,FRONTEND,OPEN,\n"), None);
        assert_eq!(closed_frontends(""), None);
    }
}
