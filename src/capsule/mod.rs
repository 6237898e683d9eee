//! What is in WAL that was kept aside: a summary for a person, made by PostgreSQL's own `pg_waldump`.
//!
//! It lies beside the capsule under the same name. Where it can't be made, it says why, and the capsule is there all the same.

mod summary;
mod waldump;

use std::path::{Path, PathBuf};

use crate::clock::WallTime;
use crate::durable;
use crate::pg::{Lsn, TimelineId};
use crate::store::{Store, StoreError};
use summary::Summary;

/// What a capsule's name ends with, and its summary's instead.
const CAPSULE_SUFFIX: &str = ".wal.zst";
const SUMMARY_SUFFIX: &str = ".txt";

/// What was kept, and of what.
pub struct Kept {
    /// The capsule.
    pub path: PathBuf,
    /// Whose WAL.
    pub node: String,
    /// Who never had it.
    pub primary: String,
    /// Its timeline.
    pub timeline: TimelineId,
    /// Where it begins.
    pub from: Lsn,
    /// Where the log ends.
    pub to: Lsn,
}

/// Writes the summary of a capsule whose WAL is in the log still; its file. `pg_waldump` is where it would be. Blocks.
pub fn summarise(store: &Store, kept: &Kept, pg_waldump: &Path) -> Result<PathBuf, StoreError> {
    let mut text = head(kept, WallTime::now());
    let mut summary = Summary::default();
    match waldump::run(store, kept, pg_waldump, |line| summary.take(line)) {
        Ok(end) => {
            if end < kept.to {
                text.push_str(&format!(
                    "What follows is of the part up to {end}: the rest is more than is looked through.\n"
                ));
            }
            text.push_str(&format!("\n{summary}"));
        }
        Err(error) => text.push_str(&format!("\nIt could not be looked through: {}\n", said(&error))),
    }
    let name = kept.path.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(CAPSULE_SUFFIX).unwrap_or(&name);
    let path = kept.path.with_file_name(format!("{stem}{SUMMARY_SUFFIX}"));
    durable::write(&path, text.as_bytes())?;
    Ok(path)
}

fn head(kept: &Kept, now: WallTime) -> String {
    let Kept { path, node, primary, timeline, from, to } = kept;
    let (name, now) = (path.file_name().unwrap_or_default().to_string_lossy(), now.rfc3339());
    format!(
        "{name}: WAL of {node} that {primary}, the new primary, never had; kept at {now}.\n\
         Timeline {timeline}, from {from} to {to}, {} bytes.\n",
        to.bytes_since(*from)
    )
}

/// With what lies below it.
fn said(error: &dyn std::error::Error) -> String {
    let below = error.source().map(|source| format!(": {}", said(source))).unwrap_or_default();
    format!("{error}{below}")
}
