//! A sidecar's log: what was said, and whether it was announced.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, ensure};

/// What a line begins with: `2026-11-23T05:47:07.123456Z  WARN walship::ship: …`.
const LEVELS: [&str; 5] = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR"];

/// A log file that a process appends to while the test reads it.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    announced: Mutex<Vec<String>>,
}

impl Log {
    /// The log at a path; it may not exist yet.
    pub fn new(path: PathBuf) -> Log {
        Log { path, announced: Mutex::new(Vec::new()) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All entries so far; one that spans lines is one entry.
    pub fn entries(&self) -> Vec<String> {
        entries_of(&String::from_utf8_lossy(&std::fs::read(&self.path).unwrap_or_default()))
    }

    /// Announces that warnings and errors which contain `text` belong to this test.
    pub fn expect(&self, text: &str) {
        self.announced.lock().unwrap().push(text.to_owned());
    }

    /// Says whether an entry that contains `text` is there.
    pub fn contains(&self, text: &str) -> anyhow::Result<()> {
        let entries = self.entries();
        let said = || format!("{} did not say {text:?}; its end:\n{}", self.path.display(), end_of(&entries));
        ensure!(entries.iter().any(|entry| entry.contains(text)), said());
        Ok(())
    }

    /// Warnings, errors and panics that nobody announced.
    pub fn unannounced(&self) -> Vec<String> {
        let announced = self.announced.lock().unwrap();
        let bad = self.entries().into_iter().filter(|entry| is_bad(entry));
        bad.filter(|entry| !announced.iter().any(|text| entry.contains(text))).collect()
    }

    /// The last entries, for a person.
    pub fn end(&self) -> anyhow::Result<String> {
        let text = std::fs::read(&self.path).with_context(|| format!("read {}", self.path.display()))?;
        Ok(end_of(&entries_of(&String::from_utf8_lossy(&text))))
    }
}

fn end_of(entries: &[String]) -> String {
    entries[entries.len().saturating_sub(30)..].join("\n")
}

fn level(entry: &str) -> Option<&str> {
    let (time, rest) = entry.split_once(' ')?;
    let level = rest.split_whitespace().next()?;
    (time.starts_with("20") && time.contains('T') && LEVELS.contains(&level)).then_some(level)
}

fn entries_of(text: &str) -> Vec<String> {
    let mut entries: Vec<String> = Vec::new();
    for line in text.lines() {
        match entries.last_mut() {
            // A panic has no level, and must not hide behind the entry before it.
            Some(last) if level(line).is_none() && !line.contains("panicked at") => {
                last.push('\n');
                last.push_str(line);
            }
            _ => entries.push(line.to_owned()),
        }
    }
    entries
}

fn is_bad(entry: &str) -> bool {
    matches!(level(entry), Some("WARN" | "ERROR")) || entry.contains("panicked at")
}

#[test]
fn what_was_not_announced_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let log = Log::new(folder.path().join("walship.log"));
    assert!(log.unannounced().is_empty() && log.entries().is_empty());
    let text = "2026-11-23T05:47:07.123456Z  INFO walship::ship: connected to ERROR\n\
                2026-11-23T05:47:08.123456Z  WARN ship{peer=\"db2\"}: walship::ship: slow\n  by far\n\
                2026-11-23T05:47:08.123456Z ERROR walship::store: full\n\
                thread 'main' panicked at src/main.rs:1:1:\nboom\n";
    std::fs::write(log.path(), text).unwrap();
    assert_eq!(log.entries().len(), 4);
    assert!(log.contains("connected to").is_ok());
    assert!(log.contains("disconnected").unwrap_err().to_string().contains("ERROR walship::store: full"));
    assert_eq!(log.unannounced().len(), 3);
    log.expect("by far");
    log.expect("store: full");
    assert_eq!(log.unannounced(), ["thread 'main' panicked at src/main.rs:1:1:\nboom"]);
}
