//! Reads one file of a running cluster: as many bytes as it had at first, checked, hashed, compared with what is at the
//! taker, and what differs compressed.
//!
//! The file may grow, shrink or vanish meanwhile; replay of the WAL mends all of that, as long as it becomes exactly
//! what was read here. Blocks: one [`FileReader`] belongs to one blocking thread.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tracing::warn;
use zstd::bulk::Compressor;

use super::compare::Theirs;
use crate::durable::FileError;
use crate::link::Message;
use crate::link::message::{BLOCK_BYTES, Digest, FileBegin, FileChunk, FileEnd, FileGone};
use crate::pg::Lsn;
use crate::pg::checksum::{PAGE_BYTES, PAGES_PER_FILE, Page};
use crate::pg::relation::RelationFile;

/// How much is read, hashed and compressed at once: a whole number of pages and of blocks. What a link that breaks had
/// under way is lost, and is a part of one such unit on each connection.
const UNIT_BYTES: usize = 256 << 10;

const _: () = assert!(UNIT_BYTES.is_multiple_of(BLOCK_BYTES) && UNIT_BYTES <= FileChunk::RAW_LIMIT_BYTES);
const _: () = assert!(BLOCK_BYTES.is_multiple_of(PAGE_BYTES));

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
    /// Bytes of the file in it, before compression.
    pub bytes: u64,
    /// Bytes before these that were found equal at the taker, and are not sent.
    pub equal_bytes: u64,
}

