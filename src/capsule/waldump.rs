//! Running `pg_waldump` over WAL of the log: it reads segments of their own names only, so they are laid out for it.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Kept;
use crate::durable::{self, FileError};
use crate::pg::{Lsn, SegmentSize};
use crate::store::{RawStep, Store, StoreError, Visibility};

/// So much is laid out at most: it takes the same room on disk meanwhile.
const LOOKED_THROUGH_BYTES_MAX: u64 = 4 << 30;

/// What a line has beyond is passed over.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// How much of its complaints is told.
const COMPLAINT_BYTES_MAX: u64 = 4 << 10;

/// Why there is no summary.
#[derive(Debug, thiserror::Error)]
pub enum WaldumpError {
    /// The program is not installed.
    #[error("there is no {}; install PostgreSQL's server programs", .0.display())]
    Missing(PathBuf),
    /// It can't be run.
    #[error("run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It read nothing.
    #[error("pg_waldump: {0}")]
    Complained(String),
    /// The log.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Gives `take` each line that it has of what was kept; how far it was given the WAL.
pub fn run(
    store: &Store,
    kept: &Kept,
    program: &Path,
    mut take: impl FnMut(&str),
) -> Result<Lsn, WaldumpError> {
    if !program.exists() {
        return Err(WaldumpError::Missing(program.to_owned()));
    }
    let folder = kept.path.with_extension("segments");
    remove(&folder)?;
    durable::create_folder(&folder)?;
    let looked = lay_out(store, kept, &folder).and_then(|end| {
        look_through(kept, program, &folder, end, &mut take)?;
        Ok(end)
    });
    remove(&folder)?;
    looked
}

fn remove(folder: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(FileError::new("remove", folder, e)),
        _ => Ok(()),
    }
}

/// Writes whole segments, the last one filled up with zeros; where the WAL in them ends.
fn lay_out(store: &Store, kept: &Kept, folder: &Path) -> Result<Lsn, WaldumpError> {
    let size = store.identity().segment_size;
    let start = size.start_of(kept.from);
    let limit = kept.to.min(start + LOOKED_THROUGH_BYTES_MAX);
    let mut cursor = store.raw_cursor(kept.timeline, start, Visibility::Appended)?;
    let mut segment: Option<(File, PathBuf)> = None;
    let mut at = start;
    while at < limit {
        let RawStep::Bytes { data, .. } = cursor.next()? else { break };
        let mut rest = &data[..];
        while !rest.is_empty() {
            if segment.is_none() || at == size.start_of(at) {
                segment = Some(begin(size, kept, at, folder)?);
            }
            let room = size.end_lsn(size.segment_of(at)) - at;
            let (piece, behind) = rest.split_at(rest.len().min(room as usize));
            if let Some((file, path)) = &mut segment {
                file.write_all(piece).map_err(|e| FileError::new("write", path, e))?;
            }
            at = at + piece.len() as u64;
            rest = behind;
        }
    }
    Ok(at.min(limit))
}

fn begin(size: SegmentSize, kept: &Kept, at: Lsn, folder: &Path) -> Result<(File, PathBuf), FileError> {
    let path = folder.join(size.file_name(kept.timeline, size.segment_of(at)));
    let file = durable::create_new(&path)?;
    file.set_len(size.bytes()).map_err(|e| FileError::new("write", &path, e))?;
    Ok((file, path))
}

fn look_through(
    kept: &Kept,
    program: &Path,
    folder: &Path,
    end: Lsn,
    take: &mut impl FnMut(&str),
) -> Result<(), WaldumpError> {
    let failed = |source| WaldumpError::Run { program: program.to_owned(), source };
    // Into a file: nobody reads what it says while its records are read.
    let complaints = folder.join("complaints");
    let file = durable::create_new(&complaints)?;
    let mut command = Command::new(program);
    command.arg("-p").arg(folder).arg("-t").arg(kept.timeline.0.to_string());
    command.arg("-s").arg(kept.from.to_string()).arg("-e").arg(end.to_string());
    command.env("TZ", "UTC").env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
    let mut child = command.spawn().map_err(failed)?;
    let mut lines = 0u64;
    let read = child.stdout.take().map_or(Ok(()), |stdout| {
        each_line(BufReader::new(stdout), |line| {
            lines += 1;
            take(line);
        })
    });
    let ended = child.wait().map_err(failed)?;
    read.map_err(failed)?;
    // It complains of the half record at the end of WAL that a dead server left, having told all before it.
    if !ended.success() && lines == 0 {
        let mut said = String::new();
        let opened = File::open(&complaints).map_err(|e| FileError::new("open", &complaints, e))?;
        let read = opened.take(COMPLAINT_BYTES_MAX).read_to_string(&mut said);
        read.map_err(|e| FileError::new("read", &complaints, e))?;
        return Err(WaldumpError::Complained(said.trim().to_owned()));
    }
    Ok(())
}

/// Gives line after line, cut off where one is very long.
fn each_line(mut reader: impl BufRead, mut take: impl FnMut(&str)) -> io::Result<()> {
    let mut line = Vec::new();
    let mut is_rest = false;
    loop {
        line.clear();
        if reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if !is_rest {
            take(String::from_utf8_lossy(&line).trim_end());
        }
        is_rest = line.last() != Some(&b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_very_long_line_is_one_line() {
        let long = "x".repeat(3 * LINE_BYTES_MAX as usize / 2);
        let text = format!("one\n{long}\ntwo\nthree");
        let mut lines = Vec::new();
        each_line(text.as_bytes(), |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(lines.len(), 4);
        assert_eq!([&lines[0], &lines[2], &lines[3]], ["one", "two", "three"]);
        assert_eq!(lines[1].len() as u64, LINE_BYTES_MAX);
    }
}
