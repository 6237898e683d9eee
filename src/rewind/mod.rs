//! `pg_rewind`, the node's own, whose SQL goes through the link.
//!
//! [`program`] runs it on a stopped data directory, [`own`] keeps what of that is the host's and puts it back afterwards.
//! pg_rewind reads the files that it needs by SQL. At its own end it connects to a socket file of the sidecar
//! ([`tunnel::lend`]), which asks for no password; at the primary's end the sidecar has logged in to its PostgreSQL as
//! always ([`tunnel::serve`]), and lets nothing pass but what pg_rewind says ([`asked`]): the files of the data directory,
//! which a node gets as a copy, too, and nothing else.

pub mod asked;
pub mod door;
pub mod own;
pub mod program;
pub mod tunnel;

pub use program::{Line, Program};
pub use tunnel::{Client, lend, serve};
