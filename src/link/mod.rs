//! The connection between two sidecars: frames, messages, handshake.
//!
//! [`frame`] turns bytes into checked frames and back, [`message`] frames into what they mean, [`conn`] moves them
//! over any byte stream. [`dial`] and [`listen`] make such streams between hosts, and [`handshake`] finds out whether
//! the two ends belong together. Nothing here knows what a message is good for: that is the stages' business.

pub mod attended;
pub mod conn;
pub mod dial;
pub mod error;
pub mod frame;
pub mod handshake;
pub mod listen;
pub mod message;
pub mod socket;

use std::time::Duration;

pub use attended::{Attended, Heard};
pub use conn::{Conn, Reader, Writer};
pub use error::LinkError;
pub use listen::Listener;
pub use message::Message;
pub use socket::{Link, Security, Socket};

/// Version of everything on the wire. Fields of JSON messages may be added under the same number; whatever an old
/// peer would misunderstand takes a new one.
pub const PROTOCOL: u32 = 5;

/// Each end of a connection says something at least this often: a [`Message::Heartbeat`], an
/// [`Message::Ack`] or, while a backup waits, a [`Message::BackupPhase`].
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

/// A peer that was silent for so long is dead.
pub const PEER_DEAD_AFTER: Duration = Duration::from_secs(10);

/// Patience for each step on the way to a conversation: TCP, TLS, Hello.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
