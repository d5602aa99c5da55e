//! Renews certificates before they expire, without a restart.

use super::{
    pki::{Authority, Store},
    this_node, units,
};
use crate::log;
use anyhow::Result;
use std::{collections::BTreeSet, time::SystemTime};

/// Renews what must be renewed, and has its readers read it again.
///
/// # Errors
/// When the document or the disk does not allow it; a unit that cannot be reloaded is reported after all others were.
pub fn run() -> Result<()> {
    let node = this_node::find()?;
    let authority = Authority::of(&node.spec)?;
    let made = Store::of_the_node().ensure(&node, &authority, SystemTime::now())?;
    if made.is_empty() {
        log::info!("every certificate is valid for a while: there is nothing to renew");
        return Ok(());
    }
    let names: Vec<_> = made.iter().map(|purpose| purpose.file).collect();
    log::info!("renewed {}", names.join(", "));
    let readers: BTreeSet<_> = made.iter().flat_map(|purpose| purpose.readers.iter().copied()).collect();
    let mut outcome = Ok(());
    for unit in readers {
        let reloaded =
            units::show(unit).and_then(|shown| if shown.active == "active" { units::reload(unit) } else { Ok(()) });
        if let Err(error) = reloaded {
            outcome = Err(error.into());
        }
    }
    outcome
}
