//! Which segments are there, where their frames begin, and how far each may be read.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::Positions;
use crate::pg::{Lsn, SegmentNumber, TimelineId};

/// A position in the WAL and the place in a segment's file where it stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Mark {
    /// The position.
    pub lsn: Lsn,
    /// Bytes from the start of the file.
    pub offset: u64,
}

/// A segment by timeline and number.
pub(super) type Key = (TimelineId, SegmentNumber);

/// One segment file. `appended ≥ durable`; a sealed one is durable to its end.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    /// Its first position.
    pub(super) start: Lsn,
    /// Where each frame begins, in order.
    pub(super) frames: Vec<Mark>,
    /// How far readers may go.
    pub(super) appended: Mark,
    /// How far it is fsynced.
    pub(super) durable: Mark,
    /// Nothing is added any more.
    pub(super) sealed: bool,
    /// The file as it is named now.
    pub(super) path: PathBuf,
    /// The file while it grows; the writer's own handle, shared with whoever fsyncs.
    pub(super) file: Option<Arc<File>>,
    /// Which file that is: a cut puts another one in its place, and then readers look again.
    pub(super) inode: u64,
    /// Its size on disk.
    pub(super) disk_bytes: u64,
    /// What was written last, while it grows: most readers are about to read just that.
    pub(super) tail: Tail,
}

/// The end of a file that is in memory still: one batch.
#[derive(Clone, Default, Debug)]
pub(super) struct Tail {
    /// Where in the file it begins.
    pub(super) offset: u64,
    /// As it was written.
    pub(super) bytes: Bytes,
}

impl Tail {
    /// The bytes from one place in the file to another, when all of them are here.
    pub(super) fn get(&self, from: u64, to: u64) -> Option<Bytes> {
        let (start, end) = (from.checked_sub(self.offset)?, to.checked_sub(self.offset)?);
        let is_here = start <= end && end <= self.bytes.len() as u64;
        is_here.then(|| self.bytes.slice(start as usize..end as usize))
    }
}

/// All segments of a store.
#[derive(Debug, Default)]
pub(super) struct Index {
    segments: BTreeMap<Key, Segment>,
}

impl Index {
    pub(super) fn get(&self, key: Key) -> Option<&Segment> {
        self.segments.get(&key)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Segment> {
        self.segments.get_mut(&key)
    }

    pub(super) fn insert(&mut self, key: Key, segment: Segment) {
        assert!(segment.appended >= segment.durable);
        self.segments.insert(key, segment);
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Segment> {
        self.segments.remove(&key)
    }

    pub(super) fn clear(&mut self) {
        self.segments.clear();
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&Key, &Segment)> {
        self.segments.iter()
    }

    /// The segments of one timeline, in order.
    pub(super) fn of_timeline(
        &self,
        timeline: TimelineId,
    ) -> impl DoubleEndedIterator<Item = (&Key, &Segment)> {
        self.segments.range((timeline, SegmentNumber(0))..=(timeline, SegmentNumber(u64::MAX)))
    }

    pub(super) fn first(&self, timeline: TimelineId) -> Option<&Segment> {
        self.of_timeline(timeline).next().map(|(_, segment)| segment)
    }

    pub(super) fn last(&self, timeline: TimelineId) -> Option<&Segment> {
        self.of_timeline(timeline).next_back().map(|(_, segment)| segment)
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.disk_bytes).sum()
    }

    /// The file that grows, with what an fsync of it will cover. There is one at most.
    pub(super) fn open_file(&self) -> Option<(Arc<File>, PathBuf, Key, Mark)> {
        self.segments.iter().rev().find_map(|(key, segment)| {
            let file = segment.file.clone()?;
            Some((file, segment.path.clone(), *key, segment.appended))
        })
    }

    /// Notes that `file` is fsynced up to `mark`; unless a cut or a new writer has put another one in its place
    /// meanwhile, about which that says nothing.
    pub(super) fn mark_durable(&mut self, key: Key, file: &Arc<File>, mark: Mark) {
        let is_still =
            |segment: &&mut Segment| segment.file.as_ref().is_some_and(|now| Arc::ptr_eq(now, file));
        if let Some(segment) = self.segments.get_mut(&key).filter(is_still) {
            segment.durable = segment.durable.max(mark);
            assert!(segment.appended >= segment.durable);
        }
    }

    /// How far `timeline` reaches.
    pub(super) fn positions(&self, timeline: Option<TimelineId>) -> Positions {
        let Some(timeline) = timeline else { return Positions::default() };
        let mut positions = Positions { timeline: Some(timeline), ..Positions::default() };
        let (Some(first), Some(last)) = (self.first(timeline), self.last(timeline)) else { return positions };
        positions.start = first.start;
        positions.appended = last.appended.lsn;
        positions.durable = last.durable.lsn;
        positions.sealed = if last.sealed { last.appended.lsn } else { last.start };
        positions
    }
}
