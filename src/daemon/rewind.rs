//! Rejoining by the node's own pg_rewind, whose SQL goes through the link to the new primary.
//!
//! That it was begun is noted before the first change and until this node lives as a standby: what an interrupted
//! pg_rewind leaves can be used by nobody. Whoever goes on then knows whether it ended well, and what is left is to settle
//! it as a standby, or not, and the data directory is compared with the new primary's. So does whoever sees it fail.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use super::node::Node;
use super::rejoin::{Method, Way};
use super::seed::{self, Seed};
use super::{fork, postgres};
use crate::config::Config;
use crate::failpoint;
use crate::fault::{Fault, in_full};
use crate::link::LinkError;
use crate::link::message::Purpose;
use crate::pg::control::{ClusterState, ControlFile};
use crate::pg::postmaster;
use crate::restore::standby::SIGNAL_FILE;
use crate::restore::surplus;
use crate::restore::target::{Kind, StandbyPlace};
use crate::rewind::{Client, Line, Program, door, lend, own, tunnel};
use crate::store::{Fork, Rewind};
use crate::{durable, restore};

/// The folder below the store with what a rewind needs: the socket, and the host's own files.
const FOLDER: &str = "rewind";

/// How often a line that only says how far it is goes to the log.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// A pg_rewind of before lives on for as long as it takes it to see that nobody answers it.
const HELD_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A rewind to be carried out, and who waits for it.
pub struct Plan {
    /// The new primary.
    pub primary: String,
    /// What this node went past.
    pub fork: Fork,
    /// Where progress is told, line by line.
    pub say: Option<mpsc::Sender<String>>,
    /// The outcome.
    pub done: Option<oneshot::Sender<anyhow::Result<String>>>,
}

impl Plan {
    fn tell(&self, line: String) {
        tracing::info!("rewinding: {line}");
        if let Some(say) = &self.say {
            // Whoever asked may have gone, and need not hear every line.
            let _ = say.try_send(line);
        }
    }
}

/// Why pg_rewind can't bring this stopped node back to the new primary; `None` when it can, for which the new primary was
/// asked, too.
pub async fn unfit(node: &Arc<Node>, method: Method) -> anyhow::Result<Option<String>> {
    if method == Method::Delta {
        return Ok(Some("it was not asked for".to_owned()));
    }
    let has_program = postgres::binaries(&node.config).await?.program("pg_rewind").is_file();
    if !has_program {
        return Ok(Some("it is not among PostgreSQL's programs here".to_owned()));
    }
    let read =
        node.blocking("read pg_control", |node| ControlFile::read(&node.config.postgres.data_directory));
    let control = read.await?.context("read pg_control")?;
    if !control.has_data_checksums() && !control.wal_log_hints {
        return Ok(Some(
            "without data checksums and wal_log_hints it can't know all that changed".to_owned(),
        ));
    }
    if !control.full_page_writes {
        return Ok(Some("full_page_writes is off".to_owned()));
    }
    let conn = match seed::connect(node, Purpose::Sql).await {
        Ok(conn) => conn,
        Err(error) => return Ok(Some(format!("{error:#}"))),
    };
    Ok(match tunnel::try_out(conn).await {
        Ok(()) => None,
        Err(LinkError::Rejected(reject)) => Some(reject.message.trim_end_matches(';').to_owned()),
        Err(error) => Some(in_full(&error)),
    })
}

