//! The files that each node will write, rendered here.

use super::Seeds;
use crate::{
    model::{
        GuestPath, Node,
        keys::Keys,
        scope::{EtcdStart, Machine, Scope},
    },
    overlay::Writer,
    plan::Plan,
    render::render,
};
use anyhow::{Context as _, Result};
use std::fs;

/// One file as a node will have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    /// Where.
    pub path: GuestPath,
    /// `OWNER:GROUP`.
    pub owner: String,
    /// The permission bits.
    pub mode: u32,
    /// Its text; everything secret is `***`.
    pub text: String,
}

/// The files that `pgha-node init` will write on the member `own` (an index), in an image of `plan` and on a machine
/// like `machine`, in the order of overlays.
///
/// # Errors
/// When a template cannot be read, or names what nodes do not know.
pub fn files(seeds: &Seeds, own: usize, plan: &Plan, machine: &Machine) -> Result<Vec<Preview>> {
    let spec = &seeds.spec;
    let parameters = plan.parameters.clone().into_iter().collect();
    let scope = Scope::new(&Node::new(spec.clone(), own), machine, &EtcdStart::together(spec), &parameters);
    let redactor = Redactor::of(seeds);
    let templates = plan.overlays.iter().flat_map(|overlay| &overlay.files).filter(|file| file.writer == Writer::Node);
    templates
        .map(|file| {
            let text =
                fs::read_to_string(&file.source).with_context(|| format!("reading {}", file.source.display()))?;
            Ok(Preview {
                path: file.path.clone(),
                owner: format!("{}:{}", file.owner, file.group),
                mode: file.mode.0,
                text: redactor.over(&render(&file.origin, &text, &scope)?),
            })
        })
        .collect()
}

/// Removes secrets from text.
struct Redactor(Vec<String>);

impl Redactor {
    fn of(seeds: &Seeds) -> Redactor {
        let keys = Keys::new(&seeds.spec);
        let postgresql = &seeds.spec.postgresql;
        let owners = postgresql.databases.iter().map(|database| &database.owner);
        let mut secrets = vec![
            keys.superuser(),
            keys.replication(),
            keys.rewind(),
            keys.pooler(),
            keys.rest(),
            keys.statistics(),
            seeds.spec.secret.clone(),
        ];
        secrets.extend(postgresql.users.iter().map(|user| &user.name).chain(owners).map(|name| keys.user(name)));
        Redactor(secrets.iter().map(|secret| secret.expose().to_owned()).filter(|secret| !secret.is_empty()).collect())
    }

    fn over(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "***"))
    }
}
