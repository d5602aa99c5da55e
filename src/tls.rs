//! TLS files of clients: PEM, read again when they change.

use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

/// The files of a client's side of TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TlsFiles {
    /// The certificates to trust; by default, the system's.
    pub ca: Option<PathBuf>,
    /// The client's certificate chain and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

impl TlsFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// When one cannot be read or is not PEM.
    pub fn load(&self) -> Result<TlsConfig> {
        let roots = match &self.ca {
            Some(path) => RootCerts::new_with_certs(&certificates(path)?),
            None => RootCerts::PlatformVerifier,
        };
        let client = match &self.certificate {
            Some((chain, key)) => {
                let pem = read(key)?;
                let key =
                    PrivateKey::from_pem(&pem).with_context(|| format!("reading the private key {}", key.display()))?;
                Some(ClientCert::new_with_certs(&certificates(chain)?, key))
            }
            None => None,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = TlsConfig::builder().root_certs(roots).client_cert(client);
        Ok(builder.unversioned_rustls_crypto_provider(provider).build())
    }

    /// When the files were last changed; differs after a rotation.
    pub fn stamps(&self) -> Vec<Option<SystemTime>> {
        let pair = self.certificate.iter().flat_map(|(certificate, key)| [certificate, key]);
        let files = self.ca.iter().chain(pair);
        files.map(|path| fs::metadata(path).and_then(|file| file.modified()).ok()).collect()
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>> {
    let pem = read(path)?;
    let items = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let certificates: Vec<_> = items.collect();
    if certificates.is_empty() {
        bail!("{} holds no certificate", path.display());
    }
    Ok(certificates)
}
