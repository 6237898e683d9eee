//! Writes files as they arrive on one connection: into what is here, checked, private, durable.
//!
//! What the peer sends is not trusted: a file has to have been asked for, its parts have to follow each other, and its
//! size and SHA-256 have to be what was announced. What is left out has to be here. Blocks: one [`FileWriter`] belongs to
//! one blocking thread.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use zstd::bulk::Decompressor;

use super::asked::{Asked, Here};
use super::site::Site;
use super::target::remove_tree;
use crate::durable::{self, FileError};
use crate::link::Message;
use crate::link::message::{BLOCK_BYTES, Digest, FileBegin, FileChunk, FileEnd, FileGone};
use crate::pg::manifest::{Checksum, ManifestFile};

/// A file that could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file system said no.
    #[error(transparent)]
    File(#[from] FileError),
    /// The peer sent something that has no place in a copy.
    #[error("the source sent {path}, which {reason}")]
    Refused {
        /// As it was sent.
        path: String,
        /// Why it was not taken.
        reason: &'static str,
    },
    /// What arrived is not what was sent.
    #[error("{path} arrived damaged: {reason}")]
    Damaged {
        /// The file.
        path: String,
        /// What does not fit.
        reason: String,
    },
    /// The messages of a file came out of order.
    #[error("{got} came from the source where {wanted} was due")]
    OutOfOrder {
        /// What would have been right.
        wanted: &'static str,
        /// What came.
        got: &'static str,
    },
}

/// Pages with wrong checksums in one file, as the source found them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadPages {
    /// The file, relative to the data directory.
    pub path: PathBuf,
    /// How many.
    pub count: u32,
    /// The first of them, counted within the file.
    pub first: Option<u32>,
}

/// What was written.
#[derive(Debug, Default)]
pub struct Written {
    /// Every file, for the manifest.
    pub files: Vec<ManifestFile>,
    /// Those with bad pages.
    pub bad_pages: Vec<BadPages>,
}

impl Written {
    /// Adds what another connection wrote.
    pub fn add(&mut self, other: Written) {
        self.files.extend(other.files);
        self.bad_pages.extend(other.bad_pages);
    }
}

/// How many bytes of files a message stood for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Took {
    /// Written.
    pub written_bytes: u64,
    /// Left as they were.
    pub equal_bytes: u64,
    /// A file was complete, or gone.
    pub ends_file: bool,
}

/// Takes the messages of one connection.
pub(super) struct FileWriter {
    site: Arc<Site>,
    asked: Arc<Asked>,
    decompressor: Decompressor<'static>,
    buffer: Vec<u8>,
    open: Option<OpenFile>,
    written: Written,
}

/// A file of which more is to come.
struct OpenFile {
    begin: FileBegin,
    path: PathBuf,
    place: PathBuf,
    file: File,
    /// It is compared, so that parts may be left out.
    compares: bool,
    /// All below this is as it is at the source; what of it was written.
    offset: u64,
    written_bytes: u64,
    /// Of what is below `hashed_to`. What is left out is hashed only when something behind it is not, or at the end.
    sha256: Sha256,
    hashed_to: u64,
}

impl FileWriter {
    /// Writes what was asked for below the site's places.
    pub fn new(site: Arc<Site>, asked: Arc<Asked>) -> io::Result<FileWriter> {
        let (decompressor, written) = (Decompressor::new()?, Written::default());
        Ok(FileWriter { site, asked, decompressor, buffer: Vec::new(), open: None, written })
    }

    /// Takes the next message.
    pub fn take(&mut self, message: Message) -> Result<Took, WriteError> {
        match (message, self.open.take()) {
            (Message::FileBegin(begin), None) => self.begin(begin),
            (Message::FileGone(gone), None) => self.gone(gone),
            (Message::FileChunk(chunk), Some(open)) => self.write(open, &chunk),
            (Message::FileEnd(end), Some(open)) => self.end(open, &end),
            (other, open) => {
                let wanted = if open.is_some() { "FileChunk or FileEnd" } else { "FileBegin" };
                Err(WriteError::OutOfOrder { wanted, got: other.name() })
            }
        }
    }

