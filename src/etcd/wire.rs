//! The gateway's JSON: 64-bit numbers are strings, bytes are base64, absent means zero.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, de::Error as _};

/// What every answer of etcd opens with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Header {
    /// The cluster that answers.
    #[serde(deserialize_with = "number")]
    pub cluster_id: u64,
    /// The member that answers.
    #[serde(deserialize_with = "number")]
    pub member_id: u64,
    /// The store's revision.
    #[serde(deserialize_with = "number")]
    pub revision: u64,
    #[serde(deserialize_with = "number")]
    pub raft_term: u64,
}

/// Reads a number that may be given as a string.
pub fn number<'de, D: Deserializer<'de>, N: TryFrom<i128>>(deserializer: D) -> Result<N, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Signed(i64),
        Unsigned(u64),
    }
    let wide = match Either::deserialize(deserializer)? {
        Either::Text(text) => {
            text.parse::<i128>().map_err(|_| D::Error::custom(format!("`{text}` is not a number")))?
        }
        Either::Signed(number) => number.into(),
        Either::Unsigned(number) => number.into(),
    };
    N::try_from(wide).map_err(|_| D::Error::custom(format!("{wide} is out of range")))
}

/// Reads base64.
pub fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    STANDARD.decode(text.as_bytes()).map_err(D::Error::custom)
}

/// Writes base64.
pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}
