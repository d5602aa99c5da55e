//! Endpoints from SRV records.

use super::{EtcdError, Result};
use crate::dns;

/// The endpoints that the SRV record `name` lists, as URLs of `scheme`.
///
/// # Errors
/// When the record cannot be looked up, or lists nothing.
pub fn endpoints_from_srv(name: &str, scheme: &str) -> Result<Vec<String>> {
    let records = dns::lookup_srv(name).map_err(|error| EtcdError::Settings(format!("{error:#}")))?;
    if records.is_empty() {
        return Err(EtcdError::Settings(format!("the SRV record {name} lists nothing")));
    }
    Ok(records
        .iter()
        .map(|record| format!("{scheme}://{}:{}", record.target.trim_end_matches('.'), record.port))
        .collect())
}
