//! The control socket: how the commands on this host talk to the sidecar.
//!
//! `<store>/control.sock`, mode 0600: one JSON line asks, one or more JSON lines answer. Both ends are of the same
//! version on the same host, so there is no negotiation; what is not understood is refused in words.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::node::Node;
pub use super::rejoin::Method;
pub use super::request::{Done, Promotion};
use super::reseed;
use super::seed::Seed;
pub use super::switchover::Switchover;
use super::{certificate, door, forget, order, policy, rejoin, status, switchover, wait};
use crate::fault::{Fault, Outcome, WithFault};
use crate::policy::{Policy, StallLimit};
use crate::report::wait::{Wait, Waited};
use crate::report::{Status, json};
use crate::restore::Phase;
use crate::store::NodeRole;

/// A request is one short line; a status of many members is long.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
const REPLY_BYTES_MAX: u64 = 64 << 20;
const REQUEST_WITHIN: Duration = Duration::from_secs(5);
const STATUS_WITHIN: Duration = Duration::from_secs(10);
/// Patience with a sidecar that does not say in time that a wait is over.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Commands at once; more wait.
const CLIENTS: usize = 16;

/// What a command asks.
#[derive(Serialize, Deserialize, Debug)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The status.
    Status,
    /// A promotion of this node.
    Promote(Promotion),
    /// The primary hands over, from wherever it is to wherever it is wanted.
    Switchover(Switchover),
    /// Seeding this node anew.
    Reseed {
        /// How.
        seed: Seed,
        /// Only say what would be done.
        dry_run: bool,
    },
    /// This old primary is to become a standby.
    Rejoin {
        /// How.
        method: Method,
        /// Only say what would be done.
        dry_run: bool,
    },
    /// Another acknowledgement policy.
    Sync(NewPolicy),
    /// Taking a member off the list.
    Forget(Forget),
    /// An answer when this node has a position.
    Wait {
        /// Which, and for how long.
        wait: Wait,
    },
}

/// Who is to be forgotten.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Forget {
    /// Its name.
    pub name: String,
    /// Accept what would be refused.
    pub force: bool,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What commits are to wait for.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct NewPolicy {
    /// The policy.
    pub policy: Policy,
    /// How long they wait; `None` for as long as before.
    pub stall_limit: Option<StallLimit>,
    /// Take it at once, whatever that costs.
    pub force: bool,
}

/// One line of an answer.
#[derive(Serialize, Deserialize, Debug)]
#[serde(tag = "reply", rename_all = "snake_case")]
enum Reply {
    Status { status: serde_json::Value },
    Progress { line: String },
    Done(Done),
    Failed { message: String, hint: Option<String>, outcome: Option<String> },
}

/// Where the socket is.
pub fn socket_path(store: &Path) -> PathBuf {
    store.join("control.sock")
}

/// Makes the socket; the store's lock is held, so one that is there is stale.
pub fn bind(store: &Path) -> anyhow::Result<UnixListener> {
    let path = socket_path(store);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("remove the old {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).with_context(|| format!("make {}", path.display()))?;
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&path, mode).with_context(|| format!("protect {}", path.display()))?;
    Ok(listener)
}

/// Answers until the node ends.
pub async fn run(node: Arc<Node>, listener: UnixListener) {
    let places = Arc::new(Semaphore::new(CLIENTS));
    let complaint = "the control socket can't accept";
    while let Some(((stream, _), place)) =
        door::next(&places, &node.token, complaint, || listener.accept()).await
    {
        let serving = Arc::clone(&node);
        node.tasks.spawn(async move {
            if let Err(error) = serve(&serving, stream, place).await {
                tracing::info!("a command on the control socket went away: {error:#}");
            }
        });
    }
}

