//! The store's functions: `exists get gets getv getvs ls lsdir`.

use super::{Args, Function, Outcome, Scope, list, pair, text};
use gotmpl::Value;
use std::sync::Arc;

pub const TABLE: &[(&str, Function)] =
    &[("exists", exists), ("get", get), ("gets", gets), ("getv", getv), ("getvs", getvs), ("ls", ls), ("lsdir", lsdir)];

fn exists(scope: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(1)?;
    Ok(Value::Bool(scope.store.get(args.text(0)?).is_some()))
}

fn get(scope: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(1)?;
    let key = args.text(0)?;
    let value = scope.store.get(key).ok_or_else(|| args.failed(format!("key does not exist: {key}")))?;
    Ok(pair(&Arc::from(key), value))
}

fn getv(scope: &Scope, args: &Args<'_>) -> Outcome {
    args.between(1, usize::MAX)?;
    let key = args.text(0)?;
    match scope.store.get(key) {
        Some(value) => Ok(Value::String(Arc::clone(value))),
        None if args.values.len() > 1 => Ok(text(args.text(1)?)),
        None => Err(args.failed(format!("key does not exist: {key}"))),
    }
}

fn gets(scope: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(1)?;
    let found = scope.store.matching(args.text(0)?).map_err(|error| args.failed(error))?;
    Ok(list(found.into_iter().map(|(key, value)| pair(key, value))))
}

fn getvs(scope: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(1)?;
    let found = scope.store.matching(args.text(0)?).map_err(|error| args.failed(error))?;
    let mut values: Vec<&Arc<str>> = found.into_iter().map(|(_, value)| value).collect();
    values.sort_unstable();
    Ok(list(values.into_iter().map(|value| Value::String(Arc::clone(value)))))
}

fn ls(scope: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(1)?;
    Ok(list(scope.store.list(args.text(0)?).iter().map(text)))
}

fn lsdir(scope: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(1)?;
    Ok(list(scope.store.list_folders(args.text(0)?).iter().map(text)))
}