/// Carries it out; as what this node goes on. Whatever fails, the data directory is made equal by a copy then.
pub async fn run(node: &Arc<Node>, mut plan: Plan) -> anyhow::Result<Way> {
    let rewound = match begin(node, &plan).await {
        Ok(held) => carry_out(node, &plan, held).await,
        Err(error) => Err(error),
    };
    let name = &node.config.name;
    let settled = match rewound {
        Ok(()) => settle(node, Rewind { fork: plan.fork, has_ended: true }).await,
        Err(error) => Err(error),
    };
    let (way, line) = match settled {
        Ok(way) => (way, format!("{name} was rewound to {} and follows {}", plan.fork.lsn, plan.primary)),
        Err(error) => {
            tracing::warn!("not rewound: {error:#}");
            plan.tell(format!("not rewound: {error:#}"));
            // Without a note of it nothing was changed.
            let way = match node.store.state().rewind {
                Some(rewind) => settle(node, Rewind { has_ended: false, ..rewind }).await?,
                None => Way::Anew(Seed::automatic(&node.config, Kind::Reseed)),
            };
            (way, being_made_equal(name, &plan.primary))
        }
    };
    if let Some(done) = plan.done.take() {
        // Whoever asked may have gone; it is in the log, too.
        let _ = done.send(Ok(line));
    }
    Ok(way)
}

/// What is said where the copy takes over.
pub fn being_made_equal(name: &str, primary: &str) -> String {
    format!(
        "{name} is being made equal to {primary}, and follows it then: `walship status` shows how far that is"
    )
}

fn folder(config: &Config) -> PathBuf {
    config.store.join(FOLDER)
}

/// Notes that it begins, with the host's own files kept; the data directory, locked.
async fn begin(node: &Arc<Node>, plan: &Plan) -> anyhow::Result<File> {
    let held = hold(node).await?;
    let fork = plan.fork;
    let begun = node.blocking("prepare the data directory", move |node| {
        let (data_directory, folder) = (&node.config.postgres.data_directory, folder(&node.config));
        let files = restore::configuration_in(data_directory)?;
        own::keep(data_directory, &files, &folder)?;
        node.store.update_state(|state| state.rewind = Some(Rewind { fork, has_ended: false }))?;
        failpoint::hit("rewind-noted");
        // After a crash pg_rewind has PostgreSQL recover first, and it is closed when that is over.
        if is_shut_down(data_directory)? {
            door::close(data_directory).context("keep PostgreSQL from being started")?;
        }
        own::arm(data_directory, &restore_command(&node.config)?)?;
        // With it a PostgreSQL of its own, which pg_rewind starts after a crash, would not recover.
        anyhow::Ok(durable::remove(&data_directory.join(SIGNAL_FILE))?)
    });
    begun.await??;
    failpoint::hit("rewind-armed");
    Ok(held)
}

/// Takes the data directory for pg_rewind alone.
async fn hold(node: &Arc<Node>) -> anyhow::Result<File> {
    let path = &node.config.postgres.data_directory;
    let folder = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let begun = Instant::now();
    loop {
        match folder.try_lock() {
            Ok(()) => return Ok(folder),
            Err(TryLockError::WouldBlock) if begun.elapsed() < HELD_WITHIN => sleep(LOOK_EVERY).await,
            Err(TryLockError::WouldBlock) => {
                return Err(Fault::refused(
                    format!("another pg_rewind, or a copy, is at work in {}", path.display()),
                    "Let it finish, or end it; then run this again.",
                ));
            }
            Err(TryLockError::Error(e)) => {
                return Err(e).with_context(|| format!("lock {}", path.display()));
            }
        }
    }
}

/// Where pg_rewind gets WAL that this node's pg_wal no longer has.
fn restore_command(config: &Config) -> anyhow::Result<String> {
    let quoted = |path: &Path| -> anyhow::Result<String> {
        let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
        Ok(format!("'{}'", text.replace('\'', r"'\''").replace('%', "%%")))
    };
    let program = std::env::current_exe().context("find walship's own program")?;
    let mut command = format!("{} fetch-wal", quoted(&program)?);
    if let Some(file) = &config.file {
        command += &format!(" --config {}", quoted(&std::path::absolute(file)?)?);
    }
    command += &format!(" --name {} --store {}", quoted(Path::new(&config.name))?, quoted(&config.store)?);
    command += &format!(" --data-directory {} %f %p", quoted(&config.postgres.data_directory)?);
    Ok(command)
}

