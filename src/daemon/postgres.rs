//! The local PostgreSQL as a process: whether it runs, starting it, and where it would begin to replay.

use std::ffi::OsString;
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
use crate::pg::postmaster::is_running;
use crate::pg::version;
use crate::rewind::door;

/// How often `pg_control` is read; checkpoints are minutes apart.
const RESTARTPOINT_EVERY: Duration = Duration::from_secs(5);

/// PostgreSQL may replay for long before it accepts connections; its start is not waited for beyond this.
const START_WITHIN: Duration = Duration::from_secs(60);

/// A fast stop of a standby ends in moments; its last restartpoint may take longer.
const STOP_WITHIN: Duration = Duration::from_secs(120);

/// Where PostgreSQL's own log goes when walship starts it with pg_ctl, below the store.
pub const LOG_FILE: &str = "postgresql.log";

/// Starts PostgreSQL by the configured command, else by pg_ctl. It outlives this process.
pub async fn start(config: &Config) -> anyhow::Result<()> {
    let data_directory = config.postgres.data_directory.clone();
    let opened = tokio::task::spawn_blocking(move || door::open(&data_directory));
    opened.await.context("open the data directory")?.context("open the data directory")?;
    let mut command = match &config.postgres.start_command {
        Some(text) => shell(config, text).await,
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

/// Whether this node's PostgreSQL runs.
pub async fn runs(node: &Arc<Node>) -> anyhow::Result<bool> {
    let looked =
        node.blocking("look for PostgreSQL", |node| is_running(&node.config.postgres.data_directory));
    looked.await?.context("look for PostgreSQL")
}

/// How PostgreSQL is stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// In order.
    Fast,
    /// Without letting it write anything any more.
    Immediate,
}

/// Stops PostgreSQL where it runs, by the configured command, else by pg_ctl.
pub async fn stop(config: &Config) -> anyhow::Result<()> {
    stop_by(config, Stop::Fast).await
}

/// Stops PostgreSQL where it runs at once, by pg_ctl: no configured command does that.
pub async fn stop_at_once(config: &Config) -> anyhow::Result<()> {
    stop_by(config, Stop::Immediate).await
}

async fn stop_by(config: &Config, stop: Stop) -> anyhow::Result<()> {
    let data_directory = &config.postgres.data_directory;
    if !is_running(data_directory).context("look for PostgreSQL")? {
        return Ok(());
    }
    tracing::info!("stopping PostgreSQL");
    let mut command = match &config.postgres.stop_command {
        Some(text) if stop == Stop::Fast => shell(config, text).await,
        _ => pg_ctl_stop(config, stop).await?,
    };
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().context("run the command that stops PostgreSQL")?;
    let ended = timeout(STOP_WITHIN, child.wait_with_output()).await;
    if !is_running(data_directory).context("look for PostgreSQL")? {
        return Ok(());
    }
    let said = match ended {
        Err(_) => format!("it still runs after {} s", STOP_WITHIN.as_secs()),
        Ok(output) => {
            let output = output.context("wait for the command that stops PostgreSQL")?;
            format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())
        }
    };
    Err(anyhow::anyhow!("PostgreSQL did not stop ({said})"))
        .hint("Stop it yourself (pg_ctl stop -m fast), and run this again. What stops it here is `stop_command` in walship.toml.")
}

/// A configured command.
async fn shell(config: &Config, text: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(text);
    // So that it can say `pg_ctl`, which Debian keeps out of PATH.
    if let Ok(binaries) = binaries(config).await {
        shell.env("PATH", path_with(&binaries));
    }
    shell
}

/// The programs for the data directory that is here.
pub async fn binaries(config: &Config) -> anyhow::Result<Binaries> {
    let data_directory = config.postgres.data_directory.clone();
    let major = tokio::task::spawn_blocking(move || version::of_data_directory(&data_directory));
    binaries_of(config, major.await.context("look at the data directory")??).await
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

async fn pg_ctl_stop(config: &Config, stop: Stop) -> anyhow::Result<Command> {
    // Any version stops any other; where files are damaged, nobody knows which it is.
    let binaries = match (binaries(config).await, config.postgres.bin_directory.clone()) {
        (Ok(binaries), _) => binaries,
        (Err(_), folder) => {
            let find = move || folder.map_or_else(Binaries::find, |folder| Binaries::at(&folder));
            tokio::task::spawn_blocking(find).await.context("look for PostgreSQL's programs")??
        }
    };
    let mut command = Command::new(binaries.program("pg_ctl"));
    command.arg("stop").arg("--wait").arg("--silent").arg("--mode").arg(match stop {
        Stop::Fast => "fast",
        Stop::Immediate => "immediate",
    });
    command.arg("--timeout").arg(STOP_WITHIN.as_secs().to_string());
    command.arg("--pgdata").arg(&config.postgres.data_directory);
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
