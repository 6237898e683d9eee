//! Messages that carry a backup's files: what is wanted, and what of it is not there yet.
//!
//! A file is asked for by its place in the listing. Who has something in that place already sends its digests, block
//! by block, and gets only the blocks that differ. All of these come by the million, so they are small and binary.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Digest, take_fields};
use crate::link::LinkError;
use crate::link::frame::Frame;

/// What one digest stands for; the last block of a file is shorter.
///
/// PostgreSQL changes pages of 8 KiB, here and there. With `p` the share of pages that differ and `n` pages a block, a
/// page costs `32 / n` bytes of digests and, zstd making a third of it, about `p * n * 2730` bytes of blocks that go
/// along with the page that changed: least at `n = sqrt(32 / (2730 * p))`, which is 3 for one page in a thousand, 11 for
/// one in ten thousand, 34 for one in a hundred thousand. 8 pages are near enough to all of these: the digests of a
/// terabyte are half a gigabyte, and a page that changed costs at most what a small message to another continent does
/// anyway. A smaller file is one block: then its digest is its checksum.
pub const BLOCK_BYTES: usize = 64 << 10;

/// One file is wanted. It may take several messages, one after the other, when there are many digests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WantFile {
    /// Its place among the files of the listing, counted from zero.
    pub index: u32,
    /// More digests of the same file follow.
    pub continues: bool,
    /// SHA-256 of what is at the taker, block by block, in order; none for what is not. 32 bytes each.
    pub digests: Bytes,
}

const CONTINUES: u8 = 1;

impl WantFile {
    /// The most digests in one message: those of 128 MiB.
    pub const DIGESTS_LIMIT: usize = 2048;

    pub(super) fn encode(self, kind: u8) -> Frame {
        let fields = Bytes::copy_from_slice(&self.index.to_be_bytes());
        let flags = if self.continues { CONTINUES } else { 0 };
        Frame { kind, flags, fields, body: self.digests, ..Frame::default() }
    }

    pub(super) fn decode(frame: Frame) -> Result<WantFile, LinkError> {
        let Frame { flags, body: mut digests, .. } = frame;
        let fields: [u8; 4] = take_fields("WantFile", &mut digests)?;
        let malformed = |reason: String| LinkError::Malformed { message: "WantFile", reason };
        if flags & !CONTINUES != 0 {
            return Err(malformed(format!("flags {flags:#04x} are unknown")));
        }
        if !digests.len().is_multiple_of(Digest::BYTES)
            || digests.len() / Digest::BYTES > WantFile::DIGESTS_LIMIT
        {
            return Err(malformed(format!("{} bytes of digests", digests.len())));
        }
        Ok(WantFile { index: u32::from_be_bytes(fields), continues: flags & CONTINUES != 0, digests })
    }
}

/// A file that was wanted begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileBegin {
    /// As it was asked for.
    pub index: u32,
    /// It has exactly so many bytes.
    pub size: u64,
}

impl FileBegin {
    pub(super) fn encode(self, kind: u8) -> Frame {
        let mut fields = BytesMut::with_capacity(12);
        fields.put_u32(self.index);
        fields.put_u64(self.size);
        Frame { kind, fields: fields.freeze(), ..Frame::default() }
    }

    pub(super) fn decode(frame: Frame) -> Result<FileBegin, LinkError> {
        let mut body = frame.body;
        let fields: [u8; 12] = take_fields("FileBegin", &mut body)?;
        let mut fields = &fields[..];
        Ok(FileBegin { index: fields.get_u32(), size: fields.get_u64() })
    }
}

/// A file that was wanted is no more: replay of the WAL knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileGone {
    /// As it was asked for.
    pub index: u32,
}

impl FileGone {
    pub(super) fn encode(self, kind: u8) -> Frame {
        let fields = Bytes::copy_from_slice(&self.index.to_be_bytes());
        Frame { kind, fields, ..Frame::default() }
    }

