//! Writes files as they arrive on one connection: checked, private, durable.
//!
//! What the peer sends is not trusted: a path has to lie where this copy is made, a file may come only once, and its
//! size and SHA-256 have to be what was announced. Blocks: one [`FileWriter`] belongs to one blocking thread.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use sha2::{Digest as _, Sha256};
use zstd::bulk::Decompressor;

use super::tablespace::Placement;
use super::target::{MARKER_FILE, PENDING_CONTROL_FILE};
use crate::durable::{self, FileError};
use crate::link::Message;
use crate::link::message::{Digest, EntryKind, FileBegin, FileChunk, FileEnd};
use crate::pg::control::CONTROL_FILE;
use crate::pg::label::{BACKUP_LABEL_FILE, TABLESPACE_MAP_FILE};
use crate::pg::manifest::{Checksum, MANIFEST_FILE, ManifestFile};

/// Files that are written here and never taken from the peer among others.
const RESERVED: [&str; 7] = [
    CONTROL_FILE,
    PENDING_CONTROL_FILE,
    BACKUP_LABEL_FILE,
    TABLESPACE_MAP_FILE,
    MANIFEST_FILE,
    MARKER_FILE,
    "postmaster.pid",
];

/// Where the files of a copy go.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The data directory.
    pub target: PathBuf,
    /// The tablespaces elsewhere.
    pub placements: Vec<Placement>,
}

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

impl Layout {
    /// Where a path of the copy is on this host; refuses what would leave the places of the copy, or what the peer
    /// has no business to send.
    fn place(&self, path: &Path, kind: EntryKind) -> Result<PathBuf, &'static str> {
        let is_inside = path.components().all(|part| matches!(part, Component::Normal(_)));
        if !is_inside || path.as_os_str().is_empty() {
            return Err("leaves the data directory");
        }
        let is_reserved = RESERVED.iter().any(|reserved| path == Path::new(reserved));
        if is_reserved || kind == EntryKind::File && path.starts_with("pg_wal") {
            return Err("is the taker's own to write");
        }
        let parts: Vec<&OsStr> = path.iter().collect();
        let placement = match parts[..] {
            [first, oid, ..] if first == "pg_tblspc" => self.placement_of(oid),
            _ => None,
        };
        let Some(placement) = placement else { return Ok(self.target.join(path)) };
        let place: PathBuf =
            std::iter::once(placement.path.as_os_str()).chain(parts[2..].iter().copied()).collect();
        if place.starts_with(&placement.folder) {
            Ok(place)
        } else {
            Err("is not the cluster's in its tablespace")
        }
    }

    fn placement_of(&self, oid: &OsStr) -> Option<&Placement> {
        let oid: u32 = oid.to_str()?.parse().ok()?;
        self.placements.iter().find(|placement| placement.oid == oid)
    }
}

/// Takes the messages of one connection.
pub struct FileWriter {
    layout: Layout,
    decompressor: Decompressor<'static>,
    open: Option<OpenFile>,
    written: Written,
}

/// A file of which more is to come.
struct OpenFile {
    begin: FileBegin,
    place: PathBuf,
    file: File,
    offset: u64,
    sha256: Sha256,
}

impl FileWriter {
    /// Writes below the layout's places.
    pub fn new(layout: Layout) -> io::Result<FileWriter> {
        Ok(FileWriter { layout, decompressor: Decompressor::new()?, open: None, written: Written::default() })
    }

