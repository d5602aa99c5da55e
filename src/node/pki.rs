//! The cluster's certificate authority, and the certificates of this node.
//!
//! Every node derives the authority from the cluster's secret, bit for bit the same: its key is ECDSA P-256 and signs
//! without random numbers (RFC 6979), its dates and serial number are fixed. (Ed25519 would be simpler, but libpq cannot
//! log in over a certificate signed with it: SCRAM's channel binding, RFC 5929, has no digest for it.) Keys of
//! certificates are ECDSA P-256 too, made on the node; they never leave it.
//!
//! | file | for | says |
//! |---|---|---|
//! | `etcd.pem` | etcd, towards clients and peers | server and client |
//! | `server.pem` | PostgreSQL, Patroni's REST interface | server |
//! | `pooler.pem` | PgBouncer, behind HAProxy on every node: names all of them | server |
//! | `haproxy.pem` | HAProxy's statistics | server |
//! | `client.pem` | Patroni, confd, this program, replicas | client, without a name (see [`crate::etcd`]) |
//!
//! Each file holds key and certificate together, so that one rename replaces both: no power cut parts them. Its first
//! line, which PEM readers pass over, says for what it was made; a file that says anything else is made again.

use crate::{
    clock::Civil,
    error::UserError,
    files::NewFile,
    model::{ClusterSpec, Node, keys::Keys, scope::TLS_PATH},
};
use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber, date_time_ymd,
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use zeroize::Zeroizing;

/// How long a certificate holds.
pub const LIFE: Duration = Duration::from_secs(90 * 86_400);
/// How long before its end a certificate is renewed.
pub const MARGIN: Duration = Duration::from_secs(30 * 86_400);

/// The authority: its certificate and what signs in its name.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, Signer>,
}

/// What signs in the authority's name.
enum Signer {
    Derived(p256::ecdsa::SigningKey, Vec<u8>),
    Given(KeyPair),
}

impl Signer {
    fn derived(keys: &Keys<'_>) -> Result<Signer> {
        // One number in 2^32 is not a key of this curve.
        let key = (0..8)
            .find_map(|round| {
                p256::ecdsa::SigningKey::from_slice(keys.bytes(&format!("authority/key/{round}")).as_slice()).ok()
            })
            .context("deriving the certificate authority's key")?;
        let public = key.verifying_key().to_encoded_point(false).as_bytes().to_vec();
        Ok(Signer::Derived(key, public))
    }
}

impl rcgen::PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        match self {
            Signer::Derived(_, public) => public,
            Signer::Given(key) => key.der_bytes(),
        }
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        match self {
            Signer::Derived(..) => &rcgen::PKCS_ECDSA_P256_SHA256,
            Signer::Given(key) => key.algorithm(),
        }
    }
}

impl rcgen::SigningKey for Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        match self {
            Signer::Derived(key, _) => {
                let signature: p256::ecdsa::Signature = p256::ecdsa::signature::Signer::sign(key, message);
                Ok(signature.to_der().as_bytes().to_vec())
            }
            Signer::Given(key) => key.sign(message),
        }
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

/// What one certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purpose {
    /// The file, below [`TLS_PATH`].
    pub file: &'static str,
    /// The owner of the file, by name.
    pub owner: &'static str,
    /// The units that read it again when they are reloaded; etcd reads it for every connection.
    pub readers: &'static [&'static str],
    server: bool,
    client: bool,
    /// Whether clients reach it by the names of the other nodes too.
    shared: bool,
}

/// Every certificate of a node.
pub const PURPOSES: [Purpose; 5] = [
    Purpose { file: "etcd.pem", owner: "etcd", readers: &[], server: true, client: true, shared: false },
    Purpose {
        file: "server.pem",
        owner: "postgres",
        readers: &["patroni.service"],
        server: true,
        client: false,
        shared: false,
    },
    Purpose {
        file: "pooler.pem",
        owner: "postgres",
        readers: &["pgbouncer.service"],
        server: true,
        client: false,
        shared: true,
    },
    Purpose {
        file: "haproxy.pem",
        owner: "root",
        readers: &["haproxy.service"],
        server: true,
        client: false,
        shared: false,
    },
    Purpose {
        file: "client.pem",
        owner: "postgres",
        readers: &["patroni.service"],
        server: false,
        client: true,
        shared: false,
    },
];

/// The file of the authority's certificate, below [`TLS_PATH`].
pub const AUTHORITY_FILE: &str = "ca.crt";

