//! Keys and passwords, derived from the cluster's one secret: HKDF-SHA256 (RFC 5869) with a label for each use.

use super::{ClusterSpec, Secret};
use base64::{Engine as _, engine::general_purpose};
use ring::hkdf;
use zeroize::Zeroizing;

/// The least length of a cluster's secret, in bytes.
pub const SECRET_BYTES: usize = 32;

/// What a cluster's secret gives.
pub struct Keys<'a> {
    spec: &'a ClusterSpec,
    extracted: hkdf::Prk,
}

impl std::fmt::Debug for Keys<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(***)")
    }
}

/// The bytes of a cluster's secret; `None` if it is not base64.
pub fn decode_secret(secret: &Secret) -> Option<Zeroizing<Vec<u8>>> {
    let text = secret.expose().trim().trim_end_matches('=');
    let text = text.replace('-', "+").replace('_', "/");
    general_purpose::STANDARD_NO_PAD.decode(text).ok().map(Zeroizing::new)
}

impl<'a> Keys<'a> {
    /// The keys of the cluster `spec`, whose secret was checked: a secret that is not base64 is used as it is.
    pub fn new(spec: &'a ClusterSpec) -> Keys<'a> {
        let bytes =
            decode_secret(&spec.secret).unwrap_or_else(|| Zeroizing::new(spec.secret.expose().as_bytes().to_vec()));
        // The cluster's name salts, so that one secret given to two clusters by mistake gives them different keys.
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, format!("pgha-image/1/{}", spec.cluster).as_bytes());
        Keys { spec, extracted: salt.extract(&bytes) }
    }

    /// 32 bytes for the use `label`.
    pub fn bytes(&self, label: &str) -> Zeroizing<[u8; 32]> {
        let mut bytes = Zeroizing::new([0; 32]);
        let filled = self
            .extracted
            .expand(&[label.as_bytes()], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(bytes.as_mut_slice()));
        // HKDF-SHA256 gives up to 8160 bytes; 32 cannot be too many.
        debug_assert!(filled.is_ok());
        bytes
    }

    /// A name for the cluster that says nothing about its secret: 16 hexadecimal digits.
    pub fn identity(&self) -> String {
        self.bytes("identity")[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A password for the use `label`: 32 letters, digits, `-` and `_`; 192 bits.
    fn derived(&self, label: &str) -> Secret {
        Secret::new(general_purpose::URL_SAFE_NO_PAD.encode(&self.bytes(&format!("password/{label}"))[..24]))
    }

    fn given_or_derived(&self, given: Option<&Secret>, label: &str) -> Secret {
        given.cloned().unwrap_or_else(|| self.derived(label))
    }

    /// Of the role `postgres`.
    pub fn superuser(&self) -> Secret {
        self.given_or_derived(self.spec.passwords.superuser.as_ref(), "superuser")
    }

    /// Of the role `replicator`.
    pub fn replication(&self) -> Secret {
        self.given_or_derived(self.spec.passwords.replication.as_ref(), "replication")
    }

    /// Of the role `rewinder`.
    pub fn rewind(&self) -> Secret {
        self.given_or_derived(self.spec.passwords.rewind.as_ref(), "rewind")
    }

    /// Of the role `pgbouncer`, which looks up the passwords of others.
    pub fn pooler(&self) -> Secret {
        self.given_or_derived(self.spec.passwords.pooler.as_ref(), "pooler")
    }

    /// Of the user `patroni` of Patroni's REST interface.
    pub fn rest(&self) -> Secret {
        self.given_or_derived(self.spec.passwords.rest.as_ref(), "rest")
    }

    /// Of the user `admin` of HAProxy's statistics.
    pub fn statistics(&self) -> Secret {
        self.given_or_derived(self.spec.passwords.statistics.as_ref(), "statistics")
    }

    /// Of the role `name`, listed or not.
    pub fn user(&self, name: &str) -> Secret {
        let listed = self.spec.postgresql.users.iter().find(|user| user.name == name);
        self.given_or_derived(listed.and_then(|user| user.password.as_ref()), &format!("user/{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::samples;

    #[test]
    fn the_same_secret_gives_the_same_keys_for_ever() {
        // These values are promises: a change locks every existing cluster out of itself.
        let spec = samples::three();
        let keys = Keys::new(&spec);
        assert_eq!(keys.identity(), "12d36ecdd9623cec");
        assert_eq!(keys.superuser().expose(), "QdUJ_xyZ66HmdW_PNAABZHiWAzYeZLsD");
        assert_eq!(keys.user("app").expose(), "H9bR-mELn7HoKIal_UgOCDrRANM_jJpj");
    }

    #[test]
    fn every_use_and_every_cluster_has_its_own_key() {
        let spec = samples::three();
        let keys = Keys::new(&spec);
        let mut all = vec![
            keys.superuser(),
            keys.replication(),
            keys.rewind(),
            keys.pooler(),
            keys.rest(),
            keys.statistics(),
            keys.user("app"),
            keys.user("other"),
        ];
        let other = ClusterSpec { cluster: "other".into(), ..spec.clone() };
        all.push(Keys::new(&other).superuser());
        let mut texts: Vec<_> = all.iter().map(|secret| secret.expose().to_owned()).collect();
        assert!(texts.iter().all(|text| text.len() == 32));
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), all.len());
    }

    #[test]
    fn a_given_password_wins() {
        let mut spec = samples::three();
        spec.passwords.rest = Some(Secret::new("given-by-hand-1"));
        assert_eq!(Keys::new(&spec).rest().expose(), "given-by-hand-1");
    }

    #[test]
    fn hkdf_is_that_of_rfc_5869() {
        // Appendix A.1, whose output is 42 bytes long; the first 32 do not depend on that.
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, &(0..13).collect::<Vec<u8>>()).extract(&[0x0b; 22]);
        let info = (0xf0..0xfa).collect::<Vec<u8>>();
        let mut bytes = [0; 32];
        prk.expand(&[&info], hkdf::HKDF_SHA256).unwrap().fill(&mut bytes).unwrap();
        assert_eq!(bytes[..8], [0x3c, 0xb2, 0x5f, 0x25, 0xfa, 0xac, 0xd5, 0x7a]);
    }

    #[test]
    fn a_secret_is_read_in_either_alphabet() {
        let bytes = |text: &str| decode_secret(&Secret::new(text)).map(|bytes| bytes.to_vec());
        assert_eq!(bytes("+/8="), Some(vec![0xfb, 0xff]));
        assert_eq!(bytes("-_8"), Some(vec![0xfb, 0xff]));
        assert_eq!(bytes("no base64!"), None);
    }
}
