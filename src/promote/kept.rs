//! Certificates on disk: JSON that a person can read, with the SHA-256 of every byte before it as its last entry.
//!
//! `<store>/history/EPOCH-NODE.json`, one a promotion. What is known before a commit lies in `draft.json` until it is
//! complete, so that whatever happens to the process is no reason to lose it. All functions block.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::certificate::Certificate;
use crate::durable::{self, FileError};
use crate::tls::check_name;

/// The folder in the store's.
pub const FOLDER: &str = "history";

const DRAFT: &str = "draft.json";
const SUFFIX: &str = ".json";

/// Far more than a promotion of a thousand nodes takes.
pub const BYTES_MAX: usize = 1 << 20;

/// How many are looked at, the newest: a promotion is a rare thing.
const LIMIT: usize = 1000;

/// Why a text is not the certificate that was written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotGenuine {
    /// It is another text than was written.
    #[error("its SHA-256 is {is}, and it says {said}: it was changed")]
    Changed {
        /// What it is.
        is: String,
        /// What it says that it is.
        said: String,
    },
    /// It is no certificate, or one that this version can't read.
    #[error("it is no certificate that this version of walship can read: {0}")]
    Unreadable(String),
}

/// A file that was found.
#[derive(Debug)]
pub struct Entry {
    /// Its name in the folder.
    pub file: String,
    /// What it says, or why that is not to be believed.
    pub found: Result<Certificate, NotGenuine>,
}

/// All that is kept.
#[derive(Debug, Default)]
pub struct Kept {
    /// Oldest first.
    pub entries: Vec<Entry>,
    /// How many older ones were not looked at.
    pub older: usize,
}

/// A certificate as it is kept, sent and printed.
pub fn text(certificate: &Certificate) -> Result<String, serde_json::Error> {
    let mut text = format!("{{\n\"certificate\": {},\n", serde_json::to_string_pretty(certificate)?);
    let checksum = sha256(text.as_bytes());
    text.push_str(&format!("\"sha256\": \"{checksum}\"}}\n"));
    Ok(text)
}

