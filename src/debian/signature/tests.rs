use super::*;
use crate::error::report;
use pgp::{
    composed::{ArmorOptions, KeyType, SecretKeyParamsBuilder, SignedKeyDetails, SignedSecretKey},
    crypto::public_key::PublicKeyAlgorithm,
    packet::{KeyFlags, SignatureConfig, Subpacket, UserId},
    ser::Serialize as _,
    types::{Duration, Password, SignedUser, Timestamp},
};
use rand::{SeedableRng as _, rngs::StdRng};

/// 2026-09-12 00:00:00 UTC.
pub(crate) const NOW: i64 = 1_789_171_200;
const DAY: i64 = 86_400;
pub(crate) const TEXT: &str = "Suite: stable\n- with a dash\n\nlast  line";

/// A signing key that is the same on every run.
pub(crate) struct TestKey {
    secret: SignedSecretKey,
    created: i64,
}

impl TestKey {
    pub(crate) fn new(seed: u64, created: i64) -> TestKey {
        let params = SecretKeyParamsBuilder::default()
            .key_type(KeyType::Ed25519Legacy)
            .can_sign(true)
            .created_at(Timestamp::from_secs(created as u32))
            .primary_user_id("unused".into())
            .build()
            .unwrap();
        TestKey { secret: params.generate(StdRng::seed_from_u64(seed)).unwrap(), created }
    }

    fn config(&self, kind: SignatureType, hash: HashAlgorithm, made: i64) -> SignatureConfig {
        let mut config = SignatureConfig::v4(kind, PublicKeyAlgorithm::EdDSALegacy, hash);
        config.hashed_subpackets = vec![
            Subpacket::regular(SubpacketData::SignatureCreationTime(Timestamp::from_secs(made as u32))).unwrap(),
            Subpacket::regular(SubpacketData::IssuerFingerprint(self.secret.primary_key.fingerprint())).unwrap(),
        ];
        config
    }

    /// The certificate with a self-signature of the given hash, expiry and right to sign.
    fn certificate(&self, hash: HashAlgorithm, expires: Option<i64>, signs: bool) -> SignedPublicKey {
        let public = self.secret.primary_key.public_key().clone();
        let id = UserId::from_str(Default::default(), "Example Archive <archive@archive.example>").unwrap();
        let mut config = self.config(SignatureType::CertPositive, hash, self.created);
        let mut flags = KeyFlags::default();
        flags.set_certify(true);
        flags.set_sign(signs);
        config.hashed_subpackets.push(Subpacket::regular(SubpacketData::KeyFlags(flags)).unwrap());
        if let Some(expires) = expires {
            let lifetime = Duration::from_secs((expires - self.created) as u32);
            config.hashed_subpackets.push(Subpacket::regular(SubpacketData::KeyExpirationTime(lifetime)).unwrap());
        }
        let signature =
            config.sign_certification(&self.secret.primary_key, &public, &Password::empty(), Tag::UserId, &id).unwrap();
        let details = SignedKeyDetails::new(vec![], vec![], vec![SignedUser::new(id, vec![signature])], vec![]);
        SignedPublicKey::new(public, details, vec![])
    }

    /// The certificate as a binary file.
    pub(crate) fn public(&self, expires: Option<i64>) -> Vec<u8> {
        self.certificate(HashAlgorithm::Sha512, expires, true).to_bytes().unwrap()
    }

    fn signature(&self, text: &str, made: i64, hash: HashAlgorithm) -> Signature {
        self.config(SignatureType::Text, hash, made)
            .sign(&self.secret.primary_key, &Password::empty(), text.as_bytes())
            .unwrap()
    }

    /// `text` as an `InRelease` file signed at `made`.
    pub(crate) fn sign(&self, text: &str, made: i64) -> String {
        armor(text, vec![self.signature(text, made, HashAlgorithm::Sha256)])
    }
}

fn armor(text: &str, signatures: Vec<Signature>) -> String {
    CleartextSignedMessage::new_many(text, |_| Ok(signatures))
        .unwrap()
        .to_armored_string(ArmorOptions::default())
        .unwrap()
}

