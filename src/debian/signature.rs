//! Cleartext signatures of `InRelease` files, checked against the archive's keys (RFC 9580, section 7).
//!
//! The `pgp` crate does the arithmetic. Which keys and signatures count is decided here: a key must be bound to its
//! certificate by a valid self-signature, must be allowed to sign, not expired, not revoked; a signature must not rest
//! on a broken hash, nor be dated before its key or in the future. One good signature suffices, as for apt.

use crate::error::UserError;
use anyhow::{Context as _, Result};
use pgp::{
    composed::{CleartextSignedMessage, Deserializable as _, SignedPublicKey, SignedPublicSubKey},
    crypto::hash::HashAlgorithm,
    packet::{PublicKey, PublicSubkey, Signature, SignatureType, SubpacketData},
    types::{KeyDetails as _, Tag},
};
use std::{fmt::Write as _, io::BufReader};

/// How far in the future a signature may be dated, in seconds: clocks differ.
const CLOCK_SKEW: i64 = 24 * 3600;

/// The keys of an archive.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    keys: Vec<Key>,
}

/// One key that may have signed something: a certificate's primary key or a subkey of it.
#[derive(Debug, Clone)]
struct Key {
    material: Material,
    /// What people know it by.
    owner: String,
    created: i64,
    /// In seconds since 1970.
    expires: Option<i64>,
    /// Why it must not be trusted, whatever the date.
    refused: Option<&'static str>,
}

#[derive(Debug, Clone)]
enum Material {
    Primary(Box<PublicKey>),
    Subkey(Box<PublicSubkey>),
}

impl Keyring {
    /// Reads keys: each file is a binary keyring or ASCII armor, and may hold several certificates.
    ///
    /// # Errors
    /// When one of them holds no key.
    pub fn read<'a>(files: impl IntoIterator<Item = &'a [u8]>) -> Result<Keyring> {
        let mut keys = Vec::new();
        for file in files {
            let before = keys.len();
            for certificate in read_certificates(file)? {
                keys.extend(keys_of(&certificate));
            }
            if keys.len() == before {
                return Err(UserError::runtime("there is no OpenPGP key in it").into());
            }
        }
        Ok(Keyring { keys })
    }

    /// Checks a cleartext-signed document at the time `now`, in seconds since 1970, and returns exactly the text that
    /// was signed, with line feeds alone as line ends and none after the last line.
    ///
    /// # Errors
    /// When it is not signed, no known key signed it, the key is not trusted, or the text was changed.
    pub fn verify(&self, document: &[u8], now: i64) -> Result<String> {
        let text = std::str::from_utf8(document).ok().filter(|text| text.starts_with("-----BEGIN PGP SIGNED MESSAGE"));
        let Some(text) = text else {
            return Err(UserError::runtime("it is not signed")
                .hint("an archive without signatures cannot be trusted; is the mirror's URI right?")
                .into());
        };
        let (message, _) = CleartextSignedMessage::from_string(text).map_err(|error| {
            UserError::runtime(format!("its signature cannot be read: {error}"))
                .hint("it was damaged or changed in transit; try another mirror")
        })?;
        if message.signatures().is_empty() {
            return Err(UserError::runtime("it is not signed").hint("try another mirror").into());
        }
        let signed = message.signed_text();
        let mut worst: Option<Verdict> = None;
        for signature in message.signatures() {
            let verdict = self.judge(signature, signed.as_bytes(), now);
            if matches!(verdict, Verdict::Good) {
                return Ok(signed.replace("\r\n", "\n"));
            }
            if worst.as_ref().is_none_or(|worst| verdict.weight() > worst.weight()) {
                worst = Some(verdict);
            }
        }
        let signers: Vec<String> = message.signatures().iter().map(signer).collect();
        Err(worst.unwrap_or(Verdict::Unknown).error(&signers, self).into())
    }

    fn judge(&self, signature: &Signature, text: &[u8], now: i64) -> Verdict {
        let Some(key) = self.keys.iter().find(|key| key.made(signature)) else { return Verdict::Unknown };
        let name = key.describe();
        if !matches!(signature.typ(), Some(SignatureType::Text | SignatureType::Binary)) {
            return Verdict::Refused(name, "the signature is of a kind that signs no text".into());
        }
        if !strong(signature) {
            return Verdict::Refused(name, "the signature rests on a broken hash function".into());
        }
        let sound = match &key.material {
            Material::Primary(public) => signature.verify(&**public, text).is_ok(),
            Material::Subkey(public) => signature.verify(&**public, text).is_ok(),
        };
        if !sound {
            return Verdict::Bad(name);
        }
        if let Some(reason) = key.refused {
            return Verdict::Refused(name, reason.into());
        }
        if let Some(expiry) = key.expires.filter(|&expiry| expiry <= now) {
            return Verdict::Expired(name, expiry);
        }
        let Some(made) = signature.created().map(|time| i64::from(time.as_secs())) else {
            return Verdict::Refused(name, "the signature has no date".into());
        };
        if made < key.created {
            return Verdict::Refused(name, "the signature is older than its key".into());
        }
        if made > now + CLOCK_SKEW {
            return Verdict::Refused(name, format!("the signature is dated {}, which is to come", date(made)));
        }
        let lifetime = signature.signature_expiration_time().map(|time| i64::from(time.as_secs()));
        if lifetime.is_some_and(|lifetime| lifetime > 0 && made + lifetime <= now) {
            return Verdict::Refused(name, "the signature has expired".into());
        }
        Verdict::Good
    }
}

