//! zstd frames: written with a flush after every batch, read back piece by piece, walked block by block.
//!
//! A frame declares neither size nor checksum, so one that was interrupted is closed by [`EMPTY_LAST_BLOCK`] and
//! any zstd reads it. A context that failed is never used again (zstd 0.14 refuses it): make a fresh one.

use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

use super::StoreError;

/// Closes a frame whose encoder is gone: an empty raw block with the "last" bit.
pub const EMPTY_LAST_BLOCK: [u8; 3] = [1, 0, 0];

/// A frame ends at each multiple of this, so that a reader can begin near any position.
pub const FRAME_BYTES: u64 = 1 << 20;

/// Level 1 compresses WAL as well as any level between checkpoints, at several hundred MB/s (DESIGN §4).
pub const COMPRESSION_LEVEL: i32 = 1;

/// No frame of ours needs a larger window than what it holds.
pub(super) const WINDOW_LOG_MAX: u32 = 23;
const OUTPUT_STEP_BYTES: usize = 128 << 10;

/// Compresses one frame.
pub struct FrameEncoder(Encoder<'static>);

impl FrameEncoder {
    /// Begins a frame; its header is written with the first bytes.
    pub fn new() -> Result<FrameEncoder, StoreError> {
        let mut encoder = Encoder::new(COMPRESSION_LEVEL).map_err(StoreError::zstd)?;
        encoder.set_parameter(CParameter::ContentSizeFlag(false)).map_err(StoreError::zstd)?;
        encoder.set_parameter(CParameter::ChecksumFlag(false)).map_err(StoreError::zstd)?;
        Ok(FrameEncoder(encoder))
    }

    /// Compresses `raw` and appends to `output` whatever is ready.
    pub fn write(&mut self, raw: &[u8], output: &mut Vec<u8>) -> Result<(), StoreError> {
        let mut input = InBuffer::around(raw);
        while input.pos() < raw.len() {
            step(output, |buffer| self.0.run(&mut input, buffer))?;
        }
        Ok(())
    }

    /// Makes everything written so far decodable from what `output` got.
    pub fn flush(&mut self, output: &mut Vec<u8>) -> Result<(), StoreError> {
        while step(output, |buffer| self.0.flush(buffer))? > 0 {}
        Ok(())
    }

    /// Ends the frame.
    pub fn finish(mut self, output: &mut Vec<u8>) -> Result<(), StoreError> {
        while step(output, |buffer| self.0.finish(buffer, true))? > 0 {}
        Ok(())
    }
}

/// Runs one zstd call with some room at the end of `output`; gives what the call gave.
fn step(
    output: &mut Vec<u8>,
    call: impl FnOnce(&mut OutBuffer<'_, [u8]>) -> std::io::Result<usize>,
) -> Result<usize, StoreError> {
    let start = output.len();
    output.resize(start + OUTPUT_STEP_BYTES, 0);
    let mut buffer = OutBuffer::around(&mut output[start..]);
    let result = call(&mut buffer);
    let written = buffer.pos();
    output.truncate(start + written);
    result.map_err(StoreError::zstd)
}

/// Decompresses one frame that arrives in pieces, each of which ends where a block ends.
pub struct FrameDecoder {
    decoder: Decoder<'static>,
    raw_bytes: u64,
    ended: bool,
}

impl FrameDecoder {
    /// For a frame's first byte.
    pub fn new() -> Result<FrameDecoder, StoreError> {
        let mut decoder = Decoder::new().map_err(StoreError::zstd)?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(StoreError::zstd)?;
        Ok(FrameDecoder { decoder, raw_bytes: 0, ended: false })
    }

    /// What came out so far.
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// True once the frame's last block was read.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Decompresses `piece` to the end of `raw`. At most [`FRAME_BYTES`] come out of a frame; more is refused, so
    /// foreign bytes can't fill the memory.
    pub fn read(&mut self, piece: &[u8], raw: &mut Vec<u8>) -> Result<(), StoreError> {
        let mut input = InBuffer::around(piece);
        let start = raw.len();
        loop {
            if self.ended {
                let all_taken = input.pos() == piece.len();
                return if all_taken {
                    Ok(())
                } else {
                    Err(StoreError::BadFrame("bytes behind the end of a frame"))
                };
            }
            let (before, taken_before) = (raw.len(), input.pos());
            let hint = step(raw, |buffer| self.decoder.run(&mut input, buffer))?;
            let produced = raw.len() - before;
            self.raw_bytes += produced as u64;
            self.ended = hint == 0;
            if self.raw_bytes > FRAME_BYTES || raw.len() - start > FRAME_BYTES as usize {
                return Err(StoreError::BadFrame("a frame with more content than one may have"));
            }
            let stuck = produced == 0 && input.pos() == taken_before;
            if input.pos() == piece.len() && produced < OUTPUT_STEP_BYTES && !self.ended {
                return Ok(());
            }
            if stuck && !self.ended {
                return Err(StoreError::BadFrame("bytes that can't be decoded"));
            }
        }
    }
}

/// Length of the zstd frame header at the start of `bytes`; `None` when that is not a frame or too short to tell.
pub fn frame_header_bytes(bytes: &[u8]) -> Option<usize> {
    const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
    let descriptor = *bytes.get(4).filter(|_| bytes.starts_with(&MAGIC))?;
    let single_segment = descriptor & 0x20 != 0;
    let dictionary_bytes = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size_bytes = match descriptor >> 6 {
        0 => usize::from(single_segment),
        code => 1 << code,
    };
    Some(5 + usize::from(!single_segment) + dictionary_bytes + size_bytes)
}

/// Length of the zstd block at the start of `bytes`, its header included, and whether it is the frame's last;
/// `None` when there are fewer than three bytes or its type is none.
pub fn block_bytes(bytes: &[u8]) -> Option<(usize, bool)> {
    let header = u32::from_le_bytes([*bytes.first()?, *bytes.get(1)?, *bytes.get(2)?, 0]);
    let size = (header >> 3) as usize;
    let body = match header >> 1 & 3 {
        0 | 2 => size,
        1 => 1,
        _ => return None,
    };
    Some((3 + body, header & 1 == 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::wal_fixture::RandomWal;

    fn encode(batches: &[&[u8]], finish: bool) -> (Vec<u8>, Vec<usize>) {
        let mut encoder = FrameEncoder::new().unwrap();
        let (mut bytes, mut cuts) = (Vec::new(), Vec::new());
        for batch in batches {
            encoder.write(batch, &mut bytes).unwrap();
            encoder.flush(&mut bytes).unwrap();
            cuts.push(bytes.len());
        }
        if finish {
            encoder.finish(&mut bytes).unwrap();
        }
        (bytes, cuts)
    }

    #[test]
    fn every_flush_is_decodable_at_once() {
        let wal = RandomWal::new(7, 60).bytes;
        let batches: Vec<&[u8]> = wal[..wal.len().min(900_000)].chunks(4_001).collect();
        let (bytes, cuts) = encode(&batches, true);
        let mut decoder = FrameDecoder::new().unwrap();
        let (mut raw, mut at, mut expected) = (Vec::new(), 0, Vec::new());
        for (batch, cut) in batches.iter().zip(cuts) {
            decoder.read(&bytes[at..cut], &mut raw).unwrap();
            expected.extend_from_slice(batch);
            assert!(raw == expected && !decoder.ended());
            at = cut;
        }
        decoder.read(&bytes[at..], &mut raw).unwrap();
        assert!(decoder.ended() && raw == expected);
    }

    #[test]
    fn an_interrupted_frame_is_closed_by_an_empty_last_block() {
        let (mut bytes, _) = encode(&[b"one", b"two"], false);
        bytes.extend_from_slice(&EMPTY_LAST_BLOCK);
        assert_eq!(zstd::stream::decode_all(&bytes[..]).unwrap(), b"onetwo");
        let mut decoder = FrameDecoder::new().unwrap();
        let mut raw = Vec::new();
        decoder.read(&bytes, &mut raw).unwrap();
        assert!(decoder.ended());
        assert!(decoder.read(b"x", &mut raw).is_err());
    }

    #[test]
    fn blocks_can_be_walked() {
        let (bytes, cuts) = encode(&[&[1; 300_000], b"abc", &[9; 10]], true);
        let mut at = frame_header_bytes(&bytes).unwrap();
        let mut boundaries = vec![at];
        while let Some((length, last)) = block_bytes(&bytes[at..]) {
            at += length;
            boundaries.push(at);
            if last {
                break;
            }
        }
        assert_eq!(at, bytes.len());
        assert!(cuts.iter().all(|cut| boundaries.contains(cut)));
    }

    #[test]
    fn garbage_and_bombs_are_refused() {
        let mut raw = Vec::new();
        assert!(FrameDecoder::new().unwrap().read(b"not zstd at all", &mut raw).is_err());
        let bomb = zstd::stream::encode_all(&vec![0u8; 64 << 20][..], 1).unwrap();
        assert!(FrameDecoder::new().unwrap().read(&bomb, &mut raw).is_err());
        assert!(raw.len() <= 2 * FRAME_BYTES as usize);
    }
}