async fn serve(node: &Arc<Node>, stream: UnixStream, place: OwnedSemaphorePermit) -> anyhow::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(read.take(REQUEST_BYTES_MAX));
    timeout(REQUEST_WITHIN, reader.read_line(&mut line)).await.context("wait for the request")??;
    let reply = match serde_json::from_str(&line) {
        Ok(Request::Status) => {
            let status = node.blocking("take the status", status::of).await?;
            Reply::Status { status: serde_json::from_slice(&json::encode(status)?)? }
        }
        Ok(Request::Promote(promotion)) => reply(promote(node, promotion, &mut write).await),
        Ok(Request::Switchover(wanted)) => reply(switch_over(node, wanted, &mut write).await),
        Ok(Request::Reseed { seed, dry_run }) => {
            reply(seed_anew(node, seed, dry_run, &mut write).await.map(Done::line))
        }
        Ok(Request::Rejoin { method, dry_run }) => {
            reply(rejoin(node, method, dry_run, &mut write).await.map(Done::line))
        }
        Ok(Request::Sync(wanted)) => reply(sync(node, wanted).await.map(Done::line)),
        Ok(Request::Forget(wanted)) => reply(forget(node, wanted, &mut write).await.map(Done::line)),
        Ok(Request::Wait { wait }) => {
            // Those who wait have places of their own, and keep nobody from asking for the status.
            drop(place);
            // Cancellation-safe: a wait that is dropped has changed nothing. Nobody sends a second line, so what is
            // read is the end.
            tokio::select! {
                waited = wait::until_there(node, &wait) => answer(node, &wait, &waited),
                _ = reader.read_u8() => anyhow::bail!("it waits no more"),
            }
        }
        Err(error) => failed(&anyhow::anyhow!("this sidecar does not understand the request: {error}")),
    };
    send(&mut write, &reply).await
}

async fn promote(
    node: &Arc<Node>,
    promotion: Promotion,
    write: &mut (impl AsyncWriteExt + Unpin),
) -> anyhow::Result<Done> {
    if node.role() == NodeRole::Primary {
        if let Some((epoch, newer)) = node.superseded_by() {
            return Err(Fault::refused(
                format!("{} was superseded: {newer} was promoted with epoch {epoch}", node.config.name),
                format!("`walship rejoin` makes this node a standby of {newer}."),
            ));
        }
        let epoch = node.store.state().committed_epoch;
        let line = format!("{} is the primary already, of epoch {epoch}", node.config.name);
        return Ok(Done { line, json: certificate::of_epoch(node, epoch).await? });
    }
    pass_on(order::begin(node, promotion)?, "the sidecar ended before the promotion did", write).await
}

/// Passes on what is said of something that is carried out elsewhere, up to its outcome; without one, `unknown` says why.
async fn pass_on<T>(
    (mut lines, outcome): order::Begun<T>,
    unknown: &'static str,
    write: &mut (impl AsyncWriteExt + Unpin),
) -> anyhow::Result<T> {
    while let Some(line) = lines.recv().await {
        send(write, &Reply::Progress { line }).await?;
    }
    outcome.await.context(unknown).outcome(Outcome::Unknown)?
}

async fn switch_over(
    node: &Arc<Node>,
    wanted: Switchover,
    write: &mut (impl AsyncWriteExt + Unpin),
) -> anyhow::Result<Done> {
    let (say, mut lines) = mpsc::channel(16);
    let mut done = std::pin::pin!(switchover::carry_out(node, &wanted, say));
    loop {
        // Cancellation-safe: the work is pinned outside, and a line is taken whole.
        tokio::select! {
            biased;
            Some(line) = lines.recv() => send(write, &Reply::Progress { line }).await?,
            done = &mut done => return done,
        }
    }
}

async fn rejoin(
    node: &Arc<Node>,
    method: Method,
    dry_run: bool,
    write: &mut (impl AsyncWriteExt + Unpin),
) -> anyhow::Result<String> {
    if node.role() == NodeRole::Standby {
        return Err(Fault::refused(
            format!("{} is a standby already", node.config.name),
            "One that can't follow is made whole by `walship standby --reseed`.",
        ));
    }
    let (say, lines) = mpsc::channel(16);
    let (done, outcome) = oneshot::channel();
    let request = rejoin::Request { method, dry_run, say, done };
    node.rejoins.try_send(request).ok().context("it is rejoining already")?;
    pass_on((lines, outcome), "the sidecar ended before that did", write).await
}

