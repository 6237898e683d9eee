//! What can go wrong between two sidecars.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio_rustls::rustls;

use super::Message;
use super::handshake::Mismatch;
use super::message::{Code, Reject};
use crate::fault::Advice;
use crate::tls::{TlsError, explain};

/// An error of the link. [`LinkError::is_gone`] means connect again, [`LinkError::Rejected`] carries the peer's reason;
/// anything else is wrong at one of the ends until a person acts.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer closed the connection between two frames.
    #[error("the peer closed the connection")]
    Closed,
    /// The connection broke.
    #[error("{action}")]
    Io {
        /// What was being done, such as `read from the peer`.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Nothing arrived for too long.
    #[error("nothing was heard from the peer for {} s", .0.as_secs())]
    Silent(Duration),
    /// The bytes are no frame at all: something else than walship speaks at the other end.
    #[error("the peer does not speak walship's protocol: it sent `{start}`")]
    NotWalship {
        /// The first bytes, printable.
        start: String,
    },
    /// A frame of a kind that this version does not know.
    #[error("the peer sent a message of unknown kind {kind:#04x}; it may be of a newer version")]
    UnknownKind {
        /// The kind's number.
        kind: u8,
    },
    /// A frame that declares more than its kind may hold. Nothing was allocated for it.
    #[error("the peer announced a message of {bytes} bytes, over the limit of {limit} (kind {kind:#04x})")]
    TooLong {
        /// The kind's number.
        kind: u8,
        /// What the header says.
        bytes: u64,
        /// What the kind may have.
        limit: usize,
    },
    /// Header or body were changed on the way.
    #[error("a message arrived damaged: its checksum is {found:08x}, the header says {expected:08x}")]
    Damaged {
        /// As the header says.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// A body that does not hold what its kind says.
    #[error("the {message} message is malformed: {reason}")]
    Malformed {
        /// The message's name.
        message: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The peer speaks another version of the protocol.
    #[error("the peer speaks version {theirs} of walship's protocol, this end version {}", super::PROTOCOL)]
    Protocol {
        /// The peer's version.
        theirs: u32,
    },
    /// A message that has no place here.
    #[error("expected {wanted} from the peer, got {got}")]
    Unexpected {
        /// What would have been right.
        wanted: &'static str,
        /// The name of what came.
        got: &'static str,
    },
    /// The peer refused, and said why.
    #[error("the peer refused: {}", .0.message)]
    Rejected(Box<Reject>),
    /// This end refused, and told the peer why.
    #[error("refused the peer: {}", .0.message)]
    Refused(Box<Reject>),
    /// The two ends do not belong together; the peer was told.
    #[error("refused the peer: {0}")]
    Mismatch(Box<Mismatch>),
    /// The host name has no address.
    #[error("look up {address}")]
    Lookup {
        /// As it was configured.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// Nobody answers there.
    #[error("connect to {address}")]
    Connect {
        /// As it was configured.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// The address to listen on is not to be had.
    #[error("listen on {address}")]
    Bind {
        /// As it was configured.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// The handshake of TLS failed, or its records are broken.
    #[error("{}", explain(.0).0)]
    Tls(#[source] rustls::Error),
    /// The peer's certificate, or this end's, does not do.
    #[error(transparent)]
    Certificate(#[from] TlsError),
    /// Plain TCP over a network.
    #[error("a connection without TLS is allowed only within a host, and {peer} is another one")]
    PlainBeyondHost {
        /// The peer.
        peer: SocketAddr,
    },
}

impl From<Box<Mismatch>> for LinkError {
    /// Not as a source: its words are this error's own.
    fn from(mismatch: Box<Mismatch>) -> LinkError {
        LinkError::Mismatch(mismatch)
    }
}

impl LinkError {
    /// An I/O error of a connection, or what TLS made one of.
    pub(super) fn io(action: &'static str, source: io::Error) -> LinkError {
        match source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => LinkError::Tls(error.clone()),
            None => LinkError::Io { action, source },
        }
    }

    /// The error for a message out of place: the peer's own words when it is a rejection.
    pub fn unexpected(wanted: &'static str, got: Message) -> LinkError {
        match got {
            Message::Reject(reject) => LinkError::Rejected(Box::new(reject)),
            other => LinkError::Unexpected { wanted, got: other.name() },
        }
    }

    /// True when the peer or the way to it is not there now: not worth a warning, connect again.
    pub fn is_gone(&self) -> bool {
        match self {
            LinkError::Closed | LinkError::Silent(_) => true,
            LinkError::Io { .. } | LinkError::Lookup { .. } | LinkError::Connect { .. } => true,
            LinkError::Rejected(reject) | LinkError::Refused(reject) => reject.code == Code::NotReady,
            _ => false,
        }
    }

    /// What to do about it, in full sentences, where there is more to say than that the error exists.
    pub fn hint(&self) -> Option<String> {
        match self {
            LinkError::Rejected(reject) | LinkError::Refused(reject) => {
                Some(reject.hint.clone()).filter(|hint| !hint.is_empty())
            }
            LinkError::Mismatch(mismatch) => Some(mismatch.hint().to_owned()),
            LinkError::Certificate(error) => Some(error.hint()),
            LinkError::Tls(error) => Some(explain(error).1.to_owned()),
            LinkError::Lookup { .. } => Some("Check the host name, or use an address.".to_owned()),
            LinkError::Connect { .. } => {
                Some("Is the sidecar running there, and may this host reach its port?".to_owned())
            }
            LinkError::Bind { source, address } => Some(match source.kind() {
                io::ErrorKind::AddrInUse => {
                    let port = address.rsplit(':').next().unwrap_or_default();
                    format!(
                        "Another process has it; `ss -ltnp sport = :{port}` shows which. Or set another `listen`."
                    )
                }
                io::ErrorKind::PermissionDenied => {
                    "Ports below 1024 are root's: set another `listen`.".to_owned()
                }
                _ => "Set `listen` to an address of this host, or to 0.0.0.0.".to_owned(),
            }),
            LinkError::PlainBeyondHost { .. } => {
                Some("Use TLS: `walship invite` makes what the peer needs.".to_owned())
            }
            LinkError::NotWalship { .. } => Some("Is it a walship sidecar at the other end?".to_owned()),
            LinkError::UnknownKind { .. } | LinkError::Protocol { .. } => {
                Some("Run the same version of walship on all hosts.".to_owned())
            }
            _ => None,
        }
    }
}

impl Advice for LinkError {
    fn hint(&self) -> Option<String> {
        self.hint()
    }
}