    /// What was written, once nothing more comes.
    pub fn finish(self) -> Result<Written, WriteError> {
        match self.open {
            None => Ok(self.written),
            Some(_) => Err(WriteError::OutOfOrder { wanted: "FileChunk or FileEnd", got: "the end" }),
        }
    }

    /// The path of a file that was asked for, and whether what is here of it is compared.
    fn asked_for(&self, index: u32) -> Result<(PathBuf, bool), WriteError> {
        let got = "a file that nobody asked for";
        let compares = self.asked.compares(index);
        let compares = compares.ok_or(WriteError::OutOfOrder { wanted: "what was asked for", got })?;
        Ok((self.site.listing.files[index as usize].path.clone(), compares))
    }

    fn begin(&mut self, begin: FileBegin) -> Result<Took, WriteError> {
        let (path, compares) = self.asked_for(begin.index)?;
        let place = self.site.place(&path);
        let opened = match compares {
            true => OpenOptions::new().read(true).write(true).open(&place),
            // Whatever stood in its place was removed: a name that exists came twice.
            false => OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&place),
        };
        let file = opened.map_err(|e| FileError::new("create", &place, e))?;
        if compares {
            let private = fs::Permissions::from_mode(0o600);
            file.set_permissions(private)
                .map_err(|e| FileError::new("change the permissions of", &place, e))?;
        }
        let (sha256, offset) = (Sha256::new(), 0);
        self.open = Some(OpenFile {
            begin,
            path,
            place,
            file,
            compares,
            offset,
            written_bytes: 0,
            sha256,
            hashed_to: 0,
        });
        Ok(Took::default())
    }

    /// The source has it no more: nor has the copy.
    fn gone(&mut self, gone: FileGone) -> Result<Took, WriteError> {
        let (path, _) = self.asked_for(gone.index)?;
        remove_tree(&self.site.place(&path))?;
        self.asked.answered(gone.index);
        Ok(Took { ends_file: true, ..Took::default() })
    }

    fn write(&mut self, mut open: OpenFile, chunk: &FileChunk) -> Result<Took, WriteError> {
        let decompressed;
        let bytes = if chunk.compressed {
            decompressed = self
                .decompressor
                .decompress(&chunk.data, FileChunk::RAW_LIMIT_BYTES)
                .map_err(|e| open.damaged(format!("a part cannot be decompressed: {e}")))?;
            &decompressed[..]
        } else {
            &chunk.data[..]
        };
        let end = chunk.offset.saturating_add(bytes.len() as u64);
        let follows = if open.compares { chunk.offset >= open.offset } else { chunk.offset == open.offset };
        if !follows || end > open.begin.size {
            return Err(open.damaged(format!(
                "{} bytes for offset {} came where offset {} of {} was due",
                bytes.len(),
                chunk.offset,
                open.offset,
                open.begin.size
            )));
        }
        let equal_bytes = chunk.offset - open.offset;
        open.hash_up_to(chunk.offset, &mut self.buffer)?;
        open.file.write_all_at(bytes, chunk.offset).map_err(|e| FileError::new("write", &open.place, e))?;
        open.sha256.update(bytes);
        (open.offset, open.hashed_to) = (end, end);
        open.written_bytes += bytes.len() as u64;
        self.open = Some(open);
        Ok(Took { written_bytes: bytes.len() as u64, equal_bytes, ends_file: false })
    }

    fn end(&mut self, mut open: OpenFile, end: &FileEnd) -> Result<Took, WriteError> {
        let size = open.begin.size;
        let equal_bytes = size - open.offset;
        let here = self.asked.answered(open.begin.index);
        if end.size != size || equal_bytes > 0 && !open.compares {
            let (came, sent) = (open.offset, end.size);
            return Err(open.damaged(format!("{came} bytes came, {size} were announced and {sent} sent")));
        }
        let sha256 = match here {
            // Nothing of it was touched: it was hashed as it was compared.
            Some(Here { bytes, sha256: Some(sha256) }) if open.written_bytes == 0 && bytes == size => sha256,
            _ => {
                open.hash_up_to(size, &mut self.buffer)?;
                Digest(std::mem::take(&mut open.sha256).finalize().into())
            }
        };
        if sha256 != end.sha256 {
            return Err(open.damaged(format!("its SHA-256 is {sha256}, and {} was sent", end.sha256)));
        }
        if open.compares {
            // What was here may have been longer.
            open.file.set_len(size).map_err(|e| FileError::new("truncate", &open.place, e))?;
        }
        durable::sync_data(&open.file, &open.place)?;
        if end.bad_pages > 0 {
            let bad = BadPages { path: open.path.clone(), count: end.bad_pages, first: end.first_bad_page };
            self.written.bad_pages.push(bad);
        }
        self.written.files.push(manifest_file(&open.path, size, end.modified_unix_seconds, sha256));
        Ok(Took { written_bytes: 0, equal_bytes, ends_file: true })
    }
}

