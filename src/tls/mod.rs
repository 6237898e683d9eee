//! The only place that builds TLS configurations.
//!
//! Between sidecars: TLS 1.3 with certificates on both sides, all issued by the cluster's own CA. A server always
//! presents a certificate for `node.walship`, whatever its address, so addresses may change and a reader's
//! certificate cannot serve. Towards PostgreSQL: see [`for_postgres`]. The provider is ring, named everywhere, as
//! the process has no default.

mod authority;
mod error;
mod identity;
mod postgres;

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig, version};
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub use authority::{Authority, Issued};
pub use error::{TlsError, explain};
pub use identity::{Identity, Kind, NameError, check_name};
pub use postgres::for_postgres;

use crate::clock::WallTime;

/// The name that every server's certificate carries.
const SERVER_NAME: &str = "node.walship";

/// The largest key or certificate file that is read.
const FILE_LIMIT_BYTES: u64 = 1 << 20;

/// Where a node's key and certificates lie.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Files {
    /// The CA's certificate; several are allowed, so that a CA can be replaced step by step.
    pub ca: PathBuf,
    /// The node's certificate.
    pub certificate: PathBuf,
    /// The node's private key, for nobody else to read.
    pub key: PathBuf,
}

impl Files {
    /// The usual names in a folder, which is `<store>/tls`.
    pub fn in_folder(folder: &Path) -> Files {
        Files {
            ca: folder.join("ca.pem"),
            certificate: folder.join("node.pem"),
            key: folder.join("node.key"),
        }
    }

    /// Where `init` leaves the CA's private key, in the same folder.
    pub fn authority_key(folder: &Path) -> PathBuf {
        folder.join("ca.key")
    }
}

/// A text with keys or certificates, and where it is from, for errors.
#[derive(Clone)]
pub struct Pem {
    origin: String,
    text: Vec<u8>,
}

impl Pem {
    /// A text that is no file of its own, such as a part of a join bundle: `origin` says which.
    pub fn new(origin: impl Into<String>, text: impl Into<Vec<u8>>) -> Pem {
        Pem { origin: origin.into(), text: text.into() }
    }

    /// Reads a certificate file. Blocks.
    pub fn read(path: &Path) -> Result<Pem, TlsError> {
        let failed = |source| TlsError::Unreadable { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(failed)?;
        let mut text = Vec::new();
        file.take(FILE_LIMIT_BYTES).read_to_end(&mut text).map_err(failed)?;
        Ok(Pem { origin: path.display().to_string(), text })
    }

    /// Reads a private key file, which nobody but its owner may be able to read. Blocks.
    pub fn read_key(path: &Path) -> Result<Pem, TlsError> {
        let failed = |source| TlsError::Unreadable { path: path.to_owned(), source };
        let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TlsError::KeyIsOpen { path: path.to_owned(), mode });
        }
        Pem::read(path)
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let wrong =
            |reason: String| TlsError::NotPem { origin: self.origin.clone(), what: "certificate", reason };
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.text).collect();
        let found = found.map_err(|e| wrong(e.to_string()))?;
        if found.is_empty() { Err(wrong("there is none in it".to_owned())) } else { Ok(found) }
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(&self.text).map_err(|e| TlsError::NotPem {
            origin: self.origin.clone(),
            what: "private key",
            reason: e.to_string(),
        })
    }
}

/// What a process shows to its peers and accepts from them. Certificates are replaced by loading another one of
/// these and using it for the next connection.
#[derive(Clone, Debug)]
pub struct Credentials {
    identity: Identity,
    authority_expires: WallTime,
    /// `None` for a reader, which does not serve.
    server: Option<Arc<ServerConfig>>,
    client: Arc<ClientConfig>,
}

impl Credentials {
    /// Reads and checks the files: certificate and key belong together, are valid now and were issued by the CA.
    /// Blocks.
    pub fn load(files: &Files, now: WallTime) -> Result<Credentials, TlsError> {
        let (ca, certificate) = (Pem::read(&files.ca)?, Pem::read(&files.certificate)?);
        Credentials::from_pem(&ca, &certificate, &Pem::read_key(&files.key)?, now)
    }