/// The same signature, saying that it rests on SHA-1.
fn weaken(signature: Signature) -> Signature {
    let mut config = signature.config().unwrap().clone();
    config.hash_alg = HashAlgorithm::Sha1;
    Signature::from_config(config, signature.signed_hash_value().unwrap(), signature.signature().unwrap().clone())
        .unwrap()
}

fn ring(keys: &[Vec<u8>]) -> Keyring {
    Keyring::read(keys.iter().map(Vec::as_slice)).unwrap()
}

fn refused(keyring: &Keyring, document: &str) -> String {
    report(&keyring.verify(document.as_bytes(), NOW).unwrap_err())
}

#[test]
fn the_text_returned_is_exactly_what_was_signed() {
    let key = TestKey::new(1, NOW - DAY);
    let keyring = ring(&[key.public(None)]);
    let document = key.sign(TEXT, NOW);
    assert!(document.contains("\n- - with a dash\n"));
    assert_eq!(keyring.verify(document.as_bytes(), NOW).unwrap(), TEXT);
    for smuggled in [format!("Suite: evil\n{document}"), format!("{document}\nSuite: evil\n")] {
        assert!(keyring.verify(smuggled.as_bytes(), NOW).is_err(), "{smuggled}");
    }
}

#[test]
fn armored_keys_and_one_good_signature_of_several_suffice() {
    let (known, other) = (TestKey::new(1, NOW - DAY), TestKey::new(2, NOW - DAY));
    let certificate = known.certificate(HashAlgorithm::Sha256, Some(NOW + 1), true);
    let keyring = ring(&[certificate.to_armored_bytes(ArmorOptions::default()).unwrap()]);
    let signatures = [&other, &known].map(|key| key.signature(TEXT, NOW, HashAlgorithm::Sha512));
    keyring.verify(armor(TEXT, signatures.into()).as_bytes(), NOW).unwrap();
}

#[test]
fn a_changed_text_is_a_bad_signature() {
    let key = TestKey::new(1, NOW - DAY);
    let changed = key.sign(TEXT, NOW).replace("stable", "unstable");
    insta::assert_snapshot!(refused(&ring(&[key.public(None)]), &changed));
}

#[test]
fn a_signature_by_another_key_names_both() {
    let (known, other) = (TestKey::new(1, NOW - DAY), TestKey::new(2, NOW - DAY));
    insta::assert_snapshot!(refused(&ring(&[known.public(None)]), &other.sign(TEXT, NOW)));
}

#[test]
fn an_expired_key_is_refused() {
    let key = TestKey::new(1, NOW - 9 * DAY);
    insta::assert_snapshot!(refused(&ring(&[key.public(Some(NOW - DAY))]), &key.sign(TEXT, NOW - 2 * DAY)));
}

#[test]
fn a_document_without_signature_is_refused() {
    let keyring = ring(&[TestKey::new(1, NOW - DAY).public(None)]);
    insta::assert_snapshot!(refused(&keyring, TEXT));
    let key = TestKey::new(1, NOW - DAY);
    let document = key.sign(TEXT, NOW);
    let cut = &document[..document.len() / 2];
    assert!(refused(&keyring, cut).starts_with("error: its signature cannot be read: "), "{}", refused(&keyring, cut));
}

#[test]
fn broken_hashes_wrong_dates_and_wrong_purposes_are_refused() {
    let key = TestKey::new(1, NOW - DAY);
    let keyring = ring(&[key.public(None)]);
    let weak = armor(TEXT, vec![weaken(key.signature(TEXT, NOW, HashAlgorithm::Sha256))]);
    insta::assert_snapshot!(refused(&keyring, &weak));
    let reason = |message: String| message.lines().next().unwrap().rsplit(": ").next().unwrap().to_owned();
    assert_eq!(
        reason(refused(&keyring, &key.sign(TEXT, NOW + 2 * DAY))),
        "the signature is dated 2026-09-14, which is to come"
    );
    assert_eq!(reason(refused(&keyring, &key.sign(TEXT, NOW - 2 * DAY))), "the signature is older than its key");
    let mut weakly_bound = key.certificate(HashAlgorithm::Sha256, None, true);
    let self_signature = &mut weakly_bound.details.users[0].signatures[0];
    *self_signature = weaken(self_signature.clone());
    let weakly_bound = ring(&[weakly_bound.to_bytes().unwrap()]);
    assert_eq!(reason(refused(&weakly_bound, &key.sign(TEXT, NOW))), "the key does not vouch for itself");
    let not_for_signing = key.certificate(HashAlgorithm::Sha256, None, false).to_bytes().unwrap();
    assert_eq!(reason(refused(&ring(&[not_for_signing]), &key.sign(TEXT, NOW))), "the key is not meant for signing");
}

