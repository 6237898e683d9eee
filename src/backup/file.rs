//! Reads one file of a running cluster: as many bytes as it had at first, checked, hashed and compressed.
//!
//! The file may grow, shrink or vanish meanwhile; replay of the WAL mends all of that, as long as exactly the
//! announced size is sent. Blocks: one [`FileReader`] belongs to one blocking thread.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tracing::warn;
use zstd::bulk::Compressor;

use crate::durable::FileError;
use crate::link::Message;
use crate::link::message::{Digest, EntryKind, FileBegin, FileChunk, FileEnd, PathRefused, WirePath};
use crate::pg::Lsn;
use crate::pg::checksum::{PAGE_BYTES, PAGES_PER_FILE, Page};
use crate::pg::relation::RelationFile;

/// How much is read, hashed and compressed at once: a whole number of pages.
const CHUNK_BYTES: usize = 1 << 20;

const _: () = assert!(CHUNK_BYTES.is_multiple_of(PAGE_BYTES) && CHUNK_BYTES <= FileChunk::RAW_LIMIT_BYTES);

/// So many bad pages of one file are logged one by one.
const LOGGED_BAD_PAGES: u32 = 5;

/// How files are to be read.
#[derive(Clone, Debug)]
pub struct Reading {
    /// What paths are relative to.
    pub data_directory: PathBuf,
    /// A page that changed after this is mended by replay, whatever it looks like now.
    pub start_lsn: Lsn,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
    /// The level of zstd; `None` sends files as they are.
    pub compression: Option<i32>,
}

/// One message to send, and how many bytes of a file it stands for.
#[derive(Debug)]
pub struct Piece {
    /// To the peer.
    pub message: Message,
    /// Bytes of the file, before compression.
    pub bytes: u64,
}

/// Why a file was not sent.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its name cannot be sent.
    #[error("the name of a file cannot be sent")]
    Name(#[from] PathRefused),
    /// zstd failed.
    #[error("compress {}", path.display())]
    Compress {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody takes the pieces any more.
    #[error("the connection that the file was read for has ended")]
    Gone,
}

/// Where pieces go; it says [`ReadError::Gone`] when nobody wants more.
pub type Emit<'a> = dyn FnMut(Piece) -> Result<(), ReadError> + 'a;

/// Reads one file after the other.
pub struct FileReader {
    reading: Reading,
    compressor: Option<Compressor<'static>>,
    buffer: Vec<u8>,
}

/// A relation's file whose pages are being checked.
struct PageCheck {
    /// Number of the file's first page in its relation.
    first_page: u32,
    bad_pages: u32,
    first_bad_page: Option<u32>,
}

impl FileReader {
    /// A reader with buffers of its own.
    pub fn new(reading: Reading) -> io::Result<FileReader> {
        let compressor = reading.compression.map(Compressor::new).transpose()?;
        Ok(FileReader { reading, compressor, buffer: Vec::new() })
    }

    /// Emits one file; false when it is gone, which is fine: replay knows.
    pub fn send(&mut self, path: &Path, emit: &mut Emit<'_>) -> Result<bool, ReadError> {
        let source = self.reading.data_directory.join(path);
        let file = match File::open(&source) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(FileError::new("open", &source, e).into()),
        };
        let metadata = file.metadata().map_err(|e| FileError::new("stat", &source, e))?;
        let size = metadata.size();
        let begin = FileBegin {
            path: WirePath::new(path)?,
            kind: EntryKind::File,
            size,
            mode: metadata.mode() & 0o7777,
            modified_unix_seconds: metadata.mtime(),
        };
        emit(Piece { message: Message::FileBegin(begin), bytes: 0 })?;
        let mut check = self.page_check(path);
        let sha256 = self.send_content(&file, &source, size, &mut check, emit)?;
        let metadata = file.metadata().map_err(|e| FileError::new("stat", &source, e))?;
        let end = FileEnd {
            size,
            sha256,
            modified_unix_seconds: metadata.mtime(),
            bad_pages: check.as_ref().map_or(0, |check| check.bad_pages),
            first_bad_page: check.as_ref().and_then(|check| check.first_bad_page),
        };
        if end.bad_pages > LOGGED_BAD_PAGES {
            warn!(file = %source.display(), bad_pages = end.bad_pages, "more pages have wrong checksums");
        }
        emit(Piece { message: Message::FileEnd(end), bytes: 0 })?;
        Ok(true)
    }

    fn send_content(
        &mut self,
        file: &File,
        source: &Path,
        size: u64,
        check: &mut Option<PageCheck>,
        emit: &mut Emit<'_>,
    ) -> Result<Digest, ReadError> {
        let mut sha256 = Sha256::new();
        let mut offset = 0;
        let mut at_end = false;
        while offset < size {
            let wanted = (size - offset).min(CHUNK_BYTES as u64) as usize;
            self.buffer.clear();
            self.buffer.resize(wanted, 0);
            // Past its new end a file that was truncated meanwhile is zeros.
            if !at_end {
                let read = read_up_to(file, &mut self.buffer, offset);
                let read = read.map_err(|e| FileError::new("read", source, e))?;
                at_end = read < wanted;
                self.check_pages(file, source, offset, read, check)?;
            }
            sha256.update(&self.buffer);
            let message = Message::FileChunk(self.chunk(source, offset)?);
            emit(Piece { message, bytes: wanted as u64 })?;
            offset += wanted as u64;
        }
        Ok(Digest(sha256.finalize().into()))
    }

    /// The buffer as a chunk, compressed where that makes it smaller.
    fn chunk(&mut self, source: &Path, offset: u64) -> Result<FileChunk, ReadError> {
        if let Some(compressor) = &mut self.compressor {
            let compressed = compressor
                .compress(&self.buffer)
                .map_err(|e| ReadError::Compress { path: source.to_owned(), source: e })?;
            if compressed.len() < self.buffer.len() {
                return Ok(FileChunk { offset, compressed: true, data: compressed.into() });
            }
        }
        Ok(FileChunk { offset, compressed: false, data: Bytes::copy_from_slice(&self.buffer) })
    }

    /// Only the files of relations have checksums; those are found by their names, as PostgreSQL 17 does.
    fn page_check(&self, path: &Path) -> Option<PageCheck> {
        let is_in_tablespace = ["base", "global", "pg_tblspc"].iter().any(|folder| path.starts_with(folder));
        let file = RelationFile::parse(path.file_name()?.to_str()?)?;
        let first_page = file.segment.checked_mul(PAGES_PER_FILE)?;
        (self.reading.data_checksums && is_in_tablespace).then_some(PageCheck {
            first_page,
            bad_pages: 0,
            first_bad_page: None,
        })
    }

    /// Checks the pages in the first `read` bytes of the buffer, which came from `offset`.
    fn check_pages(
        &mut self,
        file: &File,
        source: &Path,
        offset: u64,
        read: usize,
        check: &mut Option<PageCheck>,
    ) -> Result<(), FileError> {
        let Some(pages) = check else { return Ok(()) };
        for (index, bytes) in self.buffer[..read].chunks_exact_mut(PAGE_BYTES).enumerate() {
            let at = offset + (index * PAGE_BYTES) as u64;
            let page_in_file = u32::try_from(at / PAGE_BYTES as u64).unwrap_or(u32::MAX);
            let page_in_relation = pages.first_page.wrapping_add(page_in_file);
            if self.reading.accepts(bytes, page_in_relation) {
                continue;
            }
            // PostgreSQL may have been writing the page just then: look once more.
            let mut again = [0; PAGE_BYTES];
            let whole = read_up_to(file, &mut again, at).map_err(|e| FileError::new("read", source, e))?;
            if whole < PAGE_BYTES {
                continue;
            }
            bytes.copy_from_slice(&again);
            if !self.reading.accepts(bytes, page_in_relation) {
                pages.found_bad(source, page_in_file);
            }
        }
        if !read.is_multiple_of(PAGE_BYTES) {
            warn!(file = %source.display(), "not a whole number of pages: the last part is not checked");
        }
        Ok(())
    }
}

