//! What is in a store: the WAL of each segment as anyone with zstd would read it.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Node;

/// One segment's WAL.
#[derive(Debug)]
pub struct Content {
    /// Raw bytes.
    pub wal: Vec<u8>,
    /// It has its seal, which says the same as the bytes do.
    pub sealed: bool,
}

impl Node {
    /// Decodes every segment of the store, and checks the seals.
    pub fn content(&self) -> BTreeMap<String, Content> {
        let files = std::fs::read_dir(self.store()).unwrap().map(|entry| entry.unwrap().path());
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let segments: Vec<PathBuf> = files.filter(|path| name(path).contains(".zst")).collect();
        let decoded =
            segments.iter().map(|path| Some((name(path)[..24].to_owned(), decode(path)?))).collect();
        // A file that was sealed or removed since the folder was listed: then the list is old.
        match decoded {
            Some(content) => content,
            None => self.content(),
        }
    }

    /// Checks that two stores, nobody writing to either, hold the same of what both hold; how many segments those are.
    pub fn same_content_as(&self, other: &Node) -> usize {
        let (ours, theirs) = (self.content(), other.content());
        let both = ours.iter().filter_map(|(name, ours)| Some((name, ours, theirs.get(name)?)));
        let mut segments = 0;
        for (name, ours, theirs) in both {
            let shared = ours.wal.len().min(theirs.wal.len());
            assert!(ours.wal[..shared] == theirs.wal[..shared], "{name} differs");
            let complete = !(ours.sealed && theirs.sealed) || ours.wal.len() == theirs.wal.len();
            assert!(complete, "{name} is sealed at {} and {}", ours.wal.len(), theirs.wal.len());
            segments += 1;
        }
        assert!(segments > 0, "the stores have no segment in common");
        segments
    }
}

/// `None` when the file is gone.
fn decode(path: &Path) -> Option<Content> {
    let file = match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
        read => read.unwrap(),
    };
    let sealed = path.extension().is_some_and(|extension| extension == "zst");
    let mut wal = Vec::new();
    let decoded = zstd::Decoder::new(&file[..]).unwrap().read_to_end(&mut wal);
    // The last frame of a segment that grows has no end yet.
    assert!(decoded.is_ok() || !sealed, "{}: {decoded:?}", path.display());
    if sealed {
        let digest: String = Sha256::digest(&wal).iter().map(|byte| format!("{byte:02x}")).collect();
        let found = file.windows(digest.len()).any(|window| window == digest.as_bytes());
        assert!(found, "{}: its seal does not have the SHA-256 of its content", path.display());
    }
    Some(Content { wal, sealed })
}

/// Everything below a folder, with the content of files. Sockets and what a running server writes are not asked for.
pub fn everything_below(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = walkdir::WalkDir::new(folder).into_iter().map(Result::unwrap);
    entries.map(|entry| (entry.path().to_owned(), std::fs::read(entry.path()).unwrap_or_default())).collect()
}