    /// Takes the next message; returns how many bytes of a file it stood for.
    pub fn take(&mut self, message: Message) -> Result<u64, WriteError> {
        match (message, self.open.take()) {
            (Message::FileBegin(begin), None) => self.begin(begin).map(|()| 0),
            (Message::FileChunk(chunk), Some(open)) => self.append(open, &chunk),
            (Message::FileEnd(end), Some(open)) => self.end(open, &end).map(|()| 0),
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

    fn begin(&mut self, begin: FileBegin) -> Result<(), WriteError> {
        let path = begin.path.as_path();
        let place = self.layout.place(path, begin.kind);
        let place = place.map_err(|reason| WriteError::Refused { path: begin.path.to_string(), reason })?;
        if begin.kind == EntryKind::Folder {
            return Ok(durable::create_folder(&place)?);
        }
        if let Some(parent) = place.parent() {
            durable::create_folder(parent)?;
        }
        // The folder was empty and is ours alone: a name that exists came twice.
        let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&place);
        let file = created.map_err(|e| FileError::new("create", &place, e))?;
        self.open = Some(OpenFile { begin, place, file, offset: 0, sha256: Sha256::new() });
        Ok(())
    }

    fn append(&mut self, mut open: OpenFile, chunk: &FileChunk) -> Result<u64, WriteError> {
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
        let end = open.offset + bytes.len() as u64;
        if chunk.offset != open.offset || end > open.begin.size {
            return Err(open.damaged(format!(
                "{} bytes for offset {} came where offset {} of {} was due",
                bytes.len(),
                chunk.offset,
                open.offset,
                open.begin.size
            )));
        }
        open.file.write_all(bytes).map_err(|e| FileError::new("write", &open.place, e))?;
        open.sha256.update(bytes);
        open.offset = end;
        self.open = Some(open);
        Ok(bytes.len() as u64)
    }

    fn end(&mut self, mut open: OpenFile, end: &FileEnd) -> Result<(), WriteError> {
        let sha256 = Digest(std::mem::take(&mut open.sha256).finalize().into());
        if (open.offset, open.begin.size) != (end.size, end.size) {
            let (announced, sent) = (open.begin.size, end.size);
            let reason = format!("{} bytes came, {announced} were announced and {sent} sent", open.offset);
            return Err(open.damaged(reason));
        }
        if sha256 != end.sha256 {
            return Err(open.damaged(format!("its SHA-256 is {sha256}, and {} was sent", end.sha256)));
        }
        durable::sync_data(&open.file, &open.place)?;
        let path = open.begin.path.as_path();
        if end.bad_pages > 0 {
            let bad = BadPages { path: path.to_owned(), count: end.bad_pages, first: end.first_bad_page };
            self.written.bad_pages.push(bad);
        }
        self.written.files.push(manifest_file(path, end.size, end.modified_unix_seconds, sha256));
        Ok(())
    }
}

impl OpenFile {
    fn damaged(&self, reason: String) -> WriteError {
        WriteError::Damaged { path: self.begin.path.to_string(), reason }
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
    use super::*;
    use crate::link::message::WirePath;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn layout(root: &Path) -> Layout {
        let path = root.join("space");
        let placement = Placement { oid: 16500, folder: path.join("PG_15_42"), path };
        Layout { target: root.join("data"), placements: vec![placement] }
    }

    fn begin(path: &str, kind: EntryKind, size: u64) -> Message {
        let path = WirePath::new(path).unwrap();
        Message::FileBegin(FileBegin { path, kind, size, mode: 0o777, modified_unix_seconds: 5 })
    }

    fn chunk(offset: u64, data: &[u8]) -> Message {
        Message::FileChunk(FileChunk { offset, compressed: false, data: data.to_vec().into() })
    }

    fn end(content: &[u8]) -> Message {
        Message::FileEnd(FileEnd {
            size: content.len() as u64,
            sha256: Digest(Sha256::digest(content).into()),
            modified_unix_seconds: 6,
            bad_pages: 0,
            first_bad_page: None,
        })
    }

    fn take_all(root: &Path, messages: Vec<Message>) -> Result<Written, WriteError> {
        let mut writer = FileWriter::new(layout(root)).unwrap();
        for message in messages {
            writer.take(message)?;
        }
        writer.finish()
    }

    #[test]
    fn files_are_written_where_they_belong_and_are_private() {
        let root = tempfile::tempdir().unwrap();
        let content = b"a page of it";
        let compressed = zstd::bulk::compress(content, 1).unwrap();
        let compressed =
            Message::FileChunk(FileChunk { offset: 0, compressed: true, data: compressed.into() });
        let messages = vec![
            begin("pg_notify", EntryKind::Folder, 0),
            begin("base/5/112", EntryKind::File, content.len() as u64),
            compressed,
            end(content),
            begin("pg_tblspc/16500/PG_15_42/5/16400", EntryKind::File, 2),
            chunk(0, b"x"),
            chunk(1, b"y"),
            end(b"xy"),
            begin("pg_tblspc/16501/PG_15_42/5/16400", EntryKind::File, 0),
            end(b""),
        ];
        let written = take_all(root.path(), messages).unwrap();
        assert_eq!(fs::read(root.path().join("data/base/5/112")).unwrap(), content);
        assert_eq!(fs::read(root.path().join("space/PG_15_42/5/16400")).unwrap(), b"xy");
        assert!(root.path().join("data/pg_tblspc/16501/PG_15_42/5/16400").is_file());
        let mode = |path: &str| fs::metadata(root.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode("data/pg_notify"), mode("data/base/5"), mode("data/base/5/112")),
            (0o700, 0o700, 0o600)
        );
        let names: Vec<&[u8]> = written.files.iter().map(|file| &file.path[..]).collect();
        let expected =
            [&b"base/5/112"[..], b"pg_tblspc/16500/PG_15_42/5/16400", b"pg_tblspc/16501/PG_15_42/5/16400"];
        assert_eq!(names, expected);
        assert_eq!(written.files[0].modified_unix_seconds, 6);
    }

