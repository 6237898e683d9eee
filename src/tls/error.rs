//! What can be wrong with keys, certificates and TLS handshakes, and what to do about it.

use std::io;
use std::path::PathBuf;

use tokio_rustls::rustls::{self, AlertDescription, CertificateError};

use super::NameError;
use crate::clock::WallTime;

/// A key, a certificate or a configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that is missing or not ours to read.
    #[error("read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A private key that others can read.
    #[error("the private key {} can be read by others (mode {mode:04o})", path.display())]
    KeyIsOpen {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A text that does not hold what it should.
    #[error("{origin} holds no usable {what}: {reason}")]
    NotPem {
        /// The file.
        origin: String,
        /// What was looked for.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate that was made for something else.
    #[error("{origin} does not identify a walship node: {reason}")]
    NotOurs {
        /// The file, or the peer.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate past its time.
    #[error("the certificate {origin} expired at {}", since.rfc3339())]
    Expired {
        /// The file.
        origin: String,
        /// When.
        since: WallTime,
    },
    /// A certificate before its time.
    #[error("the certificate {origin} is not valid yet: it was made on a host whose clock is ahead")]
    NotYetValid {
        /// The file.
        origin: String,
    },
    /// A certificate of another CA.
    #[error("the certificate {origin} was not issued by the CA in {ca}")]
    OtherAuthority {
        /// The certificate's file.
        origin: String,
        /// The CA's file.
        ca: String,
    },
    /// Key and certificate of different nodes.
    #[error("the private key {key} does not belong to the certificate {certificate}")]
    KeyMismatch {
        /// The certificate's file.
        certificate: String,
        /// The key's file.
        key: String,
    },
    /// A certificate that no peer would accept, for a rarer reason.
    #[error("the certificate {origin} cannot be used")]
    Refused {
        /// The file.
        origin: String,
        /// Why.
        source: rustls::Error,
    },
    /// A reader's certificate where a node's is needed.
    #[error("a reader's certificate cannot serve other nodes")]
    ReaderCannotServe,
    /// A name that no certificate may carry.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A key or certificate could not be made.
    #[error("make a key or certificate")]
    Making(#[source] rcgen::Error),
    /// The TLS library refuses its own configuration.
    #[error("set up TLS")]
    Configuration(#[source] rustls::Error),
}

impl TlsError {
    pub(super) fn making(source: rcgen::Error) -> TlsError {
        TlsError::Making(source)
    }

    /// What `CertifiedKey::from_der` says.
    pub(super) fn key(certificate: String, key: String, source: rustls::Error) -> TlsError {
        match source {
            rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch { certificate, key },
            other => TlsError::NotPem { origin: key, what: "private key", reason: other.to_string() },
        }
    }

    /// What the verifier says about our own certificate.
    pub(super) fn of_own_certificate(
        origin: String,
        ca: String,
        expires: WallTime,
        source: rustls::Error,
    ) -> TlsError {
        match source {
            rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ) => TlsError::Expired { origin, since: expires },
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            ) => TlsError::NotYetValid { origin },
            rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            ) => TlsError::OtherAuthority { origin, ca },
            source => TlsError::Refused { origin, source },
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        let invite = "Make a new one with `walship invite NAME` where `walship init` ran, and join with it.";
        match self {
            TlsError::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "`walship init` makes it on the first node, `walship standby --join` on the others."
                    .to_owned()
            }
            TlsError::Unreadable { .. } => {
                "walship runs as the owner of the data directory, who must be able to read it.".to_owned()
            }
            TlsError::KeyIsOpen { path, .. } => format!("Run `chmod 600 {}`.", path.display()),
            TlsError::NotYetValid { .. } => "Compare this host's clock with the others'.".to_owned(),
            TlsError::KeyMismatch { .. } => {
                format!("The two must have been made together. {invite}")
            }
            TlsError::ReaderCannotServe => {
                "Invite it without `--reader` for it to become a member.".to_owned()
            }
            TlsError::Name(_) => "Choose another name.".to_owned(),
            TlsError::Making(_) | TlsError::Configuration(_) => {
                "This is a defect in walship: please report it.".to_owned()
            }
            TlsError::NotPem { .. }
            | TlsError::NotOurs { .. }
            | TlsError::Expired { .. }
            | TlsError::OtherAuthority { .. }
            | TlsError::Refused { .. } => invite.to_owned(),
        }
    }
}

/// A failed handshake in words, and what to do about it.
pub fn explain(error: &rustls::Error) -> (String, &'static str) {
    use AlertDescription as Alert;
    let other_ca =
        "Both nodes must have been invited by the same CA: compare `ca.pem` in their stores' `tls` folders.";
    let renew = "Make a new certificate with `walship invite NAME` where `walship init` ran.";
    let (text, hint) = match error {
        rustls::Error::InvalidCertificate(reason) => match reason {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                ("the peer's certificate was issued by another CA", other_ca)
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                ("the peer's certificate has expired", renew)
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                ("the peer's certificate is not valid yet", "Compare the clocks of the two hosts.")
            }
            CertificateError::NotValidForName
            | CertificateError::NotValidForNameContext { .. }
            | CertificateError::InvalidPurpose
            | CertificateError::InvalidPurposeContext { .. } => (
                "the peer's certificate is not a node's, so it cannot serve",
                "Invite it without `--reader`.",
            ),
            _ => return (format!("the peer's certificate is not acceptable: {reason}"), renew),
        },
        rustls::Error::AlertReceived(alert) => match alert {
            Alert::UnknownCA | Alert::DecryptError => {
                ("the peer does not accept this node's certificate: it trusts another CA", other_ca)
            }
            Alert::CertificateExpired => {
                ("the peer does not accept this node's certificate: it has expired", renew)
            }
            Alert::BadCertificate | Alert::CertificateUnknown | Alert::UnsupportedCertificate => {
                ("the peer does not accept this node's certificate", renew)
            }
            Alert::ProtocolVersion | Alert::HandshakeFailure => {
                ("the peer offers no TLS 1.3", "Is it a walship sidecar that listens there?")
            }
            _ => return (format!("the peer ended the TLS handshake: {alert:?}"), "Look at the peer's log."),
        },
        rustls::Error::NoCertificatesPresented => {
            ("the peer showed no certificate", "Is it a walship sidecar that dials here?")
        }
        rustls::Error::InvalidMessage(_) | rustls::Error::InappropriateMessage { .. } => {
            ("the other end does not speak TLS", "Is it a walship sidecar at the other end?")
        }
        rustls::Error::PeerIncompatible(_) => {
            ("the peer offers no TLS 1.3", "Is it a walship sidecar at the other end?")
        }
        other => return (format!("TLS with the peer failed: {other}"), "Look at the peer's log."),
    };
    (text.to_owned(), hint)
}
