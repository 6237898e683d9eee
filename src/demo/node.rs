//! One node of the demo: a folder, a PostgreSQL, and walship beside it, run as a user would run it.

use std::fs::OpenOptions;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal};

use super::stage::Stage;
use super::{Cluster, ClusterOptions, wait};
use crate::daemon::control::Client;
use crate::pg::{Conninfo, Lsn};
use crate::report::Status;

/// How long a command may take that ends by itself.
const COMMAND_WITHIN: Duration = Duration::from_secs(120);

/// Variables that the commands keep: where PostgreSQL is, and what is logged.
const KEPT_VARIABLES: [&str; 2] = [crate::pg::binaries::OVERRIDE_VARIABLE, "WALSHIP_LOG"];

/// A node. Unless the stage is to be kept, dropping it ends its sidecar and its PostgreSQL.
#[derive(Debug)]
pub struct Node {
    name: &'static str,
    folder: PathBuf,
    program: PathBuf,
    /// The sidecar ends before its PostgreSQL does.
    sidecar: Option<Sidecar>,
    keep: bool,
    /// The PostgreSQL.
    pub cluster: Cluster,
}

/// A walship that stays in the foreground, with whatever programs it runs.
#[derive(Debug)]
struct Sidecar {
    child: Child,
    keep: bool,
}

impl Node {
    /// A node with a new, running PostgreSQL as a user would have one: whoever this is can log in as a superuser.
    pub async fn with_postgres(stage: &Stage, name: &'static str) -> anyhow::Result<Node> {
        let options = ClusterOptions { wal_segment_mib: 16, ..ClusterOptions::default() };
        let folder = stage.folder().join(name);
        let cluster = Cluster::create(&folder, &stage.binaries, &stage.account, &options).await?;
        let node = Node::around(stage, name, cluster);
        node.cluster.start().await?;
        let account = Conninfo::parse("dbname=postgres")?;
        if account.user() != super::cluster::SUPERUSER {
            let role = account.user().replace('"', "\"\"");
            node.cluster.sql(&format!("CREATE ROLE \"{role}\" SUPERUSER LOGIN")).await?;
        }
        Ok(node)
    }

    /// A node whose PostgreSQL walship is going to make.
    pub fn empty(stage: &Stage, name: &'static str) -> anyhow::Result<Node> {
        let cluster = Cluster::at(&stage.folder().join(name), &stage.binaries, &stage.account)?;
        Ok(Node::around(stage, name, cluster))
    }

    fn around(stage: &Stage, name: &'static str, mut cluster: Cluster) -> Node {
        if stage.keep {
            cluster.keep_running();
        }
        let (folder, program) = (stage.folder().join(name), stage.program().to_owned());
        Node { name, folder, program, sidecar: None, keep: stage.keep, cluster }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// A walship command in the node's folder. `$PWD` in an argument is that folder, as in a shell.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.cluster.account().command(&self.program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("WALSHIP_") && !KEPT_VARIABLES.contains(&text.as_ref()) {
                command.env_remove(&name);
            }
        }
        let folder = self.folder.to_string_lossy();
        command.args(arguments.iter().map(|argument| argument.replace("$PWD", &folder)));
        command.arg0("walship").current_dir(&self.folder).stdin(Stdio::null());
        command
    }

    /// Runs a walship command to its end, whatever that is.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = tokio::process::Command::from(self.command(arguments));
        let output = tokio::time::timeout(COMMAND_WITHIN, command.kill_on_drop(true).output());
        let name = arguments.first().copied().unwrap_or_default();
        let output = output.await.with_context(|| format!("wait {COMMAND_WITHIN:?} for `walship {name}`"))?;
        output.with_context(|| format!("run `walship {name}`"))
    }

    /// Starts a walship that stays; what it says goes to `walship.log` in the node's folder.
    pub fn start(&mut self, arguments: &[&str]) -> anyhow::Result<()> {
        let path = self.folder.join("walship.log");
        let log = OpenOptions::new().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("open {}", path.display()))?;
        let mut command = self.command(arguments);
        // A group of its own: Ctrl-C is for the demo, which ends everything in order.
        command.process_group(0).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("run {}", self.program.display()))?;
        self.sidecar = Some(Sidecar { child, keep: self.keep });
        Ok(())
    }

    /// Waits until a condition is true, but not for a sidecar that has ended.
    pub async fn until<T>(
        &mut self,
        what: &str,
        within: Duration,
        mut condition: impl AsyncFnMut(&Node) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        wait::until(what, within, async || match self.has_not_ended() {
            Err(ended) => Ok(Err(ended)),
            Ok(()) => condition(self).await.map(Ok),
        })
        .await?
    }

    /// An error when the sidecar has ended by itself.
    pub fn has_not_ended(&mut self) -> anyhow::Result<()> {
        let Some(sidecar) = &mut self.sidecar else { return Ok(()) };
        match sidecar.child.try_wait().context("look at the sidecar")? {
            None => Ok(()),
            Some(status) => bail!("the sidecar of {} ended by itself: {status}", self.name),
        }
    }

    /// What its sidecar says.
    pub async fn status(&self) -> anyhow::Result<Status> {
        Client::connect(&self.folder.join("data-walship")).await?.status().await
    }

    /// The end of its PostgreSQL's WAL, while it is the primary.
    pub async fn flushed(&self) -> anyhow::Result<Lsn> {
        Ok(self.cluster.value("SELECT pg_current_wal_flush_lsn()").await?.parse()?)
    }

    /// What its PostgreSQL has replayed, while it is a standby.
    pub async fn replayed(&self) -> anyhow::Result<Lsn> {
        Ok(self.cluster.value("SELECT pg_last_wal_replay_lsn()").await?.parse()?)
    }

    /// Waits until its PostgreSQL has replayed up to a position.
    pub async fn until_replayed(&mut self, lsn: Lsn, within: Duration) -> anyhow::Result<()> {
        let what = format!("{} has replayed up to {lsn}", self.name);
        self.until(&what, within, async |node| {
            let replayed = node.replayed().await?;
            ensure!(replayed >= lsn, "it is at {replayed}");
            Ok(())
        })
        .await
    }

    /// Kills its PostgreSQL and its sidecar with SIGKILL, as losing the machine would.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut sidecar) = self.sidecar.take() {
            sidecar.kill();
        }
        self.cluster.kill().await
    }
}

impl Sidecar {
    fn kill(&mut self) {
        // Its group, for it may be running pg_ctl. One that is gone is what we want.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if !self.keep {
            self.kill();
        }
    }
}

/// An address of loopback with a port that the system picks and nobody listens on.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    listener.local_addr().context("find a free port")
}