    /// `WirePath` refuses most of these as they are decoded; the layout does not rely on it.
    #[test]
    fn hostile_paths_are_refused() {
        let layout = layout(Path::new("/srv"));
        let hostile = [
            "",
            "/etc/passwd",
            "../outside",
            "base/../../outside",
            "./base",
            "global/pg_control",
            "global/pg_control.walship",
            "backup_label",
            "tablespace_map",
            "backup_manifest",
            "walship.incomplete",
            "postmaster.pid",
            "pg_wal/000000010000000000000001",
            "pg_tblspc/16500",
            "pg_tblspc/16500/PG_14_41/5/1",
            "pg_tblspc/016500/etc/passwd",
        ];
        for path in hostile {
            assert!(layout.place(Path::new(path), EntryKind::File).is_err(), "{path}");
        }
        assert!(layout.place(Path::new("pg_wal/archive_status"), EntryKind::Folder).is_ok());
    }

    #[test]
    fn what_does_not_fit_its_announcement_is_refused() {
        let damaged = |messages: Vec<Message>| {
            let root = tempfile::tempdir().unwrap();
            match take_all(root.path(), messages).err().unwrap() {
                WriteError::Damaged { path, .. } => assert_eq!(path, "base/1"),
                other => panic!("{other}"),
            }
        };
        let begin = |size| begin("base/1", EntryKind::File, size);
        damaged(vec![begin(2), chunk(0, b"x"), end(b"x")]);
        damaged(vec![begin(1), chunk(0, b"xx")]);
        damaged(vec![begin(2), chunk(1, b"x")]);
        damaged(vec![begin(1), chunk(0, b"x"), end(b"y")]);
        let garbage = Message::FileChunk(FileChunk { offset: 0, compressed: true, data: vec![1; 9].into() });
        damaged(vec![begin(9), garbage]);
        let bomb = zstd::bulk::compress(&vec![0; FileChunk::RAW_LIMIT_BYTES + 1], 1).unwrap();
        let bomb = Message::FileChunk(FileChunk { offset: 0, compressed: true, data: bomb.into() });
        damaged(vec![begin(1 << 40), bomb]);
    }

    #[test]
    fn messages_out_of_order_and_files_that_come_twice_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let file = || begin("base/1", EntryKind::File, 0);
        let out_of_order = |messages: Vec<Message>| {
            let root = tempfile::tempdir().unwrap();
            let error = take_all(root.path(), messages).err().unwrap();
            assert!(matches!(error, WriteError::OutOfOrder { .. }), "{error}");
        };
        out_of_order(vec![chunk(0, b"x")]);
        out_of_order(vec![end(b"")]);
        out_of_order(vec![file(), file()]);
        out_of_order(vec![file()]);
        out_of_order(vec![Message::BackupStop]);
        let twice = take_all(root.path(), vec![file(), end(b""), file()]).err().unwrap();
        assert!(twice.to_string().starts_with("create "), "{twice}");
    }
}
