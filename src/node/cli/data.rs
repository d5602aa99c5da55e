//! The verbs with which people decide about data: `aside`, `claim`, `first`.

use crate::{
    error::UserError,
    etcd::Client,
    files::{Presence, read_text},
    model::{MANIFEST_PATH, Manifest, Node, scope::client_url, status::Aside},
    node::{
        aside,
        begun::{self, BEGUN_PATH, Begun, HALF_GONE, What},
        claim::{Claim, Verdict},
        database::{self, Database},
        first::{self as first_database, Keys, Store, System},
        lock,
        peers::TlsCredentials,
        state::{ETCD_DATA, POSTGRESQL_DATA, STATE_PATH, State},
        this_node::{self, postgresql_version},
        units,
    },
};
use anyhow::{Context as _, Result};
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::{
    ffi::OsString,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

fn yes() -> Arg {
    Arg::new("yes").long("yes").action(ArgAction::SetTrue).help("Does not ask for confirmation")
}

fn json() -> Arg {
    Arg::new("json").long("json").action(ArgAction::SetTrue).help("Prints JSON")
}

/// How `aside` is described.
pub fn aside_command() -> Command {
    let name = || Arg::new("name").required(true).value_name("NAME").help("Its name, or its whole path");
    Command::new("aside")
        .about("Data that were set aside, and are kept until a person removes them")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(Command::new("list").about("Shows what was set aside: where, how large, why, since when").arg(json()))
        .subcommand(
            Command::new("make").about("Sets this node's data aside; the service that uses them must be stopped").arg(
                Arg::new("what")
                    .required(true)
                    .value_name("database|etcd|PATH")
                    .help("The database of the image's PostgreSQL, etcd's data, or the folder of another database"),
            ),
        )
        .subcommand(
            Command::new("restore").about("Puts it back where it was, where nothing is now").arg(name()).arg(
                Arg::new("force")
                    .long("force")
                    .action(ArgAction::SetTrue)
                    .help("Also if it may be half of a database; it counts as whole from then on"),
            ),
        )
        .subcommand(Command::new("remove").about("Removes it for good").arg(name()).arg(yes()))
        .after_help("Services are stopped by `systemctl stop pgha-node patroni` (or `etcd`), and started by `systemctl restart pgha-node`.")
}

/// Runs `aside`.
///
/// # Errors
/// When the arguments are wrong, a service is in the way, or the disk does not allow it.
pub fn aside(arguments: Vec<OsString>) -> Result<ExitCode> {
    let root = Path::new("/");
    match aside_command().try_get_matches_from(arguments)?.subcommand() {
        Some(("make", matches)) => make(root, &text(matches, "what"))?,
        Some(("restore", matches)) => restore(root, &text(matches, "name"), matches.get_flag("force"))?,
        Some(("remove", matches)) => remove(root, &text(matches, "name"), matches.get_flag("yes"))?,
        Some((_, matches)) => list(root, matches.get_flag("json"))?,
        None => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn text(matches: &ArgMatches, name: &str) -> String {
    matches.get_one::<String>(name).cloned().unwrap_or_default()
}

fn list(root: &Path, json: bool) -> Result<()> {
    let asides = aside::list(root)?;
    let mut out = String::new();
    if json {
        out = format!("{}\n", serde_json::to_string_pretty(&asides)?);
    } else if asides.is_empty() {
        out.push_str("nothing is set aside\n");
    }
    for aside in asides.iter().filter(|_| !json) {
        out.push_str(&format!("{}\n", aside::line(aside)));
        if let Some(what) = &aside.what {
            out.push_str(&format!("    {what}\n"));
        }
    }
    io::stdout().write_all(out.as_bytes())?;
    Ok(())
}

fn make(root: &Path, what: &str) -> Result<()> {
    let folder = match what {
        "database" => database_folder()?.1,
        "etcd" => PathBuf::from(ETCD_DATA),
        path => PathBuf::from(path),
    };
    if !is_data(&folder) {
        return Err(UserError::usage(format!("{} is not a folder of this node's data", folder.display()))
            .hint(format!("{ETCD_DATA} or {POSTGRESQL_DATA}/VERSION/main"))
            .into());
    }
    let _held = lock::hold("aside make", told)?;
    unused(&folder)?;
    if folder == Path::new(ETCD_DATA) {
        // Written before the data go: the mark of the member's beginning stays beside them.
        let state = root.join(STATE_PATH.trim_start_matches('/'));
        if let Some(known) = State::load(&state)? {
            known.without_etcd().store(&state)?;
        }
    }
    let below = root.join(folder.strip_prefix("/").unwrap_or(&folder));
    let path = if folder == Path::new(ETCD_DATA) {
        aside::set_aside(&below, "by-hand")?
    } else {
        let begun = Begun::load(&root.join(BEGUN_PATH.trim_start_matches('/')));
        aside::set_database_aside_by_hand(&below, reason(&begun, version_of(&folder).unwrap_or_default(), &below))?
    };
    forget(&folder)?;
    said(&format!("set aside: it is {} now", path.display()))
}

/// The major version of the image's PostgreSQL, and the folder of its data.
fn database_folder() -> Result<(u32, PathBuf)> {
    let manifest: Manifest = serde_json::from_str(&read_text(Path::new(MANIFEST_PATH))?)
        .with_context(|| format!("reading {MANIFEST_PATH}"))?;
    let version = postgresql_version(&manifest)?;
    let version = version.ok_or_else(|| UserError::usage("this image has no PostgreSQL: give the folder's path"))?;
    Ok((version, Path::new(POSTGRESQL_DATA).join(version.to_string()).join("main")))
}

/// Whether it is a folder that a service of this node uses for data.
fn is_data(folder: &Path) -> bool {
    folder == Path::new(ETCD_DATA) || (folder.ends_with("main") && version_of(folder).is_some())
}

/// The major version of PostgreSQL whose data lie in `folder`, by its path.
fn version_of(folder: &Path) -> Option<u32> {
    folder.strip_prefix(POSTGRESQL_DATA).ok()?.parent()?.to_str()?.parse().ok()
}

/// Why the database in `folder` is set aside, in the words that go into its name: with that the mark of what was `begun`
/// goes, which alone says that it may be half of one.
fn reason(begun: &Presence<Begun>, version: u32, folder: &Path) -> &'static str {
    match begun {
        Presence::Present(begun) if begun.may_be_half_gone(version, folder) => aside::HALF_REPLACED,
        Presence::Present(Begun { version: of, what, .. }) if *of == version => match what {
            What::Bootstrap => aside::UNFINISHED,
            What::Clone => aside::UNFINISHED_CLONE,
        },
        Presence::Present(_) | Presence::Absent => "by-hand",
        // The mark is there, and what it says is lost.
        Presence::Unknown(_) => aside::HALF_REPLACED,
    }
}

/// Refuses to put back what may be half of a database, unless with `force`.
fn must_be_whole(aside: &Aside, force: bool) -> Result<(), UserError> {
    match aside::half(aside) {
        Some(why) if !force => {
            Err(UserError::usage(format!("{} may be half of a database: {why}", aside.path.display())).hint(
                "put back, it would count as whole. A node without a database gets a whole one: systemctl restart \
                 pgha-node. If you know that this one is whole, or nothing better is left: --force",
            ))
        }
        _ => Ok(()),
    }
}

fn restore(root: &Path, name: &str, force: bool) -> Result<()> {
    let aside = aside::find(root, name)?;
    must_be_whole(&aside, force)?;
    let _held = lock::hold("aside restore", told)?;
    unused(&aside.was)?;
    aside::restore(&aside)?;
    forget(&aside.was)?;
    said(&format!("put back: it is {} again. Then: systemctl restart pgha-node", aside.was.display()))
}

/// A database that a person has put in its place or removed is not half of what this node has begun.
fn forget(folder: &Path) -> Result<()> {
    if folder.starts_with(POSTGRESQL_DATA) { begun::forget(Path::new(BEGUN_PATH)) } else { Ok(()) }
}

fn remove(root: &Path, name: &str, yes: bool) -> Result<()> {
    let aside = aside::find(root, name)?;
    let Aside { what, size, .. } = &aside;
    let what = what.as_deref().map(|what| format!(" ({what})")).unwrap_or_default();
    confirm(
        yes,
        &format!("{}{what}, {size}, goes for good: nothing brings it back.", aside.path.display()),
        &aside.name(),
    )?;
    let _held = lock::hold("aside remove", told)?;
    aside::remove(&aside)?;
    said("removed")
}

/// Refuses while a service uses the folder.
fn unused(folder: &Path) -> Result<()> {
    let unit = match folder {
        folder if folder.starts_with("/var/lib/etcd") => "etcd.service",
        folder if folder.starts_with(POSTGRESQL_DATA) => "patroni.service",
        _ => return Ok(()),
    };
    let shown = units::show(unit)?;
    if !matches!(shown.active.as_str(), "inactive" | "failed") {
        return Err(UserError::usage(format!("{unit} uses {}: it is {}", folder.display(), shown.words()))
            .hint(format!("systemctl stop pgha-node {unit}"))
            .into());
    }
    if let Some(server) = database::server(folder)? {
        return Err(UserError::usage(format!(
            "a PostgreSQL server uses {} (process {})",
            folder.display(),
            server.as_raw_nonzero()
        ))
        .hint("it has outlived Patroni: start Patroni and stop it again, and the server ends with it")
        .into());
    }
    Ok(())
}

/// How `claim` is described.
pub fn claim_command() -> Command {
    Command::new("claim")
        .about("Makes the data of a kept volume this node's, when the cluster says that they fit")
        .arg(yes())
        .arg(
            Arg::new("unchecked")
                .long("unchecked")
                .action(ArgAction::SetTrue)
                .help("Claims them also when nobody can be asked whether they fit"),
        )
        .after_help("Nothing is moved. Then: systemctl restart pgha-node")
}

/// Runs `claim`.
///
/// # Errors
/// When there is nothing to claim, it does not fit, or nobody confirms it.
pub fn verify_ownership(arguments: Vec<OsString>) -> Result<ExitCode> {
    let matches = claim_command().try_get_matches_from(arguments)?;
    let _held = lock::hold("claim", told)?;
    for folder in [ETCD_DATA, POSTGRESQL_DATA] {
        unused(Path::new(folder))?;
    }
    let claim = Claim::look()?;
    io::stderr().write_all(claim.words().as_bytes())?;
    let me = claim.view.me.clone();
    let question = match crate::node::claim::verdict(&claim.view) {
        Verdict::Fits => format!("They fit what the cluster says, and become the data of {me}."),
        Verdict::Unchecked(why) if matches.get_flag("unchecked") => {
            format!(
                "{why}. They become the data of {me} unchecked: if they are older than the cluster's, what is newer may be lost."
            )
        }
        Verdict::Unchecked(why) => {
            let problem = UserError::runtime(format!("nobody can be asked whether the data fit: {why}"));
            return Err(problem
                .hint("try again when the cluster answers, or, if you know that they fit: --unchecked")
                .into());
        }
        Verdict::Refused(why, way_out) => return Err(UserError::usage(why).hint(way_out).into()),
    };
    confirm(matches.get_flag("yes"), &question, &me)?;
    claim.write()?;
    said("claimed. Then: systemctl restart pgha-node")?;
    Ok(ExitCode::SUCCESS)
}

/// How `first` is described.
pub fn first_command() -> Command {
    Command::new("first")
        .about("Shows which node makes the cluster's first database, and which database is the cluster's")
        .subcommand(
            Command::new("take")
                .about("Lets this node make the first database, where none was finished and its node is gone for good")
                .arg(yes()),
        )
        .subcommand(
            Command::new("keep")
                .about("Says that this node's database is the cluster's, where the keys name another one too, or none")
                .arg(yes()),
        )
}

/// Runs `first`.
///
/// # Errors
/// When etcd does not answer, or the keys do not allow it.
pub fn first(arguments: Vec<OsString>) -> Result<ExitCode> {
    let matches = first_command().try_get_matches_from(arguments)?;
    let node = this_node::find()?;
    let urls: Vec<String> = node.spec.members.iter().map(client_url).collect();
    let client: Client = TlsCredentials::of_the_node().etcd(urls)?;
    let store = Store { client: &client, cluster: &node.spec.cluster };
    let keys = store.read().context("asking etcd for the cluster's first database")?;
    match matches.subcommand() {
        Some(("take", matches)) => take(&node, &store, &keys, matches.get_flag("yes"))?,
        Some(("keep", matches)) => keep(&node, &store, &keys, matches.get_flag("yes"))?,
        _ => io::stdout().write_all(shown(&keys).as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(keys: &Keys) -> String {
    let first = match &keys.first {
        None => "no node was told to make it".to_owned(),
        Some(first) => match &first.value.system {
            None => format!("made on {}", first.value.node),
            Some(system) => format!("the one with the system identifier {system}"),
        },
    };
    let initialize = match keys.initialize.as_ref().map(|key| key.value.as_str()) {
        None => "not begun".to_owned(),
        Some("") => "begun and not finished".to_owned(),
        Some(system) => format!("finished, system identifier {system}"),
    };
    format!("first database  {first}\nPatroni's key   {initialize}\n")
}

fn take(node: &Node, store: &Store<'_>, keys: &Keys, yes: bool) -> Result<()> {
    if keys.system() != System::Unknown {
        return Err(UserError::usage("the cluster has a database already").hint("pgha-node first").into());
    }
    let me = &node.member().name;
    let other = keys.first.as_ref().map_or("another node", |first| first.value.node.as_str());
    let question = format!(
        "{me} makes the first, empty database of the cluster {}. If {other} is still at work on one, or any node has the \
         cluster's data, do not do this.",
        node.spec.cluster
    );
    confirm(yes, &question, &node.spec.cluster)?;
    if !store.take(keys, me)? {
        return Err(UserError::runtime("somebody has changed the keys meanwhile: nothing is changed")
            .hint("pgha-node first")
            .into());
    }
    said(&format!("{me} makes the first database"))
}

fn keep(node: &Node, store: &Store<'_>, keys: &Keys, yes: bool) -> Result<()> {
    let (version, folder) = database_folder()?;
    let database = database::of_version(version, Database::look(&folder));
    let database = match Begun::load(Path::new(BEGUN_PATH)).known()? {
        Some(begun) if begun.may_be_half_gone(version, &folder) => Database::Damaged(HALF_GONE.to_owned()),
        _ => database,
    };
    let system = first_database::keeps(keys, &database)?;
    let me = &node.member().name;
    let question = format!(
        "The database of {me} becomes the database of the cluster {}: {}. A node that has another one does not start with it \
         any more; its data stay where they are.",
        node.spec.cluster,
        database.words()
    );
    confirm(yes, &question, &node.spec.cluster)?;
    if !store.keep(keys, me, &system)? {
        return Err(UserError::runtime("somebody has changed the keys meanwhile: nothing is changed")
            .hint("pgha-node first")
            .into());
    }
    said(&format!("the cluster's database is that of {me}"))
}

fn told(who: &str) {
    let _ = writeln!(io::stderr(), "{who}");
}

fn said(text: &str) -> Result<()> {
    writeln!(io::stderr(), "{text}")?;
    Ok(())
}

/// Asks a person to type `word`, unless `yes`.
///
/// # Errors
/// A wrong request when something else is typed, or nobody can type.
pub(super) fn confirm(yes: bool, question: &str, word: &str) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        writeln!(io::stderr(), "{question}")?;
        return Err(UserError::usage("nothing is changed: this must be confirmed")
            .hint("on a terminal, or by --yes")
            .into());
    }
    write!(io::stderr(), "{question}\nType `{word}` to do it: ")?;
    let mut typed = String::new();
    io::stdin().read_line(&mut typed)?;
    if typed.trim() == word { Ok(()) } else { Err(UserError::usage("not confirmed: nothing is changed").into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        files::Doubt,
        node::{begun::Replaced, database::samples},
    };

    #[test]
    fn only_folders_of_data_are_set_aside() {
        for path in ["/var/lib/etcd/default", "/var/lib/postgresql/17/main"] {
            assert!(is_data(Path::new(path)), "{path}");
        }
        for path in [
            "/",
            "main",
            "/var/lib/postgresql",
            "/var/lib/postgresql/17",
            "/var/lib/postgresql/main",
            "/var/lib/postgresql/../17/main",
            "/var/lib/postgresql/17/../../x/main",
            "/var/lib/etcd/default/member",
        ] {
            assert!(!is_data(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn a_database_that_may_be_half_keeps_that_in_its_name() {
        let root = tempfile::tempdir().unwrap();
        let main = root.path().join("var/lib/postgresql/17/main");
        samples::database(&main, 77);
        let begun =
            |what, replaces| Presence::Present(Begun { what, version: 17, revision: 9, time: 1_795_741_749, replaces });
        let replaced = begun(What::Clone, Some(Replaced::of(&main).unwrap()));
        assert_eq!(reason(&replaced, 17, &main), "half-replaced");
        assert_eq!(reason(&replaced, 16, &main), "by-hand", "the mark is of another database");
        assert_eq!(reason(&begun(What::Clone, None), 17, &main), "unfinished-clone");
        assert_eq!(reason(&begun(What::Bootstrap, None), 17, &main), "unfinished");
        assert_eq!(reason(&Presence::Absent, 17, &main), "by-hand");
        assert_eq!(reason(&Presence::Unknown(Doubt::new("a disk")), 17, &main), "half-replaced");

        let path = aside::set_database_aside_by_hand(&main, reason(&replaced, 17, &main)).unwrap();
        let found = aside::find(root.path(), path.to_str().unwrap()).unwrap();
        let told = crate::error::report(&restore(root.path(), &found.name(), false).unwrap_err());
        for part in ["may be half of a database", "half of it may be gone", "--force"] {
            assert!(told.contains(part), "`{part}` is not in {told}");
        }
        assert!(path.exists() && !main.exists());
        assert!(must_be_whole(&found, true).is_ok());
        assert!(must_be_whole(&Aside { why: "diverged".to_owned(), ..found }, false).is_ok());
    }

    #[test]
    fn the_descriptions_are_sound() {
        for command in [aside_command(), claim_command(), first_command()] {
            command.debug_assert();
        }
    }
}