impl Reading {
    /// True for a page that is sound, or that replay will restore.
    fn accepts(&self, bytes: &[u8], page: u32) -> bool {
        Page::new(bytes).is_some_and(|content| content.is_sound(page) || content.lsn() >= self.start_lsn)
    }
}

impl PageCheck {
    fn found_bad(&mut self, source: &Path, page: u32) {
        self.bad_pages += 1;
        self.first_bad_page.get_or_insert(page);
        if self.bad_pages <= LOGGED_BAD_PAGES {
            warn!(file = %source.display(), page, "the checksum of a page is wrong");
        }
    }
}

/// Fills the buffer from `offset`; less only at the end of the file.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// What a file becomes on the wire, put together again.
    struct Sent {
        begin: FileBegin,
        content: Vec<u8>,
        end: FileEnd,
        wire_bytes: usize,
    }

    fn reading(root: &Path) -> Reading {
        Reading {
            data_directory: root.to_owned(),
            start_lsn: Lsn(1000),
            data_checksums: true,
            compression: Some(1),
        }
    }

    fn send(reading: Reading, path: &str) -> Sent {
        let mut messages = Vec::new();
        let mut reader = FileReader::new(reading).unwrap();
        let sent = reader.send(Path::new(path), &mut |piece| {
            messages.push(piece);
            Ok(())
        });
        assert!(sent.unwrap());
        let Some(Message::FileEnd(end)) = messages.pop().map(|piece| piece.message) else { panic!("no end") };
        let mut content = Vec::new();
        let mut wire_bytes = 0;
        let mut messages = messages.into_iter();
        let Some(Message::FileBegin(begin)) = messages.next().map(|piece| piece.message) else { panic!() };
        for piece in messages {
            let Message::FileChunk(chunk) = piece.message else { panic!("{:?}", piece.message) };
            assert_eq!(chunk.offset, content.len() as u64);
            wire_bytes += chunk.data.len();
            let raw = if chunk.compressed {
                zstd::bulk::decompress(&chunk.data, FileChunk::RAW_LIMIT_BYTES).unwrap()
            } else {
                chunk.data.to_vec()
            };
            assert_eq!(piece.bytes, raw.len() as u64);
            content.extend(raw);
        }
        assert_eq!(end.sha256, Digest(Sha256::digest(&content).into()));
        assert_eq!((begin.size, end.size), (content.len() as u64, content.len() as u64));
        Sent { begin, content, end, wire_bytes }
    }

    /// A page with the right checksum as page `number`.
    fn page(number: u32, lsn: u32) -> Vec<u8> {
        let mut bytes = vec![number as u8; PAGE_BYTES];
        bytes[..4].fill(0);
        bytes[4..8].copy_from_slice(&lsn.to_le_bytes());
        bytes[14] = 1;
        let checksum = Page::new(&bytes).unwrap().computed_checksum(number);
        bytes[8..10].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn write(root: &Path, path: &str, content: &[u8]) {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), content).unwrap();
    }

    #[test]
    fn content_arrives_whole_and_small() {
        let root = tempfile::tempdir().unwrap();
        let text: Vec<u8> = (0..CHUNK_BYTES * 2 + 77).map(|n| (n / 100) as u8).collect();
        for (name, content) in [("PG_VERSION", &b"15\n"[..]), ("empty", b""), ("log/text", &text)] {
            write(root.path(), name, content);
            let sent = send(reading(root.path()), name);
            assert_eq!(sent.content, content);
            assert_eq!(sent.begin.path.as_path(), Path::new(name));
            let as_it_is = send(Reading { compression: None, ..reading(root.path()) }, name);
            assert_eq!(as_it_is.content, content);
            assert!(sent.wire_bytes <= as_it_is.wire_bytes);
        }
        assert!(send(reading(root.path()), "log/text").wire_bytes < text.len() / 10);
    }

    #[test]
    fn a_file_that_is_gone_is_no_error_and_an_unreadable_one_is() {
        let root = tempfile::tempdir().unwrap();
        let mut reader = FileReader::new(reading(root.path())).unwrap();
        let mut emit = |_: Piece| panic!("nothing to emit");
        assert!(!reader.send(Path::new("base/1/2"), &mut emit).unwrap());
        write(root.path(), "a", b"");
        let error = reader.send(Path::new("a/b"), &mut emit).unwrap_err();
        assert!(error.to_string().starts_with("open /"), "{error}");
    }

    #[test]
    fn a_file_that_shrinks_is_padded_with_zeros() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("base/5/16384");
        write(root.path(), "base/5/16384", &vec![7; CHUNK_BYTES * 2]);
        let mut content = 0;
        let mut reader = FileReader::new(Reading { data_checksums: false, ..reading(root.path()) }).unwrap();
        let sent = reader.send(Path::new("base/5/16384"), &mut |piece| {
            if matches!(piece.message, Message::FileBegin(_)) {
                fs::File::options().write(true).open(&path).unwrap().set_len(10).unwrap();
            }
            content += piece.bytes;
            Ok(())
        });
        assert!(sent.unwrap());
        assert_eq!(content, CHUNK_BYTES as u64 * 2);
    }

    #[test]
    fn bad_pages_are_counted_where_they_count() {
        let root = tempfile::tempdir().unwrap();
        let first_of_second_file = PAGES_PER_FILE;
        let mut content: Vec<u8> = (0..3).flat_map(|n| page(first_of_second_file + n, 10)).collect();
        write(root.path(), "base/5/16384.1", &content);
        assert_eq!(send(reading(root.path()), "base/5/16384.1").end.bad_pages, 0);
        write(root.path(), "base/5/16384", &content);
        let misplaced = send(reading(root.path()), "base/5/16384").end;
        assert_eq!((misplaced.bad_pages, misplaced.first_bad_page), (3, Some(0)), "the number counts");

        content[PAGE_BYTES + 5000] ^= 1;
        for (name, bad_pages) in [("base/5/16384.1", 1), ("base/5/pg_filenode.map", 0), ("pg_xact/0001.1", 0)]
        {
            write(root.path(), name, &content);
            assert_eq!(send(reading(root.path()), name).end.bad_pages, bad_pages, "{name}");
        }
        let end = send(reading(root.path()), "base/5/16384.1").end;
        assert_eq!(end.first_bad_page, Some(1));
        let unchecked = Reading { data_checksums: false, ..reading(root.path()) };
        assert_eq!(send(unchecked, "base/5/16384.1").end.bad_pages, 0);
        let later = Reading { start_lsn: Lsn(10), ..reading(root.path()) };
        assert_eq!(send(later, "base/5/16384.1").end.bad_pages, 0, "replay restores it");
    }

    #[test]
    fn a_reader_stops_when_nobody_takes_the_pieces() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "x", b"x");
        let mut reader = FileReader::new(reading(root.path())).unwrap();
        let error = reader.send(Path::new("x"), &mut |_| Err(ReadError::Gone)).unwrap_err();
        assert!(matches!(error, ReadError::Gone));
    }
}