/// The result of one signature, ordered by how much it says about a failure, least first.
enum Verdict {
    Unknown,
    Refused(String, String),
    Expired(String, i64),
    Bad(String),
    Good,
}

impl Verdict {
    fn weight(&self) -> u8 {
        match self {
            Verdict::Unknown => 0,
            Verdict::Refused(..) => 1,
            Verdict::Expired(..) => 2,
            Verdict::Bad(_) => 3,
            Verdict::Good => 4,
        }
    }

    fn error(self, signers: &[String], keyring: &Keyring) -> UserError {
        match self {
            Verdict::Bad(key) => UserError::runtime(format!("the signature by {key} is bad: the text is not what was signed"))
                .hint("it was changed in transit, or the mirror is being updated; try again, or try another mirror"),
            Verdict::Expired(key, expiry) => UserError::runtime(format!("the key {key} expired on {}", date(expiry)))
                .hint("add the archive's current key to `signed-by`; if the key should still be good, check this machine's clock"),
            Verdict::Refused(key, reason) => UserError::runtime(format!("the signature by {key} is not accepted: {reason}"))
                .hint("add the archive's current key to `signed-by`, or try another mirror"),
            Verdict::Unknown | Verdict::Good => {
                let mut known = String::new();
                for key in &keyring.keys {
                    let _ = write!(known, "\n  {}", key.describe());
                }
                let plural = if signers.len() == 1 { "the key" } else { "the keys" };
                UserError::runtime(format!("it is signed by {plural} {}, but the only known keys are{known}", signers.join(" and ")))
                    .hint("if that key is the archive's own, add its file to `signed-by`; otherwise do not use this mirror")
            }
        }
    }
}

impl Key {
    fn fingerprint(&self) -> String {
        match &self.material {
            Material::Primary(key) => format!("{:X}", key.fingerprint()),
            Material::Subkey(key) => format!("{:X}", key.fingerprint()),
        }
    }

    fn describe(&self) -> String {
        format!("{} ({})", self.fingerprint(), self.owner)
    }

    /// Whether `signature` says that this key made it.
    fn made(&self, signature: &Signature) -> bool {
        let (fingerprint, id) = match &self.material {
            Material::Primary(key) => (key.fingerprint(), key.legacy_key_id()),
            Material::Subkey(key) => (key.fingerprint(), key.legacy_key_id()),
        };
        signature.issuer_fingerprint().contains(&&fingerprint) || signature.issuer_key_id().contains(&&id)
    }
}

/// Who made a signature, by its own word.
fn signer(signature: &Signature) -> String {
    let fingerprint = signature.issuer_fingerprint().first().map(|fingerprint| format!("{fingerprint:X}"));
    let id = || signature.issuer_key_id().first().map(|id| id.to_string().to_uppercase());
    fingerprint.or_else(id).unwrap_or_else(|| "without a name".into())
}

fn read_certificates(file: &[u8]) -> Result<Vec<SignedPublicKey>> {
    let read = || -> pgp::errors::Result<Vec<SignedPublicKey>> {
        if file.trim_ascii_start().starts_with(b"-----BEGIN") {
            SignedPublicKey::from_armor_many(file.trim_ascii_start())?.0.collect()
        } else {
            SignedPublicKey::from_bytes_many(BufReader::new(file))?.collect()
        }
    };
    read()
        .map_err(|error| UserError::runtime(format!("it is not an OpenPGP keyring: {error}")))
        .context("reading a key file")
}