    pub(super) fn decode(frame: Frame) -> Result<FileGone, LinkError> {
        let mut body = frame.body;
        let fields: [u8; 4] = take_fields("FileGone", &mut body)?;
        Ok(FileGone { index: u32::from_be_bytes(fields) })
    }
}

/// Consecutive bytes of the file that [`FileBegin`] opened on this connection. What is left out between two of them, or
/// before the end, equals what is at the taker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileChunk {
    /// Where in the file.
    pub offset: u64,
    /// `data` is one whole zstd frame that decodes to at most [`FileChunk::RAW_LIMIT_BYTES`]; otherwise it is the
    /// file's bytes.
    pub compressed: bool,
    /// The bytes.
    pub data: Bytes,
}

const COMPRESSED: u8 = 1;

impl FileChunk {
    /// The most bytes of a file that one chunk may stand for.
    pub const RAW_LIMIT_BYTES: usize = 2 << 20;

    pub(super) fn encode(self, kind: u8) -> Frame {
        let fields = Bytes::copy_from_slice(&self.offset.to_be_bytes());
        let flags = if self.compressed { COMPRESSED } else { 0 };
        Frame { kind, flags, fields, body: self.data, ..Frame::default() }
    }

    pub(super) fn decode(frame: Frame) -> Result<FileChunk, LinkError> {
        let Frame { flags, body: mut data, .. } = frame;
        let fields: [u8; 8] = take_fields("FileChunk", &mut data)?;
        let malformed = |reason: String| LinkError::Malformed { message: "FileChunk", reason };
        if flags & !COMPRESSED != 0 {
            return Err(malformed(format!("flags {flags:#04x} are unknown")));
        }
        let compressed = flags & COMPRESSED != 0;
        if !compressed && data.len() > FileChunk::RAW_LIMIT_BYTES {
            return Err(malformed(format!("{} bytes, over the limit", data.len())));
        }
        Ok(FileChunk { offset: u64::from_be_bytes(fields), compressed, data })
    }
}

/// The file is complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileEnd {
    /// Equal to [`FileBegin::size`].
    pub size: u64,
    /// Of the whole file, sent or left out.
    pub sha256: Digest,
    /// Modification time in whole seconds since 1970 UTC, after the reading.
    pub modified_unix_seconds: i64,
    /// Pages whose checksum was wrong twice.
    pub bad_pages: u32,
    /// The number of the first of them within this file.
    pub first_bad_page: Option<u32>,
}

impl FileEnd {
    const FIELDS_BYTES: usize = 8 + Digest::BYTES + 8 + 4 + 4;

    pub(super) fn encode(self, kind: u8) -> Frame {
        let mut fields = BytesMut::with_capacity(FileEnd::FIELDS_BYTES);
        fields.put_u64(self.size);
        fields.put_slice(&self.sha256.0);
        fields.put_i64(self.modified_unix_seconds);
        fields.put_u32(self.bad_pages);
        // Where there is none it is not looked at.
        fields.put_u32(self.first_bad_page.unwrap_or_default());
        Frame { kind, fields: fields.freeze(), ..Frame::default() }
    }

    pub(super) fn decode(frame: Frame) -> Result<FileEnd, LinkError> {
        let mut body = frame.body;
        let fields: [u8; FileEnd::FIELDS_BYTES] = take_fields("FileEnd", &mut body)?;
        let mut fields = &fields[..];
        let size = fields.get_u64();
        let mut sha256 = [0; Digest::BYTES];
        fields.copy_to_slice(&mut sha256);
        let modified_unix_seconds = fields.get_i64();
        let (bad_pages, first) = (fields.get_u32(), fields.get_u32());
        let first_bad_page = (bad_pages > 0).then_some(first);
        Ok(FileEnd { size, sha256: Digest(sha256), modified_unix_seconds, bad_pages, first_bad_page })
    }
}

/// `global/pg_control`, whole, which comes last and on the control connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControlFileContent(pub Bytes);

impl ControlFileContent {
    pub(super) fn encode(self, kind: u8) -> Frame {
        Frame { kind, body: self.0, ..Frame::default() }
    }
}