/// Reads one back, and only if it is what was written.
pub fn parse(text: &str) -> Result<Certificate, NotGenuine> {
    #[derive(serde::Deserialize)]
    struct File {
        certificate: serde_json::Value,
        sha256: String,
    }
    let unreadable = |error: serde_json::Error| NotGenuine::Unreadable(error.to_string());
    let file: File = serde_json::from_str(text).map_err(unreadable)?;
    let last_line = text.trim_end().rfind('\n').map_or(0, |at| at + 1);
    let is = sha256(&text.as_bytes()[..last_line]);
    if is != file.sha256 {
        return Err(NotGenuine::Changed { is, said: file.sha256 });
    }
    serde_json::from_value(file.certificate).map_err(unreadable)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a file that may be anything.
pub fn read(path: &Path) -> Result<String, FileError> {
    let failed = |e| FileError::new("read", path, e);
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    let too_long = bytes.len() > BYTES_MAX;
    let text = String::from_utf8(bytes).ok().filter(|_| !too_long);
    text.ok_or_else(|| failed(std::io::Error::new(ErrorKind::InvalidData, "it is no certificate")))
}

/// Keeps a certificate in the store's folder, durably.
pub fn keep(store: &Path, certificate: &Certificate) -> anyhow::Result<()> {
    write(store, &file_name(certificate.epoch, &certificate.node), certificate)
}

/// Keeps the certificate of another node's promotion as it came, byte for byte, durably, if it is that and is complete.
pub fn keep_of_another(store: &Path, epoch: u64, node: &str, text: &str) -> anyhow::Result<()> {
    let certificate = parse(text)?;
    anyhow::ensure!(
        certificate.epoch == epoch && certificate.node == node,
        "it is the certificate of another"
    );
    anyhow::ensure!(certificate.new_timeline.is_some(), "it is not complete");
    // It becomes a part of a file's name.
    check_name(node)?;
    let folder = store.join(FOLDER);
    durable::create_folder(&folder)?;
    Ok(durable::write(&folder.join(file_name(epoch, node)), text.as_bytes())?)
}

/// Keeps what is known before a commit, durably.
pub fn keep_draft(store: &Path, certificate: &Certificate) -> anyhow::Result<()> {
    write(store, DRAFT, certificate)
}

/// The draft, if there is one.
pub fn draft(store: &Path) -> Result<Option<Result<Certificate, NotGenuine>>, FileError> {
    Ok(read_if_there(&store.join(FOLDER).join(DRAFT))?.map(|text| parse(&text)))
}

/// Takes the draft away, durably.
pub fn drop_draft(store: &Path) -> Result<(), FileError> {
    durable::remove(&store.join(FOLDER).join(DRAFT))
}

/// The certificate of an epoch of a node, as it is kept; `None` where there is none.
pub fn find(store: &Path, epoch: u64, node: &str) -> Result<Option<String>, FileError> {
    match check_name(node) {
        Ok(()) => read_if_there(&store.join(FOLDER).join(file_name(epoch, node))),
        // It is asked for from elsewhere, and becomes a part of a file's name.
        Err(_) => Ok(None),
    }
}

fn read_if_there(path: &Path) -> Result<Option<String>, FileError> {
    match read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// All that are kept in the store's folder, read beside its sidecar or without one.
pub fn all(store: &Path) -> Result<Kept, FileError> {
    let names = names(store)?;
    let older = names.len().saturating_sub(LIMIT);
    let entries = names.into_iter().skip(older).map(|file| {
        let found = match read(&store.join(FOLDER).join(&file)) {
            Ok(text) => parse(&text),
            Err(error) => Err(NotGenuine::Unreadable(crate::fault::in_full(&error))),
        };
        Entry { file, found }
    });
    Ok(Kept { entries: entries.collect(), older })
}

/// The newest of them; `None` when it can't be read or was changed, too.
pub fn newest(store: &Path) -> Option<Certificate> {
    let newest = names(store).ok()?.pop()?;
    parse(&read(&store.join(FOLDER).join(newest)).ok()?).ok()
}

/// The files' names, the oldest promotion first.
fn names(store: &Path) -> Result<Vec<String>, FileError> {
    let folder = store.join(FOLDER);
    let failed = |e| FileError::new("list", &folder, e);
    let listed = match fs::read_dir(&folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in listed {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy();
        if name.ends_with(SUFFIX) && name != DRAFT {
            names.push(name.into_owned());
        }
    }
    // The epoch comes first, with zeros before it.
    names.sort_unstable();
    Ok(names)
}

fn write(store: &Path, name: &str, certificate: &Certificate) -> anyhow::Result<()> {
    let folder = store.join(FOLDER);
    durable::create_folder(&folder)?;
    Ok(durable::write(&folder.join(name), text(certificate)?.as_bytes())?)
}

fn file_name(epoch: u64, node: &str) -> String {
    format!("{epoch:010}-{node}{SUFFIX}")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, situation};
    use super::super::{Course, Fence, Fenced, plan};
    use super::*;
    use crate::clock::WallTime;
    use crate::pg::TimelineId;

    fn certificate(epoch: u64) -> Certificate {
        let (facts, wish) =
            situation("db1:silent db2:1000 db3:900! db4:?", "votes force fence max-loss=900 wait=1:db2,db3");
        let course = Course {
            system_identifier: u64::MAX,
            old_timeline: TimelineId(4),
            began_at: WallTime { unix_micros: 1_800_000_000_000_000 },
            committed_at: WallTime { unix_micros: 1_800_000_001_500_000 },
            fence: Fenced { by: Fence::Command, at: Some(at(1)) },
            salvage: None,
        };
        Certificate { epoch, ..Certificate::of(&facts, &plan(&facts, &wish).unwrap(), &wish, course) }
    }

    #[test]
    fn what_is_kept_is_found_again_and_a_changed_byte_is_noticed() {
        let store = tempfile::tempdir().unwrap();
        assert!(all(store.path()).unwrap().entries.is_empty());
        // By number, not by the text of it.
        for epoch in [10, 9] {
            keep(store.path(), &certificate(epoch)).unwrap();
        }
        keep_draft(store.path(), &certificate(11)).unwrap();
        let found = |kept: Kept| kept.entries.into_iter().map(|entry| entry.found).collect::<Vec<_>>();
        assert_eq!(found(all(store.path()).unwrap()), [Ok(certificate(9)), Ok(certificate(10))]);
        assert_eq!(draft(store.path()).unwrap(), Some(Ok(certificate(11))));
        assert_eq!(newest(store.path()), Some(certificate(10)));
        let kept = find(store.path(), 9, "db2").unwrap().unwrap();
        assert_eq!(parse(&kept), Ok(certificate(9)));
        assert_eq!(find(store.path(), 9, "db3").unwrap(), None);
        // Every byte of it counts, also one that JSON does not see.
        for at in 0..kept.len() - 1 {
            let mut bytes = kept.clone().into_bytes();
            bytes[at] ^= 1;
            if let Ok(text) = String::from_utf8(bytes) {
                assert!(parse(&text).is_err(), "{at}");
            }
        }
        assert!(matches!(parse(&kept.replace("\n\"sha", " \n\"sha")), Err(NotGenuine::Changed { .. })));
        drop_draft(store.path()).unwrap();
        assert_eq!(draft(store.path()).unwrap(), None);
    }

    #[test]
    fn of_another_node_only_what_is_genuine_and_complete_is_kept() {
        let store = tempfile::tempdir().unwrap();
        let complete = Certificate { new_timeline: Some(TimelineId(5)), ..certificate(3) };
        let genuine = text(&complete).unwrap();
        let refused =
            |epoch, node: &str, text: &str| keep_of_another(store.path(), epoch, node, text).unwrap_err();
        refused(4, "db2", &genuine);
        refused(3, "db3", &genuine);
        refused(3, "db2", &text(&certificate(3)).unwrap());
        refused(3, "db2", &genuine.replace("any 1", "any 2"));
        let elsewhere = Certificate { node: "../db2".into(), ..complete.clone() };
        refused(3, "../db2", &text(&elsewhere).unwrap());
        assert!(!store.path().join(FOLDER).exists());
        fs::create_dir(store.path().join(FOLDER)).unwrap();
        fs::create_dir(store.path().join(FOLDER).join("0000000003-x")).unwrap();
        fs::write(store.path().join("db2.json"), &genuine).unwrap();
        assert_eq!(find(store.path(), 3, "x/../../db2").unwrap(), None, "not out of the folder");
        keep_of_another(store.path(), 3, "db2", &genuine).unwrap();
        assert_eq!(find(store.path(), 3, "db2").unwrap(), Some(genuine));
    }

    #[test]
    fn what_is_no_certificate_is_named_and_too_much_is_not_read() {
        let store = tempfile::tempdir().unwrap();
        keep(store.path(), &certificate(1)).unwrap();
        let folder = store.path().join(FOLDER);
        fs::write(folder.join("0000000002-db2.json"), "{}").unwrap();
        fs::write(folder.join("0000000003-db2.json"), vec![b' '; BYTES_MAX + 1]).unwrap();
        fs::write(folder.join("0000000004-db2.json"), [0xFF]).unwrap();
        fs::write(folder.join("notes.txt"), "mine").unwrap();
        let kept = all(store.path()).unwrap();
        let names: Vec<_> =
            kept.entries.iter().map(|entry| (&entry.file[9..10], entry.found.is_ok())).collect();
        assert_eq!(names, [("1", true), ("2", false), ("3", false), ("4", false)]);
    }

    #[test]
    fn a_certificate_says_all_of_it_in_words() {
        let text = certificate(2).to_string();
        assert!(text.lines().all(|line| line.chars().count() <= 75), "{text}");
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let said = [
            "certificate of epoch 2: db2, promotion, forced",
            "verdict none up to 0/3E8",
            "asked 2027-01-15T08:00:00Z, committed 2027-01-15T08:00:01Z, promoted not seen yet",
            "timelines 4, whose log ended at 0/3E8; the new one was not seen yet",
            "fence db1, by the fence command, stood still at 2027-01-15T08:00:01Z",
            "policy any 1 (*), stall limit never: 1 of 2 (db2, db3) had to have a commit; 1 stood still, 2 are enough",
            "member db3 (standby) refused: db1 answers it, and writes; last seen at 0/384",
            "member db4 (standby) not heard; position unknown, last heard unknown when; promised unknown, committed unknown",
            "accepted db3 refused its vote",
            "max-loss 900 bytes",
        ];
        for line in said {
            assert!(text.contains(line), "{line}\n---\n{text}");
        }
    }
}
