//! The machine: environment, files, names and addresses, other templates.

use super::{super::Compiled, Args, Function, Outcome, Scope, error, list, text};
use crate::{confd::path, dns, error::UserError, exec::Run, files};
use anyhow::{Context as _, Result};
use gotmpl::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    net::{IpAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How deep templates may include each other.
const DEEPEST: usize = 10;

pub const TABLE: &[(&str, Function)] = &[
    ("getenv", getenv),
    ("fileExists", |_, args| args.exactly(1).and_then(|()| Ok(Value::Bool(Path::new(args.text(0)?).exists())))),
    ("hostname", |_, args| args.exactly(0).map(|()| text(rustix::system::uname().nodename().to_string_lossy()))),
    ("lookupIP", |_, args| lookup(args, |_| true)),
    ("lookupIPV4", |_, args| lookup(args, IpAddr::is_ipv4)),
    ("lookupIPV6", |_, args| lookup(args, IpAddr::is_ipv6)),
    ("lookupSRV", lookup_srv),
    ("lookupIfaceIPV4", |_, args| interface_address(args, "inet")),
    ("lookupIfaceIPV6", |_, args| interface_address(args, "inet6")),
    ("include", include),
];

fn getenv(_: &Scope, args: &Args<'_>) -> Outcome {
    args.between(1, usize::MAX)?;
    let default = if args.values.len() > 1 { args.text(1)? } else { "" };
    match env::var(args.text(0)?) {
        Ok(value) if !value.is_empty() => Ok(text(value)),
        _ => Ok(text(default)),
    }
}

/// Sorted, so that a name server which shuffles its answers changes nothing; empty when there is no answer.
fn lookup(args: &Args<'_>, wanted: fn(&IpAddr) -> bool) -> Outcome {
    args.exactly(1)?;
    let found = (args.text(0)?, 0).to_socket_addrs().into_iter().flatten().map(|address| address.ip());
    let sorted: BTreeSet<String> = found.filter(wanted).map(|address| address.to_string()).collect();
    Ok(list(sorted.iter().map(text)))
}

fn lookup_srv(_: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(3)?;
    let (service, proto, name) = (args.text(0)?, args.text(1)?, args.text(2)?);
    let name =
        if service.is_empty() && proto.is_empty() { name.to_owned() } else { format!("_{service}._{proto}.{name}") };
    let mut records = dns::lookup_srv(&name).unwrap_or_default();
    records
        .sort_by_cached_key(|record| format!("{}{}{}{}", record.target, record.port, record.priority, record.weight));
    Ok(list(records.iter().map(|record| {
        let fields: BTreeMap<Arc<str>, Value> = BTreeMap::from([
            ("Target".into(), text(&record.target)),
            ("Port".into(), Value::Uint(record.port.into())),
            ("Priority".into(), Value::Uint(record.priority.into())),
            ("Weight".into(), Value::Uint(record.weight.into())),
        ]);
        Value::Map(Arc::new(fields))
    })))
}

/// The interface's first address of a family; empty when it has none.
fn interface_address(args: &Args<'_>, family: &str) -> Outcome {
    args.exactly(1)?;
    let run = Run::new("ip").args(["-o", "-f", family, "addr", "show", "dev", args.text(0)?]);
    let said = run.limit(Duration::from_secs(5)).text().unwrap_or_default();
    // `2: eth0    inet 10.0.0.11/24 brd …`
    let mut words = said.lines().next().unwrap_or_default().split_whitespace().skip_while(|word| *word != family);
    Ok(text(words.nth(1).and_then(|address| address.split('/').next()).unwrap_or_default()))
}

fn include(scope: &Scope, args: &Args<'_>) -> Outcome {
    args.between(1, 2)?;
    let render = || -> Result<String> {
        let (path, included) = open_include(&scope.folder, args.text(0)?, &scope.stack)?;
        let stack = scope.stack.iter().cloned().chain([path]).collect();
        let inner = Scope::new(Arc::clone(&scope.store), scope.folder.clone(), stack);
        included.render(&inner, args.values.get(1).unwrap_or(&Value::Nil))
    };
    render().map(text).map_err(|reason| error(format!("error calling include: {reason:#}")))
}

/// Opens a template that another includes; `stack` are the files that are open already.
///
/// # Errors
/// When it lies outside of the folder, is open already, or cannot be read.
pub fn open_include(folder: &Path, name: &str, stack: &[PathBuf]) -> Result<(PathBuf, Compiled)> {
    let inside = path::clean(name);
    if inside == "." || inside == ".." || inside.starts_with("../") || inside.starts_with('/') {
        return Err(
            UserError::usage(format!("the included template `{name}` lies outside of {}", folder.display())).into()
        );
    }
    let path = folder.join(inside);
    if stack.contains(&path) {
        return Err(UserError::usage(format!("the template `{name}` includes itself")).into());
    }
    if stack.len() > DEEPEST {
        return Err(UserError::usage(format!("templates include each other more than {DEEPEST} deep")).into());
    }
    let source = files::read_text(&path).with_context(|| format!("including `{name}`"))?;
    let label = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((path, super::super::compile(&label, &source)?))
}