    /// The same for texts that are already here.
    pub fn from_pem(ca: &Pem, certificate: &Pem, key: &Pem, now: WallTime) -> Result<Credentials, TlsError> {
        let chain = certificate.certificates()?;
        let identity = Identity::of_certificate(&chain[0])
            .map_err(|reason| TlsError::NotOurs { origin: certificate.origin.clone(), reason })?;
        let (roots, authority_expires) = trusted_roots(ca, now)?;
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build().map_err(|e| {
                TlsError::NotPem { origin: ca.origin.clone(), what: "CA certificate", reason: e.to_string() }
            })?;
        check_chain(&*verifier, &chain, &identity, certificate, ca, now)?;
        let certified = CertifiedKey::from_der(chain, key.key()?, &provider())
            .map_err(|source| TlsError::key(certificate.origin.clone(), key.origin.clone(), source))?;
        let certified = Arc::new(SingleCertAndKey::from(certified));
        let server = match identity.kind {
            Kind::Node => Some(Arc::new(server_config(verifier, certified.clone())?)),
            Kind::Reader => None,
        };
        let client = Arc::new(client_config(roots, certified)?);
        Ok(Credentials { identity, authority_expires, server, client })
    }

    /// Who this is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// When the CA that vouches for all peers expires; of several, the last.
    pub fn authority_expires(&self) -> WallTime {
        self.authority_expires
    }

    /// What dials peers.
    pub fn connector(&self) -> TlsConnector {
        TlsConnector::from(self.client.clone())
    }

    /// What accepts peers; a reader's certificate cannot.
    pub fn acceptor(&self) -> Result<TlsAcceptor, TlsError> {
        let config = self.server.clone().ok_or(TlsError::ReaderCannotServe)?;
        Ok(TlsAcceptor::from(config))
    }
}

/// The name to pass to [`TlsConnector::connect`], whatever the address.
pub fn server_name() -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(SERVER_NAME)
        .map_err(|e| TlsError::Configuration(rustls::Error::General(e.to_string())))
}

/// Who is at the other end of a connection whose handshake is done.
pub fn peer_identity(certificates: Option<&[CertificateDer<'_>]>) -> Result<Identity, TlsError> {
    let wrong = |reason: String| TlsError::NotOurs { origin: "the peer's certificate".to_owned(), reason };
    let leaf = certificates.and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| wrong("none was presented".to_owned()))?;
    Identity::of_certificate(leaf).map_err(wrong)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// All CA certificates that are still valid, and when the last of them expires.
fn trusted_roots(ca: &Pem, now: WallTime) -> Result<(Arc<RootCertStore>, WallTime), TlsError> {
    let mut roots = RootCertStore::empty();
    let mut last_expiry = WallTime { unix_micros: i64::MIN };
    for certificate in ca.certificates()? {
        let wrong =
            |reason: String| TlsError::NotPem { origin: ca.origin.clone(), what: "CA certificate", reason };
        let expires = identity::expiry(&certificate).map_err(wrong)?;
        last_expiry = last_expiry.max(expires);
        if expires > now {
            roots.add(certificate).map_err(|e| wrong(e.to_string()))?;
        }
    }
    if roots.is_empty() {
        return Err(TlsError::Expired { origin: ca.origin.clone(), since: last_expiry });
    }
    Ok((Arc::new(roots), last_expiry))
}

/// Checks our own certificate as a peer would.
fn check_chain(
    verifier: &dyn ClientCertVerifier,
    chain: &[CertificateDer<'_>],
    identity: &Identity,
    certificate: &Pem,
    ca: &Pem,
    now: WallTime,
) -> Result<(), TlsError> {
    let seconds = u64::try_from(now.unix_seconds()).unwrap_or(0);
    let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let checked = verifier.verify_client_cert(&chain[0], &chain[1..], now);
    checked.map(|_| ()).map_err(|source| {
        let origin = certificate.origin.clone();
        TlsError::of_own_certificate(origin, ca.origin.clone(), identity.expires, source)
    })
}

fn server_config(
    verifier: Arc<dyn ClientCertVerifier>,
    certified: Arc<SingleCertAndKey>,
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsError::Configuration)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certified);
    // No resumption: connections are few, and each one is to check the certificates anew.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_config(
    roots: Arc<RootCertStore>,
    certified: Arc<SingleCertAndKey>,
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsError::Configuration)?
        .with_root_certificates(roots)
        .with_client_cert_resolver(certified);
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

#[cfg(test)]
mod tests;
