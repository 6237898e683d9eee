//! Where the demo plays: a folder of its own, and this very program as the one that its commands run.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rustix::fs::{Access, access};

use super::{Account, Binaries};
use crate::fault::WithFault;

/// A server that is ending may still make files while its folder is removed.
const REMOVE_TRIES: u32 = 20;
const REMOVE_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Lines of each log that are shown when the demo fails.
const LOG_LINES: usize = 5;

/// What ends everything that was kept; `FOLDER` stands for the demo's. It looks for processes by where they work, so
/// it never ends another one that has got an old number.
const STOP_SCRIPT: &str = r#"#!/bin/sh
# Ends what `walship demo --keep` left running, and removes its folder.
running() {
    for process in /proc/[0-9]*; do
        case "$(cat "$process/comm" 2>/dev/null):$(readlink "$process/cwd")" in
            walship:FOLDER/db? | exe:FOLDER/db? | postgres:FOLDER/db?/data) echo "${process#/proc/}" ;;
        esac
    done
}
cd / || exit 1
while pids=$(running) && [ -n "$pids" ]; do
    kill -INT $pids 2>/dev/null
    sleep 0.5
done
rm -rf "FOLDER"
"#;

/// The folder of a demo. Unless it is to be kept, dropping it removes the folder; whoever runs in it must have ended.
#[derive(Debug)]
pub struct Stage {
    folder: PathBuf,
    program: PathBuf,
    /// Whether everything is left as it is in the end.
    pub keep: bool,
    /// As whom PostgreSQL and walship run: this process.
    pub account: Account,
    /// PostgreSQL's programs.
    pub binaries: Binaries,
}

impl Stage {
    /// Makes the folder. Its path is short: unix sockets go below it.
    pub fn new(keep: bool) -> anyhow::Result<Stage> {
        let (binaries, account) = (Binaries::find()?, Account::for_postgres()?);
        let folder = std::env::temp_dir().join(format!("walship-demo-{}", std::process::id()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("create {}", folder.display()))
            .hint(
                "Set TMPDIR to a folder that the account `postgres` may write, or run this as another user.",
            )?;
        let stage = Stage { folder, program: program(), keep, account, binaries };
        if keep {
            stage.write_stop_script()?;
        }
        Ok(stage)
    }

    /// The folder; each node has one in it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// This program, by a path that this account may run.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The script that ends what was kept.
    pub fn stop_script(&self) -> PathBuf {
        self.folder.join("stop")
    }

    fn write_stop_script(&self) -> anyhow::Result<()> {
        let text = STOP_SCRIPT.replace("FOLDER", &self.folder.to_string_lossy());
        let path = self.stop_script();
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        let mode = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&path, mode).with_context(|| format!("make {} a program", path.display()))
    }

    /// The end of each sidecar's log: for when something failed.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for node in super::story::NODES {
            let path = self.folder.join(node).join("walship.log");
            let end = super::cluster::last_lines(&path, LOG_LINES);
            if !end.is_empty() {
                text.push_str(&format!("{} ends with\n{end}\n\n", path.display()));
            }
        }
        text
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for _ in 0..REMOVE_TRIES {
            if self.keep || fs::remove_dir_all(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(REMOVE_AGAIN_AFTER);
        }
        tracing::warn!(folder = %self.folder.display(), "the demo's folder could not be removed");
    }
}

/// This program. Its own path looks better in a list of processes, but may lie where `postgres` has no access.
fn program() -> PathBuf {
    let own = std::env::current_exe().ok().filter(|path| access(path, Access::EXEC_OK).is_ok());
    own.unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
}