/// What a file's first line says about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Label {
    cluster: String,
    authority: String,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    /// Days since 1970.
    until: u64,
}

const LABEL: &str = "# pgha-node: ";

impl Authority {
    /// The authority of the cluster `spec`: the provided one, else the derived one.
    ///
    /// # Errors
    /// A wrong request when what is provided is not a certificate with its key.
    pub fn of(spec: &ClusterSpec) -> Result<Authority> {
        match &spec.authority {
            Some(given) => Authority::provided(&given.certificate, given.key.expose()).map_err(|reason| {
                UserError::usage(format!("the provided certificate authority cannot be used: {reason}")).into()
            }),
            None => Authority::derived(spec),
        }
    }

    fn derived(spec: &ClusterSpec) -> Result<Authority> {
        let keys = Keys::new(spec);
        let key = Signer::derived(&keys)?;
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "pgha-image");
        name.push(DnType::CommonName, format!("{} {}", spec.cluster, keys.identity()));
        let mut params = CertificateParams::default();
        params.distinguished_name = name;
        params.serial_number = Some(serial(keys.bytes("authority/serial").as_slice()));
        // Fixed, so that all nodes agree whatever their clocks say; RFC 5280, section 4.1.2.5, has no later date.
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(9999, 12, 31);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).context("signing the certificate authority's certificate")?.pem();
        Ok(Authority { certificate, issuer: Issuer::new(params, key) })
    }

    fn provided(certificate: &str, key: &str) -> Result<Authority, String> {
        use rustls::pki_types::{CertificateDer, pem::PemObject as _};
        let key = KeyPair::from_pem(key).map_err(|_| "its key is not understood (PKCS #8 in PEM is needed)")?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|error| error.to_string())?;
        if key.algorithm() == &rcgen::PKCS_ED25519 {
            return Err("its key is Ed25519, with which libpq cannot log in (use ECDSA P-256 or RSA)".to_owned());
        }
        let public = key.public_key_raw();
        if !der.windows(public.len()).any(|window| window == public) {
            return Err("its certificate is not that of its key".to_owned());
        }
        let issuer = Issuer::from_ca_cert_der(&der, Signer::Given(key)).map_err(|error| error.to_string())?;
        Ok(Authority { certificate: format!("{}\n", certificate.trim()), issuer })
    }

    /// Its certificate, in PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    fn fingerprint(&self) -> String {
        crate::model::Digest::of(self.certificate.as_bytes()).to_string()
    }

    /// A new key and its certificate, in PEM, after the line that labels them.
    fn issue(&self, label: &Label, purpose: &Purpose) -> Result<Zeroizing<String>> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).context("making a key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if purpose.server {
            params.distinguished_name.push(DnType::CommonName, label.names[0].as_str());
        }
        for name in &label.names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().context("naming a host")?));
        }
        params.subject_alt_names.extend(label.addresses.iter().copied().map(SanType::IpAddress));
        let mut random = [0; 16];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random)
            .map_err(|_| anyhow::anyhow!("the system has no random numbers"))?;
        params.serial_number = Some(serial(&random));
        // Valid from long ago, since the clocks of nodes that boot together may differ by anything.
        params.not_before = date_time_ymd(2000, 1, 1);
        let until = Civil::from_unix(i64::try_from(label.until * 86_400).unwrap_or(i64::MAX), 0);
        params.not_after = date_time_ymd(i32::try_from(until.year).unwrap_or(9999), until.month, until.day);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if purpose.server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if purpose.client {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).context("signing a certificate")?;
        let label = serde_json::to_string(label)?;
        let key = Zeroizing::new(key.serialize_pem());
        Ok(Zeroizing::new(format!("{LABEL}{label}\n{}{}", *key, certificate.pem())))
    }
}