#[test]
fn a_revoked_key_is_refused() {
    let key = TestKey::new(1, NOW - DAY);
    let mut certificate = key.certificate(HashAlgorithm::Sha256, None, true);
    let public = certificate.primary_key.clone();
    let revocation = key
        .config(SignatureType::KeyRevocation, HashAlgorithm::Sha256, NOW)
        .sign_key(&key.secret.primary_key, &Password::empty(), &public)
        .unwrap();
    certificate.details.revocation_signatures.push(revocation);
    let message = refused(&ring(&[certificate.to_bytes().unwrap()]), &key.sign(TEXT, NOW));
    assert!(message.contains("the key has been revoked"), "{message}");
}

#[test]
fn a_subkey_signs_only_if_it_agrees_to_belong_to_its_certificate() {
    let (key, sub) = (TestKey::new(1, NOW - DAY), TestKey::new(2, NOW - DAY));
    let primary = key.secret.primary_key.public_key().clone();
    let subkey = PublicSubkey::from_inner(
        pgp::packet::PubKeyInner::new(
            sub.secret.primary_key.version(),
            sub.secret.primary_key.algorithm(),
            sub.secret.primary_key.created_at(),
            None,
            sub.secret.primary_key.public_params().clone(),
        )
        .unwrap(),
    )
    .unwrap();
    let mut flags = KeyFlags::default();
    flags.set_sign(true);
    let back = sub
        .config(SignatureType::KeyBinding, HashAlgorithm::Sha256, NOW)
        .sign_primary_key_binding(&sub.secret.primary_key, &subkey, &Password::empty(), &primary)
        .unwrap();
    let certificate = |agrees: bool| {
        let mut config = key.config(SignatureType::SubkeyBinding, HashAlgorithm::Sha256, NOW);
        config.hashed_subpackets.push(Subpacket::regular(SubpacketData::KeyFlags(flags.clone())).unwrap());
        if agrees {
            let embedded = SubpacketData::EmbeddedSignature(Box::new(back.clone()));
            config.unhashed_subpackets.push(Subpacket::regular(embedded).unwrap());
        }
        let binding =
            config.sign_subkey_binding(&key.secret.primary_key, &primary, &Password::empty(), &subkey).unwrap();
        let mut certificate = key.certificate(HashAlgorithm::Sha256, None, false);
        certificate.public_subkeys.push(SignedPublicSubKey::new(subkey.clone(), vec![binding]));
        certificate.to_bytes().unwrap()
    };
    let document = sub.sign(TEXT, NOW);
    ring(&[certificate(true)]).verify(document.as_bytes(), NOW).unwrap();
    assert!(refused(&ring(&[certificate(false)]), &document).contains("does not vouch for itself"));
}

#[test]
fn a_file_without_keys_is_refused() {
    for file in [&b""[..], b"not a key", b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n"] {
        assert!(Keyring::read([file]).is_err());
    }
}

#[test]
fn the_keys_that_come_along_are_those_that_their_description_names() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/keys");
    let described = std::fs::read_to_string(folder.join("README.md")).unwrap();
    let mut count = 0;
    for path in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.extension().is_none_or(|extension| extension != "asc") {
            continue;
        }
        let keyring = ring(&[std::fs::read(&path).unwrap()]);
        let name = path.file_name().unwrap().to_str().unwrap();
        let line = format!("| `{name}` | `{}` |", keyring.keys[0].fingerprint());
        assert!(described.contains(&line), "{line}");
        assert!(keyring.keys.iter().any(|key| key.refused.is_none()), "{name}");
        count += 1;
    }
    assert_eq!(count, 6);
}
