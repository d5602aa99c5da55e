//! Generates the secret of a document that has none.

use crate::{
    document::Document,
    error::UserError,
    model::{Secret, keys::SECRET_BYTES},
};
use anyhow::{Result, anyhow};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

/// A new secret: 32 bytes of the kernel's randomness in base64.
///
/// # Errors
/// When the kernel gives none.
pub fn fresh_secret() -> Result<Secret> {
    let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
    SystemRandom::new().fill(bytes.as_mut_slice()).map_err(|_| anyhow!("the kernel provides no random bytes"))?;
    Ok(Secret::new(STANDARD.encode(bytes.as_slice())))
}

/// The document with a secret: its own, or else that of `earlier`, or else a new one. Says whether it has a new one.
///
/// Lines keep their numbers: what is added comes last.
///
/// # Errors
/// A wrong request when the document is not a mapping; failed work when there is no randomness.
pub fn with_secret(document: Document, earlier: Option<&Document>) -> Result<(Document, bool)> {
    let value = shape(&document)?;
    if value.contains_key("secret") {
        return Ok((document, false));
    }
    let known = earlier.map(shape).transpose()?.filter(|earlier| earlier.get("cluster") == value.get("cluster"));
    let known = known.and_then(|earlier| earlier.get("secret")?.as_str().map(Secret::new));
    let new = known.is_none();
    let secret = known.map_or_else(fresh_secret, Ok)?;
    let text = document.text.trim_end();
    let text = match text.strip_suffix('}') {
        Some(inside) if text.trim_start().starts_with('{') => {
            format!("{}, \"secret\": \"{}\"}}\n", inside.trim_end().trim_end_matches(','), secret.expose())
        }
        _ => format!("{text}\nsecret: {}\n", secret.expose()),
    };
    let changed = Document::new(document.name.clone(), text);
    match shape(&changed) {
        Ok(value) if value.contains_key("secret") => Ok((changed, new)),
        _ => Err(UserError::usage(format!("{} has no `secret`, and none can be added to it", document.name))
            .hint("write `secret: TEXT` into it, with the output of `head -c 32 /dev/urandom | base64`")
            .into()),
    }
}

fn shape(document: &Document) -> Result<serde_json::Map<String, serde_json::Value>, UserError> {
    document.parse()
}