async fn carry_out(node: &Arc<Node>, plan: &Plan, held: File) -> anyhow::Result<()> {
    let socket_folder = folder(&node.config);
    let client = Client::bind(&socket_folder)?;
    let program = Program {
        path: postgres::binaries(&node.config).await?.program("pg_rewind"),
        data_directory: node.config.postgres.data_directory.clone(),
        socket_folder,
        held,
    };
    let moved_bytes = client.moved_bytes();
    let mut said_at: Option<Instant> = None;
    let heard = |line: &Line| match line {
        Line::Copied(_) if said_at.is_some_and(|at| at.elapsed() < SAY_EVERY) => {}
        Line::Copied(text) => {
            said_at = Some(Instant::now());
            plan.tell(text.clone());
        }
        Line::Changes(text) => {
            plan.tell(text.clone());
            // One call, no more than the program's own next.
            if let Err(error) = door::close(&node.config.postgres.data_directory) {
                tracing::warn!("PostgreSQL can't be kept from being started meanwhile: {error}");
            }
            failpoint::hit("rewind-changing");
        }
        Line::Other(text) => plan.tell(text.clone()),
    };
    tokio::select! {
        ended = program.run(&moved_bytes, heard) => ended?,
        () = lend(&client, async || seed::connect(node, Purpose::Sql).await) => {}
    }
    failpoint::hit("rewind-ended");
    let fork = plan.fork;
    let noted = node.blocking("note that it has ended", move |node| {
        let was_started = postmaster::is_running(&node.config.postgres.data_directory);
        anyhow::ensure!(
            !was_started.context("look for PostgreSQL")?,
            "somebody started PostgreSQL meanwhile"
        );
        Ok(node.store.update_state(|state| state.rewind = Some(Rewind { fork, has_ended: true }))?)
    });
    noted.await??;
    failpoint::hit("rewind-noted-ended");
    Ok(())
}

/// Goes on with a rewind that was begun: its outcome is known, and nobody is at work there any more. As what this node
/// goes on.
pub async fn settle(node: &Arc<Node>, rewind: Rewind) -> anyhow::Result<Way> {
    postgres::stop(&node.config).await?;
    drop(hold(node).await?);
    let settled = node.blocking("settle what pg_rewind left", move |node| settled(node, rewind));
    let follows = settled.await??;
    failpoint::hit("rewind-cut");
    Ok(if follows { Way::AsItIs } else { Way::Anew(Seed::automatic(&node.config, Kind::Reseed)) })
}

/// Whether it follows as it is. Blocks.
fn settled(node: &Node, rewind: Rewind) -> anyhow::Result<bool> {
    let (data_directory, folder) = (&node.config.postgres.data_directory, folder(&node.config));
    own::put_back(data_directory, &folder)?;
    let follows = rewind.has_ended && is_a_standbys(data_directory)?;
    if follows {
        let mut settings = seed::settings_of(&node.config, StandbyPlace::default());
        settings.add_primarys(data_directory, &ControlFile::limits_in(data_directory)?);
        settings.apply(data_directory)?;
        failpoint::hit("rewind-settled");
        fork::cut_log(node, rewind.fork)?;
        // pg_rewind keeps the segment with the fork, as its end was read there. Where the new primary's pg_wal has its own
        // no longer, PostgreSQL would replay from this one, past the fork.
        let Fork { timeline, lsn, .. } = rewind.fork;
        surplus::cut(data_directory, node.store.identity().segment_size, timeline, lsn)?;
    }
    own::forget(&folder)?;
    Ok(follows)
}

fn is_shut_down(data_directory: &Path) -> anyhow::Result<bool> {
    let control = ControlFile::read(data_directory).context("read pg_control")?;
    Ok(matches!(control.state, ClusterState::ShutDown | ClusterState::ShutDownInRecovery))
}

/// Whether nobody has started it as anything else since pg_rewind, which takes the signal away, has left it.
fn is_a_standbys(data_directory: &Path) -> anyhow::Result<bool> {
    let control = ControlFile::read(data_directory).context("read pg_control")?;
    Ok(matches!(control.state, ClusterState::InArchiveRecovery | ClusterState::ShutDownInRecovery))
}
