//! What can go wrong between two sidecars.

use std::io;
use std::time::Duration;

use super::message::Reject;

/// An error of the link. A caller branches on three of them: [`LinkError::is_gone`] means connect again,
/// [`LinkError::Rejected`] carries the peer's reason, anything else is a defect at one of the ends.
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
}

impl LinkError {
    /// True when the peer or the way to it went away: not worth a warning, connect again.
    pub fn is_gone(&self) -> bool {
        matches!(self, LinkError::Closed | LinkError::Io { .. } | LinkError::Silent(_))
    }

    /// The error for a message out of place: the peer's own words when it is a rejection.
    pub fn unexpected(wanted: &'static str, got: super::Message) -> LinkError {
        match got {
            super::Message::Reject(reject) => LinkError::Rejected(Box::new(reject)),
            other => LinkError::Unexpected { wanted, got: other.name() },
        }
    }
}