/// A positive serial number (RFC 5280, section 4.1.2.2).
fn serial(bytes: &[u8]) -> SerialNumber {
    let mut bytes = bytes[..16].to_vec();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// What one of a node's certificates is to say.
fn label(node: &Node, purpose: &Purpose, authority: &Authority, now: SystemTime) -> Label {
    let (spec, member) = (&node.spec, node.member());
    let loopback: IpAddr =
        if member.address.is_ipv6() { [0, 0, 0, 0, 0, 0, 0, 1].into() } else { [127, 0, 0, 1].into() };
    let mut names = vec![member.name.clone(), "localhost".to_owned()];
    let mut addresses = vec![member.address, loopback];
    addresses.extend(spec.vip.iter().map(|vip| vip.address.address));
    if purpose.shared {
        let others = node.peers();
        names.extend(others.clone().map(|other| other.name.clone()));
        addresses.extend(others.map(|other| other.address));
    }
    let end = now.duration_since(UNIX_EPOCH).unwrap_or_default() + LIFE;
    Label {
        cluster: Keys::new(spec).identity(),
        authority: authority.fingerprint(),
        names,
        addresses,
        until: end.as_secs() / 86_400,
    }
}

/// The certificates of one node and where they lie.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    /// Numeric ids of an owner's user and group.
    owners: fn(&str) -> Result<(u32, u32)>,
}

impl Store {
    /// The node's own.
    pub fn of_the_node() -> Store {
        Store { folder: PathBuf::from(TLS_PATH), owners: super::apply::ids_of_user }
    }

    /// Those of a node whose files lie elsewhere and belong to whoever runs this.
    pub fn at(folder: &Path) -> Store {
        let me = |_: &str| Ok((rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()));
        Store { folder: folder.to_owned(), owners: me }
    }

    /// Makes what is missing, made for something else, or nearer its end than [`MARGIN`]. Returns what it made.
    ///
    /// # Errors
    /// When keys cannot be made or files not be written.
    pub fn ensure(&self, node: &Node, authority: &Authority, now: SystemTime) -> Result<Vec<&'static Purpose>> {
        fs::create_dir_all(&self.folder).with_context(|| format!("making the folder {}", self.folder.display()))?;
        let ca = self.folder.join(AUTHORITY_FILE);
        let mut all = false;
        if fs::read(&ca).ok().as_deref() != Some(authority.certificate.as_bytes()) {
            publish(&ca, authority.certificate.as_bytes(), 0o644, (self.owners)("root")?)?;
            all = true;
        }
        let mut made = Vec::new();
        for purpose in &PURPOSES {
            let wanted = label(node, purpose, authority, now);
            let path = self.folder.join(purpose.file);
            if !all && good(&path, &wanted) {
                continue;
            }
            let text = authority.issue(&wanted, purpose)?;
            publish(&path, text.as_bytes(), 0o600, (self.owners)(purpose.owner)?)?;
            made.push(purpose);
        }
        Ok(made)
    }
}

/// Whether the file at `path` was made for what is wanted, and will hold for a while.
fn good(path: &Path, wanted: &Label) -> bool {
    let Ok(text) = fs::read_to_string(path).map(Zeroizing::new) else { return false };
    let first = text.lines().next().unwrap_or_default();
    let Some(found) = first.strip_prefix(LABEL).and_then(|json| serde_json::from_str::<Label>(json).ok()) else {
        return false;
    };
    let margin = (LIFE - MARGIN).as_secs() / 86_400;
    // Also one that ends later than any made today: it was made while the clock was ahead.
    let lasts = wanted.until - margin < found.until && found.until <= wanted.until;
    lasts && Label { until: wanted.until, ..found } == *wanted
}

