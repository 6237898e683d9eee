//! When the primary's WAL reached which position, kept over restarts: lag in seconds of a standby that was away for
//! hours is read from it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::time::{MissedTickBehavior, interval};

use super::node::Node;
use super::trouble;
use crate::pg::Lsn;
use crate::vitals::{Sample, Samples};

const WRITE_EVERY: Duration = Duration::from_secs(30);

/// The most that is read: the ring's limit at some eighty bytes each, and then some.
const FILE_BYTES_MAX: u64 = 1 << 20;

const FILE: &str = "walship.samples";

fn path(store: &Path) -> PathBuf {
    store.join(FILE)
}

/// Puts what was kept into the ring. Samples are a convenience: without them seconds are unknown, so a file that can't
/// be read is said and left. Blocks.
pub fn restore(store: &Path, samples: &Samples) {
    match read(&path(store)) {
        Ok(kept) => kept.into_iter().for_each(|sample| samples.push(sample)),
        Err(error) => tracing::warn!("lag in seconds begins anew: {error:#}"),
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<Sample>> {
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("read {}", path.display())),
    };
    anyhow::ensure!(size <= FILE_BYTES_MAX, "{} has {size} bytes", path.display());
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display()))
}

/// Keeps the ring until it is cancelled, without what every member has passed.
pub async fn keep(node: Arc<Node>) -> anyhow::Result<()> {
    let mut tick = interval(WRITE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        trouble::unless_of_disk(node.blocking("keep the samples", write).await?)?;
    }
}

/// Writes the ring. Blocks; one call at a time, for the last one of a node may meet one that was begun before.
pub fn write(node: &Node) -> anyhow::Result<()> {
    static WRITING: Mutex<()> = Mutex::new(());
    let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let slowest = super::retention::holds(node).into_iter().map(|hold| hold.lsn).min();
    node.vitals.samples.forget_below(slowest.unwrap_or(Lsn::INVALID));
    let text = serde_json::to_vec(&node.vitals.samples.all())?;
    Ok(node.store.write_beside(FILE, &text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::WallTime;
    use crate::durable;

    #[test]
    fn what_was_kept_comes_back_and_nonsense_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        let kept = vec![Sample { lsn: Lsn(16), time: WallTime { unix_micros: 5 }, after_gap: false }];
        durable::write(&path(folder.path()), &serde_json::to_vec(&kept).unwrap()).unwrap();
        let samples = Samples::default();
        restore(folder.path(), &samples);
        assert_eq!(samples.all(), kept);
        std::fs::write(path(folder.path()), "{").unwrap();
        restore(folder.path(), &samples);
        assert_eq!(samples.all(), kept);
    }
}