/// The keys of a certificate that may have signed text, with what is to be held against them.
fn keys_of(certificate: &SignedPublicKey) -> Vec<Key> {
    let primary = &certificate.primary_key;
    let owner = certificate
        .details
        .users
        .first()
        .map_or_else(|| "no name".to_owned(), |user| String::from_utf8_lossy(user.id.id()).into_owned());
    let direct = certificate.details.direct_signatures.iter().filter(|signature| {
        signature.typ() == Some(SignatureType::Key) && strong(signature) && signature.verify_key(primary).is_ok()
    });
    let certifications = certificate.details.users.iter().flat_map(|user| {
        user.signatures.iter().filter(|signature| {
            signature.typ() != Some(SignatureType::CertRevocation)
                && strong(signature)
                && signature.verify_certification(primary, Tag::UserId, &user.id).is_ok()
        })
    });
    let newest = direct.chain(certifications).max_by_key(|signature| signature.created().map(|time| time.as_secs()));
    let revoked = certificate.details.revocation_signatures.iter().any(|signature| {
        signature.typ() == Some(SignatureType::KeyRevocation) && signature.verify_key(primary).is_ok()
    });
    let refused = match newest {
        _ if revoked => Some("the key has been revoked"),
        None => Some("the key does not vouch for itself"),
        Some(_) => None,
    };
    let created = i64::from(primary.created_at().as_secs());
    let expires = newest.and_then(|signature| expiry(created, signature));

    let mut keys = vec![Key {
        material: Material::Primary(Box::new(primary.clone())),
        owner: owner.clone(),
        created,
        expires,
        refused: refused.or_else(|| {
            newest.is_some_and(|signature| !may_sign(signature, true)).then_some("the key is not meant for signing")
        }),
    }];
    keys.extend(certificate.public_subkeys.iter().map(|subkey| {
        let mut key = subkey_of(subkey, primary, owner.clone());
        key.refused = refused.or(key.refused);
        // A subkey lives no longer than its certificate.
        key.expires = key.expires.into_iter().chain(expires).min();
        key
    }));
    keys
}

fn subkey_of(subkey: &SignedPublicSubKey, primary: &PublicKey, owner: String) -> Key {
    let valid = |kind: SignatureType| {
        subkey.signatures.iter().filter(move |signature| {
            signature.typ() == Some(kind) && signature.verify_subkey_binding(primary, &subkey.key).is_ok()
        })
    };
    let binding = valid(SignatureType::SubkeyBinding)
        .filter(|signature| strong(signature))
        .max_by_key(|signature| signature.created().map(|time| time.as_secs()));
    let created = i64::from(subkey.key.created_at().as_secs());
    let refused = match binding {
        _ if valid(SignatureType::SubkeyRevocation).next().is_some() => Some("the key has been revoked"),
        None => Some("the key does not vouch for itself"),
        Some(binding) if !may_sign(binding, false) => Some("the key is not meant for signing"),
        // A signing key must agree to belong here, or anybody could claim another's signatures.
        Some(binding) => {
            let agrees = binding
                .embedded_signature()
                .is_some_and(|back| strong(back) && back.verify_primary_key_binding(&subkey.key, primary).is_ok());
            (!agrees).then_some("the key does not vouch for itself")
        }
    };
    Key {
        material: Material::Subkey(Box::new(subkey.key.clone())),
        owner,
        created,
        expires: binding.and_then(|signature| expiry(created, signature)),
        refused,
    }
}

fn expiry(created: i64, signature: &Signature) -> Option<i64> {
    let lifetime = i64::from(signature.key_expiration_time()?.as_secs());
    (lifetime > 0).then_some(created + lifetime)
}

/// Whether the self-signature allows its key to sign text; `unsaid` is what holds where it does not say.
fn may_sign(signature: &Signature, unsaid: bool) -> bool {
    let said = signature
        .config()
        .is_some_and(|config| config.hashed_subpackets().any(|part| matches!(part.data, SubpacketData::KeyFlags(_))));
    if said { signature.key_flags().sign() } else { unsaid }
}

/// Whether a signature uses a hash function without known collisions.
fn strong(signature: &Signature) -> bool {
    use HashAlgorithm::*;
    matches!(signature.hash_alg(), Some(Sha256 | Sha384 | Sha512 | Sha3_256 | Sha3_512))
}

/// A day as people write it, from seconds since 1970.
fn date(seconds: i64) -> String {
    super::release::show_time(seconds).split_whitespace().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
pub(crate) mod tests;
