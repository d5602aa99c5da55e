//! confd: files kept in step with the keys of a store, by Go templates.
//!
//! Compatible with confd 0.16: the same files, flags, functions and order of events, so that existing resources and
//! templates move over unchanged; with the additive keys of the maintained fork, and without the faults.
//!
//! # Files
//!
//! ```text
//! /etc/confd/confd.toml            settings; every key is also a flag and a variable CONFD_…
//! /etc/confd/conf.d/**/*.toml      template resources
//! /etc/confd/templates/…           templates
//! /var/lib/confd/…                 what was applied, and a copy of each last good file
//! ```
//!
//! The file is overridden by the environment, that by flags; flags take one dash or two. An unknown key is a warning that
//! names file and line, a wrong value an error (exit status 2).
//!
//! # A resource
//!
//! ```toml
//! [template]
//! src = "haproxy.tmpl"                    # in templates/
//! dest = "/etc/haproxy/haproxy.cfg"
//! keys = ["/members"]                     # these and what lies below them
//! prefix = "/service/demo"                # before the keys; templates see keys without it; -prefix overrides it
//! mode = "0640"                           # else that of the file there, else 0644
//! owner = "root"                          # or uid; group or gid
//! check_cmd = "haproxy -c -f {{.src}}"    # on the staged file, {{.dest}} is the other
//! reload_cmd = "systemctl reload haproxy"
//! check_cmd_timeout = "30s"               # then it and all that it started are killed
//! reload_cmd_timeout = "60s"
//! min_reload_interval = "10s"             # a reload that comes too soon is done later
//! debounce = "200ms"                      # wait for further changes
//! output_format = "json"                  # or yaml, toml, xml: refuse a text that is not
//! # Of this program alone:
//! min_items = 1                           # with fewer keys, the file stays as it is
//! items = "/members/*"                    # which keys count; all without it
//! haproxy_socket = "/run/haproxy/admin.sock"   # change servers there; reload only when the structure changes
//! [backend]                               # a store of its own, with the keys of confd.toml
//! ```
//!
//! # Templates
//!
//! Go's `text/template` with its functions; `exists get gets getv getvs ls lsdir` for keys; `base dir split join replace
//! contains trimSuffix toUpper toLower base64Encode base64Decode json jsonArray map reverse sortByLength sortKVByLength add
//! sub mul div mod seq atoi parseBool getenv datetime fileExists lookupIP lookupIPV4 lookupIPV6 lookupSRV` of confd; of the
//! fork `hostname lookupIfaceIPV4 lookupIfaceIPV6 include default ternary coalesce empty toJson fromJson toPrettyJson indent
//! nindent quote squote regexMatch regexFind regexReplaceAll trimPrefix repeat nospace snakecase camelcase kebabcase dict list
//! hasKey keys values append pluck sha256sum`. A function that does not exist, in whatever branch, is refused when the template
//! is loaded; so are `cget cgets cgetv cgetvs`. What differs from the originals, on purpose:
//!
//! - `seq 1 0` is empty, as in confd 0.16 (the fork counts down); a division by zero is an error (confd ends).
//! - `reverse` also reverses the result of `gets`, `join` takes any list of strings, whole numbers of JSON count as
//!   ints.
//! - Regular expressions have no Unicode classes (`\pL`); values that are not UTF-8 are shown with replacement characters.
//! - `datetime` has `Format Unix UnixNano UTC Local Year Month Day Hour Minute Second Nanosecond Weekday YearDay String`.
//!
//! # Stores
//!
//! `etcdv3` (`etcd` means the same; version 2 is gone) through etcd's JSON gateway, `consul`, `file` (YAML, JSON), `env`. With
//! etcd, everything is read through the quorum, watches demand a leader, and an endpoint that is frozen or cut off from the
//! others is left within seconds. With `-watch`, everything is also read again every `interval`.
//!
//! # What it promises
//!
//! A pass judges the keys, renders, stages beside the file, compares owner, group, mode and content, runs `check_cmd`,
//! puts the new file in the old one's place (synced, folder too) and runs `reload_cmd`. Beyond that:
//!
//! - Whatever fails is tried again, ever later up to every 30 s, until it succeeds. What was applied is kept on disk before and
//!   after, so that a crash or a failed reload leaves the reload owed, not lost. A `reload_cmd` that ends with status 75 has
//!   found its reader starting: it is repeated too, without counting as a failure.
//! - A smaller set of keys counts only once the store has been healthy for `shrink_hold` (5 s), an empty one only if it lasts that
//!   long; a store that was wiped or restored never empties a file; fewer keys than `min_items` never count. A file that
//!   is there at the first start, of whatever program, is replaced once the store has been healthy for as long.
//! - Before the store answers, a missing or empty file is put back from the copy of the last good one.
//! - Changes are gathered while a pass runs, and never dropped.
//! - SIGHUP reads settings and resources again and keeps the old ones if the new are wrong; SIGTERM finishes the
//!   current step.
//! - systemd gets READY once every file is usable, and the watchdog's keep-alive while every resource is worked on.
//! - `-metrics-addr :9101` serves `/metrics`, `/health` and `/ready` on loopback.

#![deny(missing_docs)]

mod apply;
mod backend;
mod document;
mod haproxy;
mod memkv;
mod metrics;
mod notify;
mod path;
mod resource;
mod run;
mod schedule;
mod settings;
mod shrink_policy;
mod state_file;
mod template;
mod validate;
mod watcher;
mod worker;

pub use run::run;
pub use settings::{KEYS, Key, Kind, Layer, Raw, variable_of};

use anyhow::Result;
use std::{path::Path, sync::Arc};

/// Renders a template with the given keys (absolute, as templates see them), without a store and without files.
///
/// # Errors
/// When it is not a template, or reads a key that is not there.
pub fn render<'a>(source: &str, keys: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<String> {
    let keys = keys.into_iter().map(|(key, value)| (Arc::from(key), Arc::from(value)));
    template::render_text(source, Arc::new(keys.collect()))
}

/// Checks the text of a resource file; errors name `path`.
///
/// # Errors
/// When it is wrong.
pub fn check_resource(path: &Path, text: &str) -> Result<()> {
    resource::parse(path, text, &settings::Settings::parse(Path::new(""), "")?).map(drop)
}

/// Checks the text of a settings file; errors name `path`.
///
/// # Errors
/// When it is wrong.
pub fn check_settings(path: &Path, text: &str) -> Result<()> {
    settings::Settings::parse(path, text).map(drop)
}
