//! walship ships PostgreSQL's write-ahead log: a sidecar beside each PostgreSQL, one log per node.
//!
//! ```text
//!         primary host                                              standby host
//!  PostgreSQL ─▶ capture ─▶ STORE ─▶ ship ══ link (TLS) ══▶ receive ─▶ STORE ─▶ feed ─▶ PostgreSQL
//!      └───────▶ backup ═════════════ link ═══════════════▶ restore ───────────────────────┘
//!                               bytes go forward; only positions come back
//! ```
//!
//! # Layers
//!
//! Imports go from a higher number to a lower one; modules with the same number never import each other,
//! except that inside layer 0 everything may import [`pg`]. `tests/tidy.rs` checks it.
//!
//! * 4: [`cli`], what the user types; [`demo`], a cluster, a link proxy, a ledger and a story.
//! * 3: [`daemon`]: which stages run in which role, and the change between them.
//! * 2: the stages: [`capture`], [`backup`], [`ship`], [`receive`], [`restore`], [`feed`], [`ack`], [`promote`], [`report`],
//!   [`capsule`], [`rewind`]. They meet in the store on a host and on the link between hosts, nowhere else.
//! * 1: [`store`], [`link`], [`config`].
//! * 0: [`pg`], the vocabulary of PostgreSQL; [`policy`], what a commit waits for; [`vitals`], the numbers that the
//!   stages write and reports read; [`tls`], the only builder of TLS configurations; [`durable`], the only caller of
//!   rename and fsync; [`clock`], the only reader of wall time; [`fault`], what a person is told when something went
//!   wrong; [`failpoint`].
//!
//! # Invariants
//!
//! * The content of a segment is equal on every node, byte for byte, once decompressed.
//! * A reader of the store never sees an end that is not a safe cut: the end of a record, the end of a message
//!   from PostgreSQL, or a page boundary.
//! * `appended ≥ durable ≥ sealed`, and nothing is reported as flushed before it is fsynced here.
//! * The local PostgreSQL is fed only what is durable here, so it never outlives its own store.
//! * Nothing half-made can start: `global/pg_control` gets its name as the last act of a restore.
//! * No commit is released without those whom the policy names, but within a window that the exposure log has already.
//! * What is not known is reported as unknown, never as zero.

pub mod cli;
pub mod demo;

pub mod daemon;

pub mod ack;
pub mod backup;
pub mod capsule;
pub mod capture;
pub mod feed;
pub mod promote;
pub mod receive;
pub mod report;
pub mod restore;
pub mod rewind;
pub mod ship;

pub mod config;
pub mod link;
pub mod store;

pub mod clock;
pub mod durable;
pub mod failpoint;
pub mod fault;
pub mod pg;
pub mod policy;
pub mod tls;
pub mod vitals;
