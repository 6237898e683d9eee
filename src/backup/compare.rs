//! Which parts of a file differ from what is at the taker: by the digests that it sent.

use std::ops::Range;

use bytes::{Buf, Bytes};

use super::file::ReadError;
use crate::link::message::{BLOCK_BYTES, Digest, WantFile};

/// The digests of what is at the taker in the place of one file, block by block. They come in parts, while the file is
/// read: nobody waits for the last before the first is compared.
pub struct Theirs<'a> {
    index: u32,
    digests: Bytes,
    continues: bool,
    next_part: &'a mut dyn FnMut() -> Option<WantFile>,
}

impl<'a> Theirs<'a> {
    /// Begins with the first part; `next_part` waits for the others, and gives `None` when the taker is gone.
    pub fn new(want: WantFile, next_part: &'a mut dyn FnMut() -> Option<WantFile>) -> Theirs<'a> {
        let WantFile { index, continues, digests } = want;
        Theirs { index, digests, continues, next_part }
    }

    /// The parts of `unit`, which follows what was compared before, that differ: whole blocks, those side by side in
    /// one. `unit` is a whole number of blocks, but for the last of a file.
    pub fn differing(&mut self, unit: &[u8]) -> Result<Vec<Range<usize>>, ReadError> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (number, block) in unit.chunks(BLOCK_BYTES).enumerate() {
            let start = number * BLOCK_BYTES;
            // Without a digest there is nothing to compare, and no reason to compute one.
            if self.next()?.is_some_and(|theirs| theirs == Digest::of(block)) {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.end == start => run.end += block.len(),
                _ => runs.push(start..start + block.len()),
            }
        }
        Ok(runs)
    }

    /// Takes what is left: the taker may have more blocks than the file.
    pub fn finish(&mut self) -> Result<(), ReadError> {
        while self.next()?.is_some() {}
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Digest>, ReadError> {
        while self.digests.is_empty() && self.continues {
            let part = (self.next_part)().ok_or(ReadError::Gone)?;
            if part.index != self.index {
                return Err(ReadError::OutOfOrder { got: part.index, wanted: self.index });
            }
            (self.digests, self.continues) = (part.digests, part.continues);
        }
        if self.digests.is_empty() {
            return Ok(None);
        }
        let mut digest = [0; Digest::BYTES];
        self.digests.copy_to_slice(&mut digest);
        Ok(Some(Digest(digest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(index: u32, blocks: &[&[u8]], continues: bool) -> WantFile {
        let digests: Vec<u8> = blocks.iter().flat_map(|block| Digest::of(block).0).collect();
        WantFile { index, continues, digests: digests.into() }
    }

    /// A block of one value.
    fn block(value: u8) -> Vec<u8> {
        vec![value; BLOCK_BYTES]
    }

    #[test]
    fn blocks_that_differ_are_found_and_joined() {
        let [one, two, three, four] = [1, 2, 3, 4].map(block);
        let mut later = vec![part(7, &[], true), part(7, &[&three, &two[..5]], false)].into_iter();
        let mut next = || later.next();
        let mut theirs = Theirs::new(part(7, &[&one, &one], true), &mut next);
        let mut bounds = |unit: &[&[u8]]| -> Vec<(usize, usize)> {
            theirs.differing(&unit.concat()).unwrap().into_iter().map(|run| (run.start, run.end)).collect()
        };
        assert_eq!(bounds(&[&one, &two, &three]), [(BLOCK_BYTES, 2 * BLOCK_BYTES)]);
        // The last block is shorter than at the taker, and then there is more than at the taker.
        assert_eq!(bounds(&[&two, &four, &four[..9]]), [(0, 2 * BLOCK_BYTES + 9)]);
        theirs.finish().unwrap();
    }

    #[test]
    fn a_file_that_is_not_at_the_taker_differs_as_a_whole() {
        let mut next = || panic!("there is no other part");
        let mut theirs = Theirs::new(part(7, &[], false), &mut next);
        assert!(theirs.differing(&[]).unwrap().is_empty());
        let runs = theirs.differing(&[0; BLOCK_BYTES + 1]).unwrap();
        assert_eq!((runs.len(), runs[0].start, runs[0].end), (1, 0, BLOCK_BYTES + 1));
    }

    #[test]
    fn digests_of_another_file_and_a_taker_that_left_are_errors() {
        let mut next = || Some(part(8, &[b"x"], false));
        let error = Theirs::new(part(7, &[], true), &mut next).finish().unwrap_err();
        assert!(matches!(error, ReadError::OutOfOrder { got: 8, wanted: 7 }), "{error}");
        let mut next = || None;
        let error = Theirs::new(part(7, &[], true), &mut next).finish().unwrap_err();
        assert!(matches!(error, ReadError::Gone), "{error}");
    }
}