impl OpenFile {
    /// Hashes what was left out before `end`, which has to be here.
    fn hash_up_to(&mut self, end: u64, buffer: &mut Vec<u8>) -> Result<(), WriteError> {
        buffer.resize(BLOCK_BYTES, 0);
        while self.hashed_to < end {
            let wanted = (end - self.hashed_to).min(BLOCK_BYTES as u64) as usize;
            let read = self.file.read_exact_at(&mut buffer[..wanted], self.hashed_to);
            match read {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(
                        self.damaged(format!("what is at {} was left out and is not here", self.hashed_to))
                    );
                }
                Err(e) => return Err(FileError::new("read", &self.place, e).into()),
            }
            self.sha256.update(&buffer[..wanted]);
            self.hashed_to += wanted as u64;
        }
        Ok(())
    }

    fn damaged(&self, reason: String) -> WriteError {
        WriteError::Damaged { path: self.path.display().to_string(), reason }
    }
}

/// A file's line in the manifest.
pub fn manifest_file(path: &Path, size: u64, modified_unix_seconds: i64, sha256: Digest) -> ManifestFile {
    let checksum = Checksum { algorithm: "SHA256".to_owned(), bytes: sha256.0.to_vec() };
    let path = path.as_os_str().as_bytes().to_vec();
    ManifestFile { path, size, modified_unix_seconds, checksum: Some(checksum) }
}

#[cfg(test)]
mod tests {
    use super::super::layout::Layout;
    use super::super::listing::{ListedFile, Listing};
    use super::super::tablespace::Placement;
    use super::*;

    /// What a taker has before, and what it asked for: every file that is listed.
    struct Taker {
        root: tempfile::TempDir,
        names: Vec<&'static str>,
        asked: Arc<Asked>,
    }

    impl Taker {
        fn new(names: &[&'static str]) -> Taker {
            let root = tempfile::tempdir().unwrap();
            for folder in ["data/base/5", "data/pg_tblspc/16501", "space/PG_15_42/5"] {
                fs::create_dir_all(root.path().join(folder)).unwrap();
            }
            let asked = Arc::new(Asked::default());
            (0..names.len() as u32).for_each(|index| asked.begin(index, 0, false));
            Taker { root, names: names.to_vec(), asked }
        }

        /// Asks anew for a file with what is here.
        fn with(self, index: u32, content: &[u8]) -> Taker {
            fs::write(self.path(self.names[index as usize]), content).unwrap();
            self.asked.answered(index);
            self.asked.begin(index, 0, true);
            let here = Here { bytes: content.len() as u64, sha256: Some(Digest::of(content)) };
            self.asked.found(index, here);
            self
        }

        fn path(&self, name: &str) -> PathBuf {
            self.root.path().join("data").join(name)
        }

        fn writer(&self) -> FileWriter {
            let path = self.root.path().join("space");
            let placement = Placement { oid: 16500, folder: path.join("PG_15_42"), path };
            let layout = Layout { target: self.root.path().join("data"), placements: vec![placement] };
            let files = self.names.iter().map(|name| ListedFile { path: name.into(), bytes: 0 }).collect();
            let site = Site::plain(layout, Listing { files, ..Listing::default() });
            FileWriter::new(Arc::new(site), Arc::clone(&self.asked)).unwrap()
        }

        fn take(&self, messages: Vec<Message>) -> Result<(Written, Took), WriteError> {
            let mut writer = self.writer();
            let mut sum = Took::default();
            for message in messages {
                let took = writer.take(message)?;
                sum.written_bytes += took.written_bytes;
                sum.equal_bytes += took.equal_bytes;
            }
            Ok((writer.finish()?, sum))
        }
    }

