//! The local PostgreSQL as a process: whether it runs, starting it, and where it would begin to replay.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::process::Command;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::node::Node;
use crate::config::Config;
use crate::fault::WithFault;
use crate::pg::Binaries;
use crate::pg::control::ControlFile;

/// How often `pg_control` is read; checkpoints are minutes apart.
const RESTARTPOINT_EVERY: Duration = Duration::from_secs(5);

/// PostgreSQL may replay for long before it accepts connections; its start is not waited for beyond this.
const START_WITHIN: Duration = Duration::from_secs(60);

/// Where PostgreSQL's own log goes when walship starts it with pg_ctl, below the store.
pub const LOG_FILE: &str = "postgresql.log";

/// PostgreSQL's configuration, in the data directory unless a person or a package put it elsewhere.
pub const CONFIGURATION_FILE: &str = "postgresql.conf";

/// Whether a postmaster runs on this data directory: by its pid file, and whether that process lives. So does a
/// backend that somebody runs alone, which writes its number with a minus.
pub fn is_running(data_directory: &Path) -> io::Result<bool> {
    let path = data_directory.join("postmaster.pid");
    let content = match std::fs::read_to_string(path) {
        Ok(content) => content,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    let pid: i32 = content.lines().next().and_then(|line| line.trim().parse().ok()).unwrap_or(0);
    let Some(pid) = pid.checked_abs().and_then(rustix::process::Pid::from_raw) else { return Ok(false) };
    match rustix::process::test_kill_process(pid) {
        Ok(()) => Ok(!is_zombie(pid) && !is_elsewhere(pid, data_directory)),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        // Somebody else's process: then it is not the postmaster, which runs as our user.
        Err(rustix::io::Errno::PERM) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn is_zombie(pid: rustix::process::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

/// A postmaster works in its data directory. A process that is known to work in another folder only got the number of
/// one that is gone, as happens after the host was restarted.
fn is_elsewhere(pid: rustix::process::Pid, data_directory: &Path) -> bool {
    let folder = std::fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero()));
    folder.ok().zip(data_directory.canonicalize().ok()).is_some_and(|(folder, own)| folder != own)
}

/// Starts PostgreSQL by the configured command, else by pg_ctl. It outlives this process.
pub async fn start(config: &Config) -> anyhow::Result<()> {
    let mut command = match &config.postgres.start_command {
        Some(text) => {
            let mut shell = Command::new("/bin/sh");
            shell.arg("-c").arg(text);
            // So that it can say `pg_ctl`, which Debian keeps out of PATH.
            if let Ok(binaries) = binaries(config).await {
                shell.env("PATH", path_with(&binaries));
            }
            shell
        }
        None => pg_ctl_start(config).await?,
    };
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(false);
    let child = command.spawn().context("run the command that starts PostgreSQL")?;
    let Ok(ended) = timeout(START_WITHIN, child.wait_with_output()).await else {
        tracing::warn!("PostgreSQL is still starting after {} s; going on", START_WITHIN.as_secs());
        return Ok(());
    };
    let output = ended.context("wait for the command that starts PostgreSQL")?;
    if output.status.success() {
        return Ok(());
    }
    if is_running(&config.postgres.data_directory).context("look for PostgreSQL")? {
        // The service manager, or a person, was quicker.
        tracing::info!("PostgreSQL was started by somebody else");
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let log = config.store.join(LOG_FILE);
    Err(anyhow::anyhow!("PostgreSQL did not start ({}): {said}", output.status))
        .hint(format!("Its own log says why: {}", log.display()))
}

/// The programs for the data directory that is here.
async fn binaries(config: &Config) -> anyhow::Result<Binaries> {
    let version = config.postgres.data_directory.join("PG_VERSION");
    let version = tokio::fs::read_to_string(version).await.context("read PG_VERSION")?;
    binaries_of(config, version.trim().parse().context("read PG_VERSION")?).await
}

/// The programs of a major version, by which PostgreSQL is started here.
pub async fn binaries_of(config: &Config, major: u32) -> anyhow::Result<Binaries> {
    let folder = config.postgres.bin_directory.clone();
    let found = tokio::task::spawn_blocking(move || find_binaries(folder.as_deref(), major));
    found.await.context("look for PostgreSQL's programs")?
}

/// This process's PATH, with PostgreSQL's programs before all others.
fn path_with(binaries: &Binaries) -> OsString {
    let mut path = binaries.folder().as_os_str().to_owned();
    if let Some(own) = std::env::var_os("PATH") {
        path.push(":");
        path.push(own);
    }
    path
}

async fn pg_ctl_start(config: &Config) -> anyhow::Result<Command> {
    let binaries = binaries(config).await?;
    let mut command = Command::new(binaries.program("pg_ctl"));
    command.arg("start").arg("--wait").arg("--silent");
    command.arg("--timeout").arg(START_WITHIN.as_secs().to_string());
    command.arg("--pgdata").arg(&config.postgres.data_directory);
    command.arg("--log").arg(config.store.join(LOG_FILE));
    Ok(command)
}

/// Blocks: it runs programs.
fn find_binaries(folder: Option<&Path>, major: u32) -> anyhow::Result<Binaries> {
    if let Some(folder) = folder {
        let named = Binaries::at(folder)?;
        anyhow::ensure!(
            named.major() == major,
            "{} holds the programs of PostgreSQL {}, not {major}",
            folder.display(),
            named.major()
        );
        return Ok(named);
    }
    let found = Binaries::find().ok().filter(|found| found.major() == major);
    found
        .or_else(|| Binaries::of_debian().into_iter().find(|found| found.major() == major))
        .with_context(|| format!("found no programs of PostgreSQL {major}"))
        .hint(format!("Install the server package of version {major}, or set bin_directory in walship.toml."))
}

/// Reads where PostgreSQL would begin to replay after a crash, until it is cancelled. While `pg_control` can't be read
/// the last value stays: what is kept for it is then too much, not too little.
pub async fn watch_restartpoint(node: Arc<Node>) -> anyhow::Result<()> {
    let mut tick = interval(RESTARTPOINT_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let read = node.blocking("read pg_control", |node| {
            ControlFile::read(&node.config.postgres.data_directory).map(|control| control.redo_lsn)
        });
        match read.await? {
            Ok(lsn) => {
                node.restartpoint.send_if_modified(|current| std::mem::replace(current, lsn) != lsn);
            }
            Err(error) => tracing::debug!("pg_control can't be read: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said with a process that works in `folder`, while it runs and when it has ended.
    fn with_process_in(folder: &Path, data_directory: &Path, sign: i64) -> (bool, bool) {
        let mut process = std::process::Command::new("sleep").arg("60").current_dir(folder).spawn().unwrap();
        let number = sign * i64::from(process.id());
        std::fs::write(data_directory.join("postmaster.pid"), format!("{number}\n/data\n")).unwrap();
        let while_it_runs = is_running(data_directory).unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        (while_it_runs, is_running(data_directory).unwrap())
    }

    #[test]
    fn a_pid_file_tells_of_a_process_that_lives() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_running(folder.path()).unwrap());
        // A backend that runs alone has a minus.
        for sign in [1, -1] {
            assert_eq!(with_process_in(folder.path(), folder.path(), sign), (true, false), "{sign}");
        }
        for number in [0, 2_000_000_000] {
            std::fs::write(folder.path().join("postmaster.pid"), format!("{number}\n/data\n")).unwrap();
            assert!(!is_running(folder.path()).unwrap(), "{number}");
        }
    }

    #[test]
    fn a_number_that_was_given_to_another_process_is_no_server() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(with_process_in(other.path(), folder.path(), 1), (false, false));
    }
}
