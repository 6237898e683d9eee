//! Running pg_rewind: what it says on the way, and how it ended.

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

use crate::pg::socket_file::PORT;

/// Reading the log of a stopped node shows nothing for long; longer than this is a program that hangs.
const SILENT_MAX: Duration = Duration::from_secs(15 * 60);

/// Of its last words.
const LAST_LINES: usize = 5;
const LINE_BYTES_MAX: usize = 1000;

/// What is run.
#[derive(Debug)]
pub struct Program {
    /// The program.
    pub path: PathBuf,
    /// The data directory to be rewound.
    pub data_directory: PathBuf,
    /// Where the socket to the source is.
    pub socket_folder: PathBuf,
    /// The data directory, locked: it stays so as long as pg_rewind lives, whatever becomes of this process.
    pub held: File,
}

/// A line of what it says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Line {
    /// It begins to change the data directory.
    Changes(String),
    /// How much has been copied.
    Copied(String),
    /// Anything else.
    Other(String),
}

impl Line {
    fn of(text: String) -> Line {
        let text = text.trim_start_matches("pg_rewind: ").trim().to_owned();
        match &text {
            copied if copied.contains("kB (") && copied.ends_with("copied") => Line::Copied(text),
            begins if begins.starts_with("need to copy ") => Line::Changes(text),
            _ => Line::Other(text),
        }
    }

    /// Its text.
    pub fn text(&self) -> &str {
        match self {
            Line::Changes(text) | Line::Copied(text) | Line::Other(text) => text,
        }
    }
}

impl Program {
    /// Runs it to its end, which it gets; `heard` gets each line, `moved_bytes` is the other sign of life. An error says
    /// what it said last.
    pub async fn run(self, moved_bytes: &AtomicU64, mut heard: impl FnMut(&Line)) -> anyhow::Result<()> {
        let mut child = self.command().spawn().context("run pg_rewind")?;
        let mut stderr = child.stderr.take().context("read what pg_rewind says")?;
        let mut said: Vec<String> = Vec::new();
        let mut lines = Lines::default();
        let mut moved = 0;
        loop {
            let Ok(line) = timeout(SILENT_MAX, lines.next(&mut stderr)).await else {
                let now = moved_bytes.load(Ordering::Relaxed);
                anyhow::ensure!(
                    std::mem::replace(&mut moved, now) != now,
                    "pg_rewind did nothing for {} minutes and was ended; it last said: {}",
                    SILENT_MAX.as_secs() / 60,
                    said.join("; ")
                );
                continue;
            };
            let Some(line) = line? else { break };
            let line = Line::of(line);
            heard(&line);
            if !matches!(line, Line::Copied(_)) {
                said.push(line.text().to_owned());
                said.drain(..said.len().saturating_sub(LAST_LINES));
            }
        }
        let ended = child.wait().await.context("wait for pg_rewind")?;
        anyhow::ensure!(ended.success(), "pg_rewind failed ({ended}): {}", said.join("; "));
        // It takes two servers for one timeline until the new primary has had a checkpoint.
        let did_nothing = said.iter().any(|line| line.contains("no rewind required"));
        anyhow::ensure!(!did_nothing, "pg_rewind found nothing to do: {}", said.join("; "));
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        // What a person's environment says to libpq is not meant for this.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
            command.env_remove(name);
        }
        // Its words are read.
        command.env("LC_ALL", "C");
        command.arg("--target-pgdata").arg(&self.data_directory);
        let folder = self.socket_folder.to_string_lossy().replace('\\', "\\\\").replace('\'', "\\'");
        command
            .arg("--source-server")
            .arg(format!("host='{folder}' port={PORT} user=walship dbname=postgres"));
        command.args(["--restore-target-wal", "--progress"]);
        command.stdin(self.held.try_clone().map_or_else(|_| Stdio::null(), Stdio::from));
        command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }
}

/// Lines out of a stream, none longer than it may be.
#[derive(Default)]
struct Lines {
    buffer: Vec<u8>,
    has_ended: bool,
}

impl Lines {
    /// The next line that is not empty; `None` at the end. Cancel-safe: what was read stays.
    async fn next(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<String>> {
        loop {
            let end = self.buffer.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let end = end.or_else(|| {
                let is_long = self.buffer.len() >= LINE_BYTES_MAX || self.has_ended;
                is_long.then_some(self.buffer.len())
            });
            match end {
                Some(0) if self.buffer.is_empty() => return Ok(None),
                Some(end) => {
                    let rest = self.buffer.split_off((end + 1).min(self.buffer.len()));
                    let line = std::mem::replace(&mut self.buffer, rest);
                    let line = String::from_utf8_lossy(&line).trim().to_owned();
                    if !line.is_empty() {
                        return Ok(Some(line));
                    }
                }
                None => self.has_ended = stream.read_buf(&mut self.buffer).await? == 0,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_told_apart() {
        let text = "pg_rewind: connected to server\n\npg_rewind: need to copy 60 MB (total source directory size is 80 MB)\r\
                    61440/61440 kB (100%) copied\npg_rewind: Done!";
        let mut stream = text.as_bytes();
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        while let Some(line) = lines.next(&mut stream).await.unwrap() {
            found.push(Line::of(line));
        }
        let expected = [
            Line::Other("connected to server".to_owned()),
            Line::Changes("need to copy 60 MB (total source directory size is 80 MB)".to_owned()),
            Line::Copied("61440/61440 kB (100%) copied".to_owned()),
            Line::Other("Done!".to_owned()),
        ];
        assert_eq!(found, expected);
        let long = "x".repeat(5 * LINE_BYTES_MAX);
        let mut lines = Lines::default();
        let line = lines.next(&mut long.as_bytes()).await.unwrap().unwrap();
        assert!(line.len() < 5 * LINE_BYTES_MAX, "{}", line.len());
    }

    /// Runs a script in pg_rewind's place.
    async fn run(script: &str) -> (anyhow::Result<()>, Vec<Line>) {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pg_rewind");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        let program = Program {
            path,
            data_directory: folder.path().to_owned(),
            socket_folder: "/run/it's here".into(),
            held: File::open(folder.path()).unwrap(),
        };
        let mut heard = Vec::new();
        let ended = program.run(&AtomicU64::new(0), |line| heard.push(line.clone())).await;
        (ended, heard)
    }

    #[tokio::test]
    async fn how_it_ended_is_told_with_its_last_words() {
        let (ended, heard) = run("for word in \"$@\"; do echo \"$word\" >&2; done").await;
        ended.unwrap();
        let source = Line::Other("host='/run/it\\'s here' port=5432 user=walship dbname=postgres".to_owned());
        assert!(heard.contains(&source), "{heard:?}");
        let script = "seq 1 9 >&2; echo 'pg_rewind: fatal: could not open file \"x\"' >&2; exit 1";
        let error = run(script).await.0.unwrap_err().to_string();
        let expected = "pg_rewind failed (exit status: 1): 6; 7; 8; 9; fatal: could not open file \"x\"";
        assert_eq!(error, expected);
        let error = run("echo 'pg_rewind: no rewind required' >&2").await.0.unwrap_err();
        assert!(error.to_string().contains("found nothing to do"), "{error}");
    }
}