async fn seed_anew(
    node: &Arc<Node>,
    seed: Seed,
    dry_run: bool,
    write: &mut (impl AsyncWriteExt + Unpin),
) -> anyhow::Result<String> {
    let plan = reseed::look(&node.config, &node.store.state()).await?;
    if dry_run {
        for line in plan.lines {
            send(write, &Reply::Progress { line }).await?;
        }
        return Ok("nothing was changed".to_owned());
    }
    let (done, mut outcome) = oneshot::channel();
    let request = reseed::Request { seed: Seed { kind: plan.kind, ..seed }, done };
    node.reseeds.try_send(request).ok().context("a re-seed is under way already")?;
    let mut progress = node.progress.watch();
    let mut phase = progress.borrow_and_update().phase;
    loop {
        // Cancellation-safe: both wait for what stays visible.
        tokio::select! {
            outcome = &mut outcome => {
                return outcome.context("the sidecar ended before the re-seed did").outcome(Outcome::Unknown)?;
            }
            changed = progress.changed() => changed.context("the copy is no longer watched")?,
        }
        let now = progress.borrow_and_update().phase;
        if now != phase && now != Phase::Done {
            phase = now;
            send(write, &Reply::Progress { line: phase.to_string() }).await?;
        }
    }
}

async fn sync(node: &Arc<Node>, wanted: NewPolicy) -> anyhow::Result<String> {
    if node.role() != NodeRole::Primary {
        return Err(Fault::refused(
            format!("{} is a standby, and what commits wait for is the primary's business", node.config.name),
            "Run this on the primary: `walship status` shows which node that is.",
        ));
    }
    if let Some((_, newer)) = node.superseded_by() {
        let what = format!("{} was superseded by {newer}, and releases no commit any more", node.config.name);
        return Err(Fault::refused(
            what,
            format!("Run this on {newer}; `walship rejoin` makes this node a standby of it."),
        ));
    }
    policy::change(node, wanted).await
}

async fn forget(
    node: &Arc<Node>,
    wanted: Forget,
    write: &mut (impl AsyncWriteExt + Unpin),
) -> anyhow::Result<String> {
    let plan = forget::plan(node, &wanted)?;
    for line in &plan.lines {
        send(write, &Reply::Progress { line: line.clone() }).await?;
    }
    if wanted.dry_run {
        return Ok("nothing was changed".to_owned());
    }
    forget::carry_out(node, plan, &wanted).await
}

fn answer(node: &Node, wait: &Wait, waited: &Waited) -> Reply {
    let line = waited.sentence(&node.config.name, status::role_of(node.link_role()), wait);
    let outcome = match waited {
        Waited::Reached { .. } => return Reply::Done(Done::line(line)),
        Waited::TimedOut { .. } => Outcome::Failed,
        Waited::LeftBehind { .. } => Outcome::Refused,
        Waited::Unknown { .. } => Outcome::Unknown,
    };
    failed(&Fault::ended(line, outcome))
}

