//! `walship fetch-wal`: PostgreSQL's `restore_command`.

use std::path::PathBuf;

use super::exit::{self, Exit};
use super::store_of;
use crate::config::Overrides;
use crate::fault::{Fault, Outcome};
use crate::store::{Fetched, Store};

/// Give PostgreSQL a file of WAL out of this node's store
///
/// This is a restore_command for PostgreSQL and pg_rewind. It reads the store beside the sidecar, or without one, and writes
/// the segment or the timeline history to the path given, durably and at once, having compared it with the checksum under
/// which it was sealed. A segment that a promotion cut is filled up with zeros.
///
/// A segment that still grows counts as missing: PostgreSQL gets that from the sidecar, as a stream. So does a history whose
/// promotion has not been committed.
#[derive(clap::Args, Debug)]
#[command(after_long_help = exit::explained(&[
    (0, "the file is in its place"),
    (1, "the store does not have it, or it can't be read"),
    (2, "wrong usage"),
], &[
    ("As restore_command, where PostgreSQL fills in %f and %p:", "walship fetch-wal %f %p"),
    ("With a configuration that is elsewhere:", "walship fetch-wal --config /srv/db1.toml %f %p"),
]))]
pub struct Args {
    /// The name of the segment or of the history, PostgreSQL's %f
    #[arg(value_name = "FILE")]
    file: String,
    /// Where to write it, PostgreSQL's %p
    #[arg(value_name = "PATH")]
    target: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
}

/// Writes the file.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let store = store_of(&args.overrides)?;
    match Store::fetch(&store, &args.file, &args.target)? {
        Fetched::Done => Ok(Exit::Done),
        Fetched::Missing => {
            let what = format!("the store {} does not have {}", store.display(), args.file);
            Err(Fault::ended(what, Outcome::Failed))
        }
    }
}
