//! Why two nodes may not talk, in words that are right at both ends.

use crate::link::message::{Code, Reject, Route};
use crate::pg::TimelineId;

/// Why two nodes may not talk. Both are named, because the text is read at both ends.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Mismatch {
    /// Another version of the protocol.
    #[error("one end speaks version {ours} of walship's protocol, the other version {theirs}")]
    Protocol {
        /// Of this end.
        ours: u32,
        /// Of the other.
        theirs: u32,
    },
    /// The Hello says another name than the certificate.
    #[error("a node calls itself {hello}, but its certificate was made for {certificate}")]
    Name {
        /// In the Hello.
        hello: String,
        /// In the certificate.
        certificate: String,
    },
    /// A reader's certificate, and a Hello of something more.
    #[error("{node} has a reader's certificate and cannot be a {role}")]
    Reader {
        /// The node.
        node: String,
        /// What it says it is.
        role: &'static str,
    },
    /// A reader, and a purpose that only members may have.
    #[error("{node} is a reader and cannot follow as a member")]
    ReaderFollows {
        /// The node.
        node: String,
    },
    /// A purpose of a newer version, or an answer to something else than was asked.
    #[error("{node} asks for something that this version of walship does not have")]
    Purpose {
        /// The node.
        node: String,
    },
    /// A node that found itself.
    #[error("{node} tries to follow itself")]
    Itself {
        /// The node.
        node: String,
    },
    /// Another database cluster.
    #[error("{here} and {there} are of different database clusters: system identifiers {ours} and {theirs}")]
    SystemIdentifier {
        /// The checking node.
        here: String,
        /// The checked node.
        there: String,
        /// Of the checking node.
        ours: u64,
        /// Of the checked node.
        theirs: u64,
    },
    /// Another WAL segment size.
    #[error("{here} has WAL segments of {ours} bytes, {there} of {theirs}")]
    SegmentSize {
        /// The checking node.
        here: String,
        /// The checked node.
        there: String,
        /// Of the checking node.
        ours: u64,
        /// Of the checked node.
        theirs: u64,
    },
    /// Another major version of PostgreSQL.
    #[error(
        "{here} has PostgreSQL {ours}, {there} PostgreSQL {theirs}: WAL is understood by the same major version only"
    )]
    PostgresMajor {
        /// The checking node.
        here: String,
        /// The checked node.
        there: String,
        /// Of the checking node.
        ours: u32,
        /// Of the checked node.
        theirs: u32,
    },
    /// The node asked for WAL or a copy knows of fewer promotions than the one that asks.
    #[error(
        "{source_node} knows of promotions up to epoch {committed}, but {target_node} of one in epoch {known}"
    )]
    Epoch {
        /// The node that would send.
        source_node: String,
        /// The highest epoch that it knows to be committed.
        committed: u64,
        /// The node that would receive.
        target_node: String,
        /// The highest epoch that it has promised or knows to be committed.
        known: u64,
    },
    /// The node that would send gets its WAL through the one that would receive it.
    #[error("{target_node} cannot follow {source_node}, whose own WAL comes through it: {route}")]
    Loop {
        /// The node that would send.
        source_node: String,
        /// The node that would receive.
        target_node: String,
        /// The way of the sender's WAL.
        route: Route,
    },
    /// There are too many nodes between the node and its primary.
    #[error("{target_node} cannot follow {source_node}, which is node {} of a chain: {route}", .route.nodes.len())]
    TooFar {
        /// The node that would send.
        source_node: String,
        /// The node that would receive.
        target_node: String,
        /// The way of the sender's WAL.
        route: Route,
    },
    /// One number, two timelines.
    #[error("timeline {timeline} of {here} is not timeline {timeline} of {there}: {ours}, {theirs}")]
    Timeline {
        /// The number.
        timeline: TimelineId,
        /// The checking node.
        here: String,
        /// The checked node.
        there: String,
        /// How the checking node's came to be.
        ours: String,
        /// How the checked node's came to be.
        theirs: String,
    },
}

impl Mismatch {
    /// For programs.
    pub fn code(&self) -> Code {
        match self {
            Mismatch::Protocol { .. } => Code::Protocol,
            Mismatch::Name { .. } => Code::Name,
            Mismatch::Reader { .. } | Mismatch::ReaderFollows { .. } => Code::Role,
            Mismatch::Purpose { .. } => Code::Purpose,
            Mismatch::Itself { .. } => Code::Duplicate,
            Mismatch::SystemIdentifier { .. } => Code::SystemIdentifier,
            Mismatch::SegmentSize { .. } => Code::SegmentSize,
            Mismatch::PostgresMajor { .. } => Code::PostgresMajor,
            Mismatch::Epoch { .. } => Code::Epoch,
            Mismatch::Loop { .. } | Mismatch::TooFar { .. } => Code::Route,
            Mismatch::Timeline { .. } => Code::TimelineIdentity,
        }
    }

    /// What to do about it; true at both ends.
    pub fn hint(&self) -> &'static str {
        match self {
            Mismatch::Protocol { .. } | Mismatch::Purpose { .. } => {
                "Run the same version of walship on all hosts."
            }
            Mismatch::Name { .. } => {
                "The `name` in walship.toml must be the one that `walship invite` was given."
            }
            Mismatch::Reader { .. } | Mismatch::ReaderFollows { .. } => {
                "Make it a member's certificate with `walship invite NAME`, without `--reader`."
            }
            Mismatch::Itself { .. } => {
                "Name another node in `upstream`; if it is another one, give each its own name."
            }
            Mismatch::SystemIdentifier { .. } => {
                "Check `upstream` and `data_directory` of both; a copy of this cluster is made with `walship standby`."
            }
            Mismatch::SegmentSize { .. } => {
                "The two cannot be of one cluster: check `upstream`, or seed the standby anew."
            }
            Mismatch::PostgresMajor { .. } => {
                "Install the primary's major version of PostgreSQL on the standby."
            }
            Mismatch::Epoch { .. } => {
                "The first has missed a promotion: look at `walship status` on both, and do not let both write."
            }
            Mismatch::Loop { .. } => {
                "It tries others by itself; in `upstream` of the two, name nodes that do not follow each other."
            }
            Mismatch::TooFar { .. } => "Name a node nearer to the primary in `upstream`.",
            Mismatch::Timeline { .. } => {
                "The two have diverged: keep what is only on one of them, then seed that node anew with `walship standby`."
            }
        }
    }

    /// What the peer is told.
    pub fn reject(&self) -> Reject {
        Reject { code: self.code(), message: self.to_string(), hint: self.hint().to_owned() }
    }
}
