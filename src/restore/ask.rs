//! Asks the source for files, each with the digests of what is here in its place. Blocks: runs on a thread of its own.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::asked::{Asked, Here};
use super::listing::ListedFile;
use super::site::Site;
use crate::durable::FileError;
use crate::link::message::{BLOCK_BYTES, Digest, WantFile};

/// The files that are still to be asked for: the connections share them.
#[derive(Debug)]
pub(super) struct Work {
    indexes: Vec<u32>,
    next: AtomicUsize,
}

impl Work {
    /// All of these, in their order.
    pub fn new(indexes: Vec<u32>) -> Work {
        Work { indexes, next: AtomicUsize::new(0) }
    }

    fn take(&self) -> Option<u32> {
        self.indexes.get(self.next.fetch_add(1, Ordering::Relaxed)).copied()
    }
}

/// Asks until there is nothing left to ask for, or the connection is over.
pub(super) fn run(
    site: &Site,
    work: &Work,
    asked: &Asked,
    wants: &mpsc::Sender<WantFile>,
) -> Result<(), FileError> {
    let mut buffer = vec![0; BLOCK_BYTES];
    while asked.wait_for_room() {
        let Some(index) = work.take() else { break };
        let file = &site.listing.files[index as usize];
        let mut send = |want| wants.blocking_send(want).is_ok();
        if !ask(site, index, file, asked, &mut buffer, &mut send)? {
            break;
        }
    }
    Ok(())
}

/// Asks for one file; false when nobody takes the question any more.
fn ask(
    site: &Site,
    index: u32,
    file: &ListedFile,
    asked: &Asked,
    buffer: &mut [u8],
    send: &mut dyn FnMut(WantFile) -> bool,
) -> Result<bool, FileError> {
    let place = site.place(&file.path);
    let here = if site.compares { open(&place)? } else { None };
    asked.begin(index, file.bytes, here.is_some());
    let mut digests = Vec::new();
    if let Some(mut here) = here {
        let mut sha256 = Sha256::new();
        let mut found = Here { bytes: 0, sha256: None };
        loop {
            let block = match read_block(&mut here, buffer) {
                Ok(0) => {
                    found.sha256 = Some(Digest(sha256.finalize().into()));
                    break;
                }
                Ok(bytes) => &buffer[..bytes],
                // A disk that lost it: what is behind is as good as not there.
                Err(error) => {
                    tracing::warn!(file = %place.display(), from = found.bytes, "cannot be read: {error}");
                    break;
                }
            };
            sha256.update(block);
            if digests.len() == WantFile::DIGESTS_LIMIT * Digest::BYTES {
                let digests = std::mem::take(&mut digests).into();
                if !send(WantFile { index, continues: true, digests }) {
                    return Ok(false);
                }
            }
            digests.extend_from_slice(&Digest::of(block).0);
            found.bytes += block.len() as u64;
        }
        asked.found(index, found);
    }
    Ok(send(WantFile { index, continues: false, digests: digests.into() }))
}

/// A file that may be compared: a plain one. Anything else was made room for.
fn open(place: &Path) -> Result<Option<File>, FileError> {
    match fs::symlink_metadata(place) {
        Ok(metadata) if metadata.is_file() => {
            File::open(place).map(Some).map_err(|e| FileError::new("open", place, e))
        }
        Ok(_) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(FileError::new("stat", place, e)),
    }
}

/// The next block; less only at the end of the file.
fn read_block(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::super::layout::Layout;
    use super::super::listing::Listing;
    use super::*;

    fn site(root: &Path, files: &[(&str, &[u8])], compares: bool) -> Site {
        let mut listing = Listing::default();
        for (path, content) in files {
            if !content.is_empty() {
                fs::write(root.join(path), content).unwrap();
            }
            listing.files.push(ListedFile { path: path.into(), bytes: content.len() as u64 });
        }
        let mut site = Site::plain(Layout { target: root.to_owned(), placements: Vec::new() }, listing);
        site.compares = compares;
        site
    }

    fn questions(site: &Site) -> (Vec<WantFile>, Asked) {
        let asked = Asked::default();
        let (sender, mut wants) = mpsc::channel(100);
        let work = Work::new((0..site.listing.files.len() as u32).collect());
        run(site, &work, &asked, &sender).unwrap();
        drop(sender);
        let mut all = Vec::new();
        while let Ok(want) = wants.try_recv() {
            all.push(want);
        }
        (all, asked)
    }

    #[test]
    fn what_is_here_is_asked_for_with_its_digests_and_the_rest_without() {
        let root = tempfile::tempdir().unwrap();
        let long = vec![7; BLOCK_BYTES + 5];
        let site = site(root.path(), &[("long", &long), ("absent", b""), ("short", b"x")], true);
        let (wants, asked) = questions(&site);
        let digests =
            |blocks: &[&[u8]]| blocks.iter().flat_map(|block| Digest::of(block).0).collect::<Vec<u8>>();
        let want = |index, digests: Vec<u8>| WantFile { index, continues: false, digests: digests.into() };
        let (first, last) = long.split_at(BLOCK_BYTES);
        assert_eq!(wants, [want(0, digests(&[first, last])), want(1, vec![]), want(2, digests(&[b"x"]))]);
        assert_eq!([0, 1, 2].map(|index| asked.compares(index)), [Some(true), Some(false), Some(true)]);
        let whole = Here { bytes: long.len() as u64, sha256: Some(Digest::of(&long)) };
        assert_eq!((asked.answered(0), asked.answered(1)), (Some(whole), None));
    }

    #[test]
    fn where_nothing_was_before_nothing_is_read() {
        let root = tempfile::tempdir().unwrap();
        let (wants, asked) = questions(&site(root.path(), &[("here", b"x")], false));
        assert_eq!(wants, [WantFile { index: 0, continues: false, digests: Vec::new().into() }]);
        assert_eq!(asked.compares(0), Some(false));
    }

    #[test]
    fn many_digests_come_in_parts() {
        let root = tempfile::tempdir().unwrap();
        let bytes = (WantFile::DIGESTS_LIMIT * BLOCK_BYTES) as u64;
        let site = site(root.path(), &[("exact", b"x"), ("more", b"x")], true);
        for (name, bytes) in [("exact", bytes), ("more", bytes + 1)] {
            File::options().write(true).open(root.path().join(name)).unwrap().set_len(bytes).unwrap();
        }
        let (wants, _) = questions(&site);
        let shape: Vec<_> = wants
            .iter()
            .map(|want| (want.index, want.continues, want.digests.len() / Digest::BYTES))
            .collect();
        let limit = WantFile::DIGESTS_LIMIT;
        assert_eq!(shape, [(0, false, limit), (1, true, limit), (1, false, 1)]);
    }
}
