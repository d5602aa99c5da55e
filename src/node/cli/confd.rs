//! `pgha-node confd`: flags in Go's style, with one dash or two.

use crate::confd::{self, KEYS, Key, Kind, Layer, Raw, variable_of};
use anyhow::Result;
use clap::{Arg, ArgAction, Command};
use std::{ffi::OsString, process::ExitCode};

/// How it is described.
pub fn command() -> Command {
    Command::new("confd")
        .about("Keeps files in step with keys of a store, by Go templates (compatible with confd 0.16)")
        .version(env!("CARGO_PKG_VERSION"))
        .after_help("Flags may be written with one dash or two. The settings file is overridden by the environment, that by flags.")
        .args(KEYS.iter().map(argument))
}

fn argument(key: &Key) -> Arg {
    let variable = variable_of(key.flag);
    let argument = Arg::new(key.flag).long(key.flag).help(format!("{} [env: {variable}]", key.help));
    let argument = argument.hide(key.kind == Kind::Unused);
    match key.kind {
        Kind::Bool => argument
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("true|false")
            .action(ArgAction::Set)
            .overrides_with(key.flag),
        Kind::List => argument.action(ArgAction::Append).allow_hyphen_values(true),
        _ => argument.action(ArgAction::Set).allow_hyphen_values(true).overrides_with(key.flag),
    }
}

/// Runs confd; the first argument is its name.
///
/// # Errors
/// When the arguments are wrong, or the work fails.
pub fn run(arguments: Vec<OsString>) -> Result<ExitCode> {
    let matches = command().try_get_matches_from(arguments.into_iter().map(two_dashes))?;
    let mut flags = Layer::new();
    for key in KEYS {
        if let Some(values) = matches.get_many::<String>(key.flag) {
            flags.insert(key.flag, Raw { texts: values.cloned().collect(), source: format!("-{}", key.flag) });
        }
    }
    confd::run(flags).map(|()| ExitCode::SUCCESS)
}

/// `-watch` is `--watch`; `-h`, `-V` and values stay.
fn two_dashes(argument: OsString) -> OsString {
    match argument.to_str() {
        Some(text) if text.len() > 2 && text.starts_with('-') && text.as_bytes()[1].is_ascii_alphabetic() => {
            format!("-{text}").into()
        }
        _ => argument,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(arguments: &[&str]) -> Layer {
        let arguments = ["confd"].iter().chain(arguments).map(OsString::from).map(two_dashes);
        let matches = command().try_get_matches_from(arguments).unwrap();
        let flag = |key: &Key| {
            let values = matches.get_many::<String>(key.flag)?;
            Some((key.flag, Raw { texts: values.cloned().collect(), source: String::new() }))
        };
        KEYS.iter().filter_map(flag).collect()
    }

    #[test]
    fn flags_are_read_in_both_styles() {
        let read = flags(&["-onetime", "--watch=false", "-interval", "5", "--prefix=/x", "-node", "a", "--node", "b"]);
        let text = |flag: &str| read[flag].texts.join(",");
        assert_eq!(
            [text("onetime"), text("watch"), text("interval"), text("prefix"), text("node")],
            ["true", "false", "5", "/x", "a,b"]
        );
        assert_eq!(flags(&["-interval", "5", "-interval", "6", "-watch", "-watch"])["interval"].texts, ["6"]);
    }

    #[test]
    fn every_flag_is_read_with_one_dash_and_with_two() {
        for key in KEYS {
            let value = if key.kind == Kind::Bool { "false" } else { "-5" };
            for dashes in ["-", "--"] {
                let flag = format!("{dashes}{}", key.flag);
                let joined = flags(&[&format!("{flag}={value}")]);
                assert_eq!(joined[key.flag].texts, [value], "{flag}=");
                let alone = if key.kind == Kind::Bool { flags(&[&flag]) } else { flags(&[&flag, "5"]) };
                assert_eq!(alone[key.flag].texts, [if key.kind == Kind::Bool { "true" } else { "5" }], "{flag}");
            }
        }
    }

    #[test]
    fn the_description_is_sound() {
        command().debug_assert();
    }
}