/// Why a file was not sent.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The taker asked for one file in the middle of another.
    #[error("the taker asked for file {got} where more about file {wanted} was due")]
    OutOfOrder {
        /// What it asked for.
        got: u32,
        /// What was due.
        wanted: u32,
    },
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

    /// Emits what of one file is not at the taker, or that the file is gone, which is fine: replay knows.
    pub fn send(
        &mut self,
        index: u32,
        path: &Path,
        theirs: &mut Theirs<'_>,
        emit: &mut Emit<'_>,
    ) -> Result<(), ReadError> {
        let source = self.reading.data_directory.join(path);
        let bare = |message| Piece { message, bytes: 0, equal_bytes: 0 };
        let file = match File::open(&source) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                theirs.finish()?;
                return emit(bare(Message::FileGone(FileGone { index })));
            }
            Err(e) => return Err(FileError::new("open", &source, e).into()),
        };
        let size = file.metadata().map_err(|e| FileError::new("stat", &source, e))?.size();
        emit(bare(Message::FileBegin(FileBegin { index, size })))?;
        let mut check = self.page_check(path);
        let (sha256, equal_bytes) = self.send_content(&file, &source, size, &mut check, theirs, emit)?;
        theirs.finish()?;
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
        emit(Piece { equal_bytes, ..bare(Message::FileEnd(end)) })
    }

    /// Emits what differs; gives the digest of the whole, and how much was equal at the end.
    fn send_content(
        &mut self,
        file: &File,
        source: &Path,
        size: u64,
        check: &mut Option<PageCheck>,
        theirs: &mut Theirs<'_>,
        emit: &mut Emit<'_>,
    ) -> Result<(Digest, u64), ReadError> {
        let mut sha256 = Sha256::new();
        let (mut offset, mut sent_to) = (0, 0);
        let mut at_end = false;
        while offset < size {
            let wanted = (size - offset).min(UNIT_BYTES as u64) as usize;
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
            for run in theirs.differing(&self.buffer)? {
                let start = offset + run.start as u64;
                let (bytes, equal_bytes) = (run.len() as u64, start - sent_to);
                let message = Message::FileChunk(self.chunk(source, start, run)?);
                emit(Piece { message, bytes, equal_bytes })?;
                sent_to = start + bytes;
            }
            offset += wanted as u64;
        }
        Ok((Digest(sha256.finalize().into()), size - sent_to))
    }

    /// A part of the buffer as a chunk, compressed where that makes it smaller.
    fn chunk(&mut self, source: &Path, offset: u64, part: Range<usize>) -> Result<FileChunk, ReadError> {
        let raw = &self.buffer[part];
        if let Some(compressor) = &mut self.compressor {
            let compressed = compressor
                .compress(raw)
                .map_err(|e| ReadError::Compress { path: source.to_owned(), source: e })?;
            if compressed.len() < raw.len() {
                return Ok(FileChunk { offset, compressed: true, data: compressed.into() });
            }
        }
        Ok(FileChunk { offset, compressed: false, data: Bytes::copy_from_slice(raw) })
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
    use crate::link::message::WantFile;
    use std::fs;

    /// What a file becomes at a taker that has something in its place.
    struct Sent {
        begin: FileBegin,
        content: Vec<u8>,
        end: FileEnd,
        wire_bytes: usize,
        sent_bytes: u64,
        equal_bytes: u64,
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
        send_over(reading, path, None)
    }

    fn send_over(reading: Reading, path: &str, there: Option<&[u8]>) -> Sent {
        let digests: Vec<u8> =
            there.unwrap_or_default().chunks(BLOCK_BYTES).flat_map(|block| Digest::of(block).0).collect();
        let want = WantFile { index: 7, continues: false, digests: digests.into() };
        let mut messages = Vec::new();
        let mut reader = FileReader::new(reading).unwrap();
        let mut emit = |piece| {
            messages.push(piece);
            Ok(())
        };
        reader.send(7, Path::new(path), &mut Theirs::new(want, &mut || None), &mut emit).unwrap();
        let equal_bytes = messages.iter().map(|piece| piece.equal_bytes).sum();
        let sent_bytes = messages.iter().map(|piece| piece.bytes).sum();
        let Some(Message::FileEnd(end)) = messages.pop().map(|piece| piece.message) else { panic!("no end") };
        let mut messages = messages.into_iter();
        let Some(Message::FileBegin(begin)) = messages.next().map(|piece| piece.message) else { panic!() };
        let mut content = there.unwrap_or_default().to_vec();
        content.resize(begin.size as usize, 0);
        let mut wire_bytes = 0;
        for piece in messages {
            let Message::FileChunk(chunk) = piece.message else { panic!("{:?}", piece.message) };
            wire_bytes += chunk.data.len();
            let raw = if chunk.compressed {
                zstd::bulk::decompress(&chunk.data, FileChunk::RAW_LIMIT_BYTES).unwrap()
            } else {
                chunk.data.to_vec()
            };
            assert_eq!(piece.bytes, raw.len() as u64);
            content[chunk.offset as usize..][..raw.len()].copy_from_slice(&raw);
        }
        assert_eq!(end.sha256, Digest::of(&content));
        assert_eq!((begin.index, begin.size, end.size), (7, content.len() as u64, content.len() as u64));
        assert_eq!(equal_bytes + sent_bytes, end.size);
        Sent { begin, content, end, wire_bytes, sent_bytes, equal_bytes }
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
        let text: Vec<u8> = (0..UNIT_BYTES * 2 + 77).map(|n| (n / 100) as u8).collect();
        for (name, content) in [("PG_VERSION", &b"15\n"[..]), ("empty", b""), ("log/text", &text)] {
            write(root.path(), name, content);
            let sent = send(reading(root.path()), name);
            assert_eq!(sent.content, content);
            assert_eq!((sent.begin.size, sent.equal_bytes), (content.len() as u64, 0));
            let as_it_is = send(Reading { compression: None, ..reading(root.path()) }, name);
            assert_eq!(as_it_is.content, content);
            assert!(sent.wire_bytes <= as_it_is.wire_bytes);
        }
        assert!(send(reading(root.path()), "log/text").wire_bytes < text.len() / 10);
    }

    #[test]
    fn only_blocks_that_differ_are_sent() {
        let root = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..UNIT_BYTES * 2 + 77).map(|n| ((n * n) >> 8) as u8).collect();
        write(root.path(), "base/5/112", &content);
        let over = |there: &[u8]| {
            let sent = send_over(reading(root.path()), "base/5/112", Some(there));
            assert_eq!(sent.content, content);
            sent.sent_bytes
        };
        let block = BLOCK_BYTES as u64;
        assert_eq!(over(&content), 0);
        assert_eq!(over(&[&content[..], b"longer"].concat()), 77, "the last block is another one");
        assert_eq!(over(&content[..content.len() - 1]), 77);
        assert_eq!(over(&[]), content.len() as u64);
        let mut there = content.clone();
        there[UNIT_BYTES - 1] ^= 1;
        assert_eq!(over(&there), block);
        // At the start of the next unit: two blocks side by side, in two messages.
        there[UNIT_BYTES] ^= 1;
        assert_eq!(over(&there), 2 * block);
        there.truncate(UNIT_BYTES + 1);
        assert_eq!(over(&there), content.len() as u64 - UNIT_BYTES as u64 + block);
    }

    /// Sends to a taker that has nothing.
    fn send_all(reader: &mut FileReader, path: &str, emit: &mut Emit<'_>) -> Result<(), ReadError> {
        let want = WantFile { index: 0, continues: false, digests: Bytes::new() };
        reader.send(0, Path::new(path), &mut Theirs::new(want, &mut || None), emit)
    }

    #[test]
    fn a_file_that_is_gone_is_no_error_and_an_unreadable_one_is() {
        let root = tempfile::tempdir().unwrap();
        let mut reader = FileReader::new(reading(root.path())).unwrap();
        let mut said = Vec::new();
        let mut emit = |piece: Piece| {
            said.push(piece.message);
            Ok(())
        };
        send_all(&mut reader, "base/1/2", &mut emit).unwrap();
        assert_eq!(said, [Message::FileGone(FileGone { index: 0 })]);
        write(root.path(), "a", b"");
        let mut emit = |_: Piece| panic!("nothing to emit");
        let error = send_all(&mut reader, "a/b", &mut emit).unwrap_err();
        assert!(error.to_string().starts_with("open /"), "{error}");
    }

    #[test]
    fn a_file_that_shrinks_is_padded_with_zeros() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("base/5/16384");
        write(root.path(), "base/5/16384", &vec![7; UNIT_BYTES * 2]);
        let mut content = 0;
        let mut reader = FileReader::new(Reading { data_checksums: false, ..reading(root.path()) }).unwrap();
        let mut emit = |piece: Piece| {
            if matches!(piece.message, Message::FileBegin(_)) {
                fs::File::options().write(true).open(&path).unwrap().set_len(10).unwrap();
            }
            content += piece.bytes;
            Ok(())
        };
        send_all(&mut reader, "base/5/16384", &mut emit).unwrap();
        assert_eq!(content, UNIT_BYTES as u64 * 2);
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
        let error = send_all(&mut reader, "x", &mut |_| Err(ReadError::Gone)).unwrap_err();
        assert!(matches!(error, ReadError::Gone));
    }
}