    fn begin(index: u32, size: usize) -> Message {
        Message::FileBegin(FileBegin { index, size: size as u64 })
    }

    fn chunk(offset: u64, data: &[u8]) -> Message {
        Message::FileChunk(FileChunk { offset, compressed: false, data: data.to_vec().into() })
    }

    fn end(content: &[u8]) -> Message {
        Message::FileEnd(FileEnd {
            size: content.len() as u64,
            sha256: Digest::of(content),
            modified_unix_seconds: 6,
            bad_pages: 0,
            first_bad_page: None,
        })
    }

    #[test]
    fn files_are_written_where_they_belong_and_are_private() {
        let names = ["base/5/112", "pg_tblspc/16500/PG_15_42/5/16400", "pg_tblspc/16501/16400"];
        let taker = Taker::new(&names);
        let content = b"a page of it";
        let compressed = zstd::bulk::compress(content, 1).unwrap();
        let compressed =
            Message::FileChunk(FileChunk { offset: 0, compressed: true, data: compressed.into() });
        let messages = vec![
            begin(0, content.len()),
            compressed,
            end(content),
            begin(1, 2),
            chunk(0, b"x"),
            chunk(1, b"y"),
            end(b"xy"),
            begin(2, 0),
            end(b""),
        ];
        let (written, took) = taker.take(messages).unwrap();
        assert_eq!((took.written_bytes, took.equal_bytes), (content.len() as u64 + 2, 0));
        assert_eq!(fs::read(taker.path("base/5/112")).unwrap(), content);
        assert_eq!(fs::read(taker.root.path().join("space/PG_15_42/5/16400")).unwrap(), b"xy");
        assert!(taker.path("pg_tblspc/16501/16400").is_file());
        let mode = fs::metadata(taker.path("base/5/112")).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let paths: Vec<&[u8]> = written.files.iter().map(|file| &file.path[..]).collect();
        assert_eq!(paths, names.map(str::as_bytes));
        assert_eq!(written.files[0].modified_unix_seconds, 6);
    }

    #[test]
    fn what_is_equal_stays_and_what_differs_is_written_into_it() {
        let here = b"abcdefghij";
        let over = |messages: Vec<Message>| {
            let taker = Taker::new(&["base/5/112"]).with(0, here);
            fs::set_permissions(taker.path("base/5/112"), fs::Permissions::from_mode(0o644)).unwrap();
            let (written, took) = taker.take(messages).unwrap();
            let mode = fs::metadata(taker.path("base/5/112")).unwrap().permissions().mode() & 0o777;
            assert_eq!((written.files.len(), mode), (1, 0o600));
            (fs::read(taker.path("base/5/112")).unwrap(), took.written_bytes, took.equal_bytes)
        };
        assert_eq!(over(vec![begin(0, 10), end(here)]), (here.to_vec(), 0, 10));
        assert_eq!(over(vec![begin(0, 4), end(b"abcd")]), (b"abcd".to_vec(), 0, 4));
        let changed = b"abCDefghIJKL";
        let messages = vec![begin(0, 12), chunk(2, b"CD"), chunk(8, b"IJKL"), end(changed)];
        assert_eq!(over(messages), (changed.to_vec(), 6, 6));
        assert_eq!(over(vec![begin(0, 1), chunk(0, b"X"), end(b"X")]), (b"X".to_vec(), 1, 0));
    }

