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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::SegmentSize;
    use crate::pg::wal_fixture::RandomWal;
    use crate::store::{NewStore, TimelineIdentity};

    #[test]
    fn without_pg_waldump_it_says_so_and_what_was_kept() {
        let folder = tempfile::tempdir().unwrap();
        let wal = RandomWal::new(5, 500);
        let segment_size = SegmentSize::new(1 << 20).unwrap();
        let store = Store::create(folder.path(), NewStore { system_identifier: 7, segment_size }).unwrap();
        let mut writer = store.writer().unwrap();
        let (timeline, from) = (TimelineId::FIRST, wal.record_ends[3]);
        writer
            .begin_timeline(TimelineIdentity { timeline, parent: None, branch: None }, None, wal.start)
            .unwrap();
        writer.append(wal.start, &wal.bytes).unwrap();
        let path = store.keep_from(timeline, from).unwrap();
        let to = wal.start + wal.bytes.len() as u64;
        let kept = Kept { path: path.clone(), node: "db1".into(), primary: "db2".into(), timeline, from, to };
        let summary = summarise(&store, &kept, Path::new("/nowhere/pg_waldump")).unwrap();
        assert_eq!(summary.with_extension("").with_extension(""), path.with_extension("").with_extension(""));
        let text = std::fs::read_to_string(&summary).unwrap();
        let said =
            ["WAL of db1 that db2", &format!("from {from} to {to}, "), "there is no /nowhere/pg_waldump"];
        assert!(said.iter().all(|said| text.contains(said)), "{text}");
        // One that tells nothing: why, and nothing is left behind.
        let text =
            std::fs::read_to_string(summarise(&store, &kept, Path::new("/bin/false")).unwrap()).unwrap();
        assert!(text.contains("could not be looked through: pg_waldump: "), "{text}");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 2);
    }
}