fn reply(outcome: anyhow::Result<Done>) -> Reply {
    match outcome {
        Ok(done) => Reply::Done(done),
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> Reply {
    let (message, hint, outcome) = Fault::tell(error);
    Reply::Failed { message, hint, outcome }
}

async fn send(write: &mut (impl AsyncWriteExt + Unpin), reply: &Reply) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    Ok(write.write_all(&line).await?)
}

/// The commands' end of the socket.
pub struct Client {
    reader: BufReader<tokio::io::Take<UnixStream>>,
}

impl Client {
    /// Connects to the sidecar of a store.
    pub async fn connect(store: &Path) -> anyhow::Result<Client> {
        let path = socket_path(store);
        let stream = UnixStream::connect(&path)
            .await
            .with_context(|| format!("reach the sidecar at {}", path.display()))
            .hint("Is it running? `walship run` starts it.")?;
        Ok(Client { reader: BufReader::new(stream.take(REPLY_BYTES_MAX)) })
    }

    /// Asks for the status. A sidecar that does not answer, as one whose disk hangs, is not waited for: monitoring asks
    /// this.
    pub async fn status(mut self) -> anyhow::Result<Status> {
        self.ask(&Request::Status).await?;
        let answer = timeout(STATUS_WITHIN, self.next()).await;
        match answer.with_context(|| format!("no answer for {} s", STATUS_WITHIN.as_secs()))?? {
            Reply::Status { status } => Ok(json::decode(status.to_string().as_bytes())?),
            Reply::Failed { message, hint, outcome } => Err(Fault::told(message, hint, outcome.as_deref())),
            Reply::Progress { .. } | Reply::Done(_) => {
                anyhow::bail!("the sidecar answered something else")
            }
        }
    }

    /// Asks for a promotion; `say` gets each line of progress, the result is the last.
    pub async fn promote(self, promotion: Promotion, say: impl FnMut(&str)) -> anyhow::Result<Done> {
        self.carry_out(&Request::Promote(promotion), say).await
    }

    /// Asks for a switchover, in the same way.
    pub async fn switchover(self, wanted: Switchover, say: impl FnMut(&str)) -> anyhow::Result<Done> {
        self.carry_out(&Request::Switchover(wanted), say).await
    }

    /// Asks an old primary to become a standby, in the same way.
    pub async fn rejoin(
        self,
        method: Method,
        dry_run: bool,
        say: impl FnMut(&str),
    ) -> anyhow::Result<String> {
        self.told(&Request::Rejoin { method, dry_run }, say).await
    }

    /// Asks for a re-seed, in the same way.
    pub async fn reseed(self, seed: Seed, dry_run: bool, say: impl FnMut(&str)) -> anyhow::Result<String> {
        self.told(&Request::Reseed { seed, dry_run }, say).await
    }

    /// Asks for another acknowledgement policy, in the same way.
    pub async fn sync(self, wanted: NewPolicy, say: impl FnMut(&str)) -> anyhow::Result<String> {
        self.told(&Request::Sync(wanted), say).await
    }

    /// Asks for a member to be forgotten, in the same way.
    pub async fn forget(self, wanted: Forget, say: impl FnMut(&str)) -> anyhow::Result<String> {
        self.told(&Request::Forget(wanted), say).await
    }

    async fn told(self, request: &Request, say: impl FnMut(&str)) -> anyhow::Result<String> {
        self.carry_out(request, say).await.map(|done| done.line)
    }

    async fn carry_out(mut self, request: &Request, mut say: impl FnMut(&str)) -> anyhow::Result<Done> {
        self.ask(request).await?;
        loop {
            match self.next().await.outcome(Outcome::Unknown)? {
                Reply::Progress { line } => say(&line),
                Reply::Done(done) => return Ok(done),
                Reply::Failed { message, hint, outcome } => {
                    return Err(Fault::told(message, hint, outcome.as_deref()));
                }
                Reply::Status { .. } => anyhow::bail!("the sidecar answered something else"),
            }
        }
    }

    /// Waits until the node has a position; the result says how far it is. What is not known has that outcome.
    pub async fn wait(mut self, wait: &Wait) -> anyhow::Result<String> {
        let answered = timeout(wait.timeout.0 + ANSWER_WITHIN, async {
            self.ask(&Request::Wait { wait: *wait }).await?;
            self.next().await
        });
        let reply = answered.await.context("the sidecar does not answer").outcome(Outcome::Unknown)?;
        match reply.outcome(Outcome::Unknown)? {
            Reply::Done(done) => Ok(done.line),
            Reply::Failed { message, hint, outcome } => Err(Fault::told(message, hint, outcome.as_deref())),
            Reply::Status { .. } | Reply::Progress { .. } => {
                anyhow::bail!("the sidecar answered something else")
            }
        }
    }

    async fn ask(&mut self, request: &Request) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.reader.get_mut().get_mut().write_all(&line).await.context("ask the sidecar")
    }

    async fn next(&mut self) -> anyhow::Result<Reply> {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line).await.context("hear the sidecar's answer")?;
        anyhow::ensure!(read > 0, "the sidecar ended without an answer");
        serde_json::from_str(&line).context("understand the sidecar's answer")
    }
}