    #[test]
    fn a_file_that_is_gone_at_the_source_goes() {
        let taker = Taker::new(&["base/5/112", "base/5/113"]).with(0, b"x");
        let gone = |index| Message::FileGone(FileGone { index });
        let (written, _) = taker.take(vec![gone(0), gone(1)]).unwrap();
        assert!(written.files.is_empty() && !taker.path("base/5/112").exists());
    }

    #[test]
    fn what_does_not_fit_its_announcement_is_refused() {
        let damaged = |taker: Taker, messages: Vec<Message>| match taker.take(messages).err().unwrap() {
            WriteError::Damaged { path, .. } => assert_eq!(path, "base/5/1"),
            other => panic!("{other}"),
        };
        let new = || Taker::new(&["base/5/1"]);
        damaged(new(), vec![begin(0, 2), chunk(0, b"x"), end(b"x")]);
        damaged(new(), vec![begin(0, 1), chunk(0, b"xx")]);
        damaged(new(), vec![begin(0, 2), chunk(1, b"x")]);
        damaged(new(), vec![begin(0, 1), chunk(0, b"x"), end(b"y")]);
        damaged(new(), vec![begin(0, 2), chunk(u64::MAX, b"xx")]);
        let garbage = Message::FileChunk(FileChunk { offset: 0, compressed: true, data: vec![1; 9].into() });
        damaged(new(), vec![begin(0, 9), garbage]);
        let bomb = zstd::bulk::compress(&vec![0; FileChunk::RAW_LIMIT_BYTES + 1], 1).unwrap();
        let bomb = Message::FileChunk(FileChunk { offset: 0, compressed: true, data: bomb.into() });
        damaged(new(), vec![begin(0, 1 << 40), bomb]);
    }

    #[test]
    fn what_is_left_out_has_to_be_here_and_right() {
        let damaged = |here: &[u8], messages: Vec<Message>| {
            let taker = Taker::new(&["base/5/1"]).with(0, here);
            let error = taker.take(messages).err().unwrap();
            assert!(matches!(error, WriteError::Damaged { .. }), "{error}");
        };
        damaged(b"abc", vec![begin(0, 3), end(b"abd")]);
        damaged(b"abc", vec![begin(0, 4), end(b"abcd")]);
        damaged(b"abc", vec![begin(0, 6), chunk(5, b"f"), end(b"abcdef")]);
        damaged(b"abc", vec![begin(0, 3), chunk(2, b"c"), end(b"xbc")]);
        damaged(b"abc", vec![begin(0, 3), chunk(2, b"c"), chunk(0, b"a")]);
        let taker = Taker::new(&["base/5/1"]);
        let error = taker.take(vec![begin(0, 3), end(b"abc")]).err().unwrap();
        assert!(matches!(error, WriteError::Damaged { .. }), "nothing is here: {error}");
    }

    #[test]
    fn messages_out_of_order_and_files_that_nobody_wants_are_refused() {
        let out_of_order = |messages: Vec<Message>| {
            let error = Taker::new(&["base/5/1"]).take(messages).err().unwrap();
            assert!(matches!(error, WriteError::OutOfOrder { .. }), "{error}");
        };
        out_of_order(vec![chunk(0, b"x")]);
        out_of_order(vec![end(b"")]);
        out_of_order(vec![begin(0, 0), begin(0, 0)]);
        out_of_order(vec![begin(0, 0)]);
        out_of_order(vec![Message::BackupStop]);
        out_of_order(vec![begin(1, 0)]);
        out_of_order(vec![begin(0, 0), end(b""), begin(0, 0)]);
        out_of_order(vec![Message::FileGone(FileGone { index: 1 })]);
    }
}