fn publish(path: &Path, bytes: &[u8], mode: u32, (user, group): (u32, u32)) -> Result<()> {
    use std::os::unix::fs::{PermissionsExt as _, fchown};
    let mut new = NewFile::beside(path)?;
    new.write_all(bytes).with_context(|| format!("writing {}", path.display()))?;
    new.file().set_permissions(fs::Permissions::from_mode(mode))?;
    fchown(new.file(), Some(user), Some(group)).with_context(|| format!("giving {} to its owner", path.display()))?;
    new.publish(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{exec::Run, model::samples};

    fn nobody(_: &str) -> Result<(u32, u32)> {
        Ok((rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()))
    }

    fn day(number: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(number * 86_400)
    }

    fn files(made: &[&Purpose]) -> Vec<&'static str> {
        made.iter().map(|purpose| purpose.file).collect()
    }

    const ALL: [&str; 5] = ["etcd.pem", "server.pem", "pooler.pem", "haproxy.pem", "client.pem"];

    #[test]
    fn every_node_derives_the_same_authority() {
        let spec = samples::three();
        let first = Authority::of(&spec).unwrap();
        assert_eq!(first.certificate(), Authority::of(&spec).unwrap().certificate());
        // A promise: another value would part new nodes from old ones.
        assert_eq!(first.fingerprint(), "sha256:b5b1f45cb2a17afcbf12408d154cffe38a545627cffbc875b87dbd9138576626");
        let other = ClusterSpec { cluster: "other".into(), ..spec };
        assert_ne!(first.certificate(), Authority::of(&other).unwrap().certificate());
    }

    #[test]
    fn certificates_are_made_once_and_renewed_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store { folder: folder.path().to_owned(), owners: nobody };
        let spec = samples::three();
        let authority = Authority::of(&spec).unwrap();
        let ensure = |spec: &ClusterSpec, at| {
            store.ensure(&Node::new(spec.clone(), 0), &Authority::of(spec).unwrap(), day(at)).unwrap()
        };
        assert_eq!(files(&ensure(&spec, 20_000)), ALL);
        let key = fs::read(folder.path().join("server.pem")).unwrap();
        assert_eq!(files(&ensure(&spec, 20_000)), [""; 0]);
        assert_eq!(files(&ensure(&spec, 20_059)), [""; 0]);
        assert_eq!(key, fs::read(folder.path().join("server.pem")).unwrap());
        assert_eq!(files(&ensure(&spec, 20_060)), ALL);
        // The clock was ahead and is put right.
        assert_eq!(files(&ensure(&spec, 19_000)), ALL);
        fs::write(folder.path().join("client.pem"), "").unwrap();
        assert_eq!(files(&ensure(&spec, 19_000)), ["client.pem"]);
        let moved = ClusterSpec { vip: None, ..spec.clone() };
        assert_eq!(files(&ensure(&moved, 19_000)), ALL);
        let text = fs::read_to_string(folder.path().join(AUTHORITY_FILE)).unwrap();
        assert_eq!(text, authority.certificate());
    }

    #[test]
    fn openssl_agrees_with_names_uses_and_chain() {
        let openssl = |arguments: &[&str]| Run::new("openssl").args(arguments.iter().copied()).text();
        if !crate::testing::require_program("openssl") {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let store = Store { folder: folder.path().to_owned(), owners: nobody };
        let spec = samples::three();
        store.ensure(&Node::new(spec.clone(), 1), &Authority::of(&spec).unwrap(), SystemTime::now()).unwrap();
        let path = |file: &str| folder.path().join(file).to_str().unwrap().to_owned();
        for (file, purposes) in [
            ("etcd.pem", &["sslserver", "sslclient"][..]),
            ("server.pem", &["sslserver"]),
            ("pooler.pem", &["sslserver"]),
            ("haproxy.pem", &["sslserver"]),
            ("client.pem", &["sslclient"]),
        ] {
            for purpose in ["sslserver", "sslclient"] {
                let outcome =
                    openssl(&["verify", "-x509_strict", "-CAfile", &path("ca.crt"), "-purpose", purpose, &path(file)]);
                assert_eq!(outcome.is_ok(), purposes.contains(&purpose), "{file} {purpose} {outcome:?}");
            }
            let text = openssl(&["x509", "-in", &path(file), "-noout", "-ext", "subjectAltName", "-subject"]).unwrap();
            for part in
                ["DNS:pg-2", "DNS:localhost", "IP Address:10.0.0.12", "IP Address:10.0.0.10", "IP Address:127.0.0.1"]
            {
                assert!(text.contains(part), "{file}: {text}");
            }
            assert_eq!(
                text.contains("DNS:pg-3") && text.contains("IP Address:10.0.0.13"),
                file == "pooler.pem",
                "{text}"
            );
            assert_eq!(text.contains("CN"), file != "client.pem", "{text}");
            openssl(&["pkey", "-in", &path(file), "-noout"]).unwrap();
        }
    }

    #[test]
    fn a_provided_authority_signs_instead() {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        let given = |certificate: &str, key: &str| crate::model::AuthoritySpec {
            certificate: certificate.to_owned(),
            key: crate::model::Secret::new(key),
        };
        let mut spec = samples::three();
        spec.authority = Some(given(&certificate, &key.serialize_pem()));
        assert_eq!(Authority::of(&spec).unwrap().certificate(), certificate.trim().to_owned() + "\n");
        let other = KeyPair::generate().unwrap();
        spec.authority = Some(given(&certificate, &other.serialize_pem()));
        let error = format!("{:#}", Authority::of(&spec).unwrap_err());
        assert_eq!(error, "the provided certificate authority cannot be used: its certificate is not that of its key");
    }
}
