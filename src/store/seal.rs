//! The end of a sealed segment file: a zstd skippable frame that says what the file is.
//!
//! `zstdcat` passes over it. Its last eight bytes are the length of the JSON before them and a CRC-32C of that, so
//! it can be read from the end of the file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Mark, StoreError, TimelineIdentity};
use crate::durable::FileError;
use crate::pg::Lsn;

const SKIPPABLE_MAGIC: [u8; 4] = 0x184D_2A50_u32.to_le_bytes();
const HEADER_BYTES: usize = 8;
const FOOTER_BYTES: usize = 8;
/// A gigabyte segment has 1,024 frames; interrupted ones add some.
const JSON_BYTES_MAX: u64 = 4 << 20;

/// What a sealed file says of itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Seal {
    /// The cluster, in decimal.
    pub(super) system_identifier: String,
    /// Whose WAL.
    pub(super) timeline: TimelineIdentity,
    /// The first position: a segment's start.
    pub(super) start: Lsn,
    /// The position after the last byte.
    pub(super) end: Lsn,
    /// Of the raw content, in hexadecimal.
    pub(super) sha256: String,
    /// Where each frame begins: bytes of WAL from `start`, bytes of the file.
    pub(super) frames: Vec<(u64, u64)>,
}

impl Seal {
    /// The frames as marks.
    pub(super) fn marks(&self) -> Vec<Mark> {
        self.frames
            .iter()
            .map(|&(raw, offset)| Mark { lsn: Lsn(self.start.0.saturating_add(raw)), offset })
            .collect()
    }

    /// The bytes that end the file.
    pub(super) fn encode(&self) -> Result<Vec<u8>, StoreError> {
        let json = serde_json::to_vec(self).map_err(|e| StoreError::Zstd(e.to_string()))?;
        let payload_bytes = (json.len() + FOOTER_BYTES) as u32;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload_bytes as usize);
        bytes.extend_from_slice(&SKIPPABLE_MAGIC);
        bytes.extend_from_slice(&payload_bytes.to_le_bytes());
        bytes.extend_from_slice(&json);
        bytes.extend_from_slice(&(json.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&json).to_le_bytes());
        Ok(bytes)
    }

    /// Reads the seal at the end of a file; gives the offset where it begins, too.
    pub(super) fn read(file: &File, path: &Path) -> Result<(Seal, u64), StoreError> {
        let corrupt = |what: &str| StoreError::Corrupt { path: path.to_owned(), what: what.to_owned() };
        let failed = |e| FileError::new("read", path, e);
        let size = file.metadata().map_err(failed)?.len();
        let mut footer = [0u8; FOOTER_BYTES];
        let footer_offset = size.checked_sub(FOOTER_BYTES as u64).ok_or_else(|| corrupt("it has no seal"))?;
        file.read_exact_at(&mut footer, footer_offset).map_err(failed)?;
        let json_bytes = u64::from(u32::from_le_bytes([footer[0], footer[1], footer[2], footer[3]]));
        let offset = footer_offset
            .checked_sub(json_bytes + HEADER_BYTES as u64)
            .filter(|_| json_bytes <= JSON_BYTES_MAX)
            .ok_or_else(|| corrupt("it has no seal"))?;
        let mut bytes = vec![0u8; HEADER_BYTES + json_bytes as usize];
        file.read_exact_at(&mut bytes, offset).map_err(failed)?;
        let json = &bytes[HEADER_BYTES..];
        if !bytes.starts_with(&SKIPPABLE_MAGIC) || crc32c::crc32c(json).to_le_bytes() != footer[4..] {
            return Err(corrupt("it has no valid seal"));
        }
        let seal: Seal = serde_json::from_slice(json).map_err(|e| corrupt(&e.to_string()))?;
        if seal.start > seal.end
            || seal.marks().iter().any(|mark| mark.lsn > seal.end || mark.offset > offset)
        {
            return Err(corrupt("its seal contradicts itself"));
        }
        Ok((seal, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::TimelineId;
    use crate::store::Branch;
    use std::io::Write;

    #[test]
    fn a_seal_is_read_from_the_end_and_skipped_by_zstd() {
        let seal = Seal {
            system_identifier: "7".into(),
            timeline: TimelineIdentity {
                timeline: TimelineId(2),
                parent: Some((TimelineId(1), Lsn(9))),
                branch: Some(Branch { epoch: 1, node: "db1".into() }),
            },
            start: Lsn(1 << 20),
            end: Lsn(2 << 20),
            sha256: "00".into(),
            frames: vec![(0, 0)],
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("segment");
        let content = zstd::stream::encode_all(&b"content"[..], 1).unwrap();
        let mut bytes = content.clone();
        bytes.extend_from_slice(&seal.encode().unwrap());
        std::fs::write(&path, &bytes).unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(Seal::read(&file, &path).unwrap(), (seal, content.len() as u64));
        assert_eq!(zstd::stream::decode_all(&bytes[..]).unwrap(), b"content");

        for damage in [bytes.len() - 1, bytes.len() - 12, content.len()] {
            let mut damaged = bytes.clone();
            damaged[damage] ^= 0x10;
            File::create(&path).unwrap().write_all(&damaged).unwrap();
            assert!(Seal::read(&File::open(&path).unwrap(), &path).is_err());
        }
    }
}
