//! Users and groups of an image by name (passwd(5), group(5)).

use super::{Owner, overlay_view::OverlayView};
use crate::{accounts, document::suggest, error::UserError, model::GuestPath};
use anyhow::Result;
use std::collections::BTreeMap;

/// The numbers of users and groups.
#[derive(Debug)]
pub(super) struct Accounts {
    users: BTreeMap<String, u32>,
    groups: BTreeMap<String, u32>,
}

impl Accounts {
    /// Reads `/etc/passwd` and `/etc/group`. An image without them has root only.
    pub fn read(view: &mut OverlayView<'_>) -> Result<Accounts> {
        let users = parse(view.text(&GuestPath::constant("/etc/passwd"))?.as_deref());
        let groups = parse(view.text(&GuestPath::constant("/etc/group"))?.as_deref());
        Ok(Accounts { users, groups })
    }

    /// The numbers of the owner that an overlay gives a path. A name of digits is a number itself.
    pub fn numbers(&self, overlay: &str, path: &GuestPath, owner: &Owner) -> Result<(u32, u32), UserError> {
        let number = |what: &str, name: &str, known: &BTreeMap<String, u32>| {
            known.get(name).copied().or_else(|| name.parse().ok()).ok_or_else(|| {
                let message = format!(
                    "the overlay `{overlay}` gives `{path}` to the {what} `{name}`, which the image does not have"
                );
                let hint = suggest(name, known.keys().map(String::as_str), &format!("the {what}s there are"));
                UserError { hint, ..UserError::usage(message) }
            })
        };
        Ok((number("user", &owner.user, &self.users)?, number("group", &owner.group, &self.groups)?))
    }
}

fn parse(text: Option<&str>) -> BTreeMap<String, u32> {
    let listed = text.into_iter().flat_map(accounts::entries);
    let listed = listed.filter_map(|(name, number)| Some((name.to_owned(), number?)));
    [("root".to_owned(), 0)].into_iter().chain(listed).collect()
}
