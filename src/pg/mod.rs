//! The vocabulary of PostgreSQL: positions, names, formats, protocol messages and the few queries used.
//!
//! Nothing here knows about walship's own files or peers; everything above may use it.

pub mod binaries;
pub mod checksum;
pub mod conninfo;
pub mod control;
pub mod label;
pub mod levels;
pub mod lsn;
pub mod manifest;
pub mod message;
pub mod page;
mod party;
mod passfile;
pub mod postmaster;
pub mod record;
pub mod relation;
pub mod replication;
pub mod segment;
pub mod socket_file;
pub mod sql;
pub mod sync_names;
pub mod timeline;
pub mod version;
#[cfg(test)]
pub(crate) mod wal_fixture;

pub use binaries::Binaries;
pub use conninfo::Conninfo;
pub use levels::{Level, Levels};
pub use lsn::Lsn;
pub use party::AccessError;
pub use segment::{SegmentNumber, SegmentSize};
pub use timeline::{History, TimelineId};

/// The server's configuration, in the data directory unless a person or a package put it elsewhere.
pub const CONFIGURATION_FILE: &str = "postgresql.conf";

/// What `ALTER SYSTEM` writes, in the data directory; it beats the other.
pub const SETTINGS_FILE: &str = "postgresql.auto.conf";

/// Size of a WAL page, `wal_block_size`: PostgreSQL can be built with another one, but nobody ships such builds,
/// and every connection checks it.
pub const WAL_PAGE_BYTES: u64 = 8192;
