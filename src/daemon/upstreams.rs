//! Whom this node may follow: where they are, what they say of themselves, and which of them is best at the moment.
//!
//! Asking is a Hello and no more. However many members there are, few are asked at once; over the attempts it is
//! everybody's turn.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::fitness::{self, Fitness, Preference, Supply, Unfit};
use super::node::Node;
use super::{ask, epochs};
use crate::config::Config;
use crate::fault::Fault;
use crate::link::message::{Code, Hello, Purpose};
use crate::link::{Conn, LinkError, Socket};
use crate::pg::{Lsn, TimelineId};
use crate::store::{MemberRole, State};

/// Patience with each node that is asked.
const ASK_WITHIN: Duration = Duration::from_secs(4);

/// Once a good source has answered, a better one has so long.
const LATE_WITHIN: Duration = Duration::from_secs(1);

/// Nodes that are asked at once, beside the configured ones.
const ASKED_AT_ONCE: usize = 16;

/// How often a better source is looked for, where there may be one.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// An upstream that lost its own way is given so long to find another: most cuts heal sooner.
const NO_WAY_GRACE: Duration = Duration::from_secs(2);

/// A node that is connected to for a stream.
pub struct Source {
    /// The connection, after the Hello.
    pub conn: Conn<Socket>,
    /// What it said.
    pub hello: Hello,
    /// Where it was reached.
    pub address: String,
    /// How good it is.
    pub fitness: Fitness,
}

/// WAL that this node needs is in no store that could be asked. This is where that is found out, and nowhere else.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}{}", .lacking.join("; "), unheard(.silent))]
pub struct Gone {
    /// Each node that lacks it, with what it has.
    pub lacking: Vec<String>,
    /// Addresses of nodes that did not answer, and may have it.
    pub silent: Vec<String>,
}

fn unheard(silent: &[String]) -> String {
    match silent {
        [] => String::new(),
        addresses => format!(" (no answer from {})", addresses.join(", ")),
    }
}

/// An address, and its place in the configured list.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Candidate {
    address: String,
    listed: Option<usize>,
}

impl Candidate {
    /// The best that it can turn out to be.
    fn at_best(&self) -> Preference {
        self.listed.map_or(Preference::Primary, Preference::Listed)
    }
}

/// What became of asking one.
type Asked = (Candidate, anyhow::Result<Hello>);

/// Where a primary may be: as configured, then as joined, then wherever a member is.
pub fn addresses(node: &Node) -> Vec<String> {
    addresses_of(&node.config, &node.store.state())
}

/// The same for a node that is not running.
pub fn addresses_of(config: &Config, state: &State) -> Vec<String> {
    all_candidates(config, state, 0).into_iter().map(|candidate| candidate.address).collect()
}

/// The configured ones first; then where the primary was, or is said to be; then the others, whose turn moves.
fn all_candidates(config: &Config, state: &State, turn: usize) -> Vec<Candidate> {
    let own = config.advertise.to_string();
    let listed = config.upstream.iter().map(ToString::to_string).enumerate();
    let listed = listed.map(|(place, address)| Candidate { address, listed: Some(place) });
    let members = state.members.iter().filter(|member| member.name != config.name);
    let (primary, mut others): (Vec<_>, Vec<_>) =
        members.partition(|member| member.role == MemberRole::Primary);
    let first = turn.wrapping_mul(ASKED_AT_ONCE / 2) % others.len().max(1);
    others.rotate_left(first);
    let members = primary.into_iter().chain(others).map(|member| member.advertise.clone());
    let unlisted = state.join_addresses.iter().cloned().chain(members);
    let unlisted = unlisted.map(|address| Candidate { address, listed: None });
    let mut unique: Vec<Candidate> = Vec::new();
    for candidate in listed.chain(unlisted) {
        let is_known = unique.iter().any(|known| known.address == candidate.address);
        if !is_known && !candidate.address.is_empty() && candidate.address != own {
            unique.push(candidate);
        }
    }
    unique
}

fn candidates(node: &Node, turn: usize) -> Vec<Candidate> {
    let mut all = all_candidates(&node.config, &node.store.state(), turn);
    all.truncate(node.config.upstream.len() + ASKED_AT_ONCE);
    all
}

/// The end of this node's WAL; `start` is where an empty store begins.
fn need(node: &Node, start: Option<(TimelineId, Lsn)>) -> Option<(TimelineId, Lsn)> {
    let at = *node.store.positions().borrow();
    at.timeline.map(|timeline| (timeline, at.appended)).or(start)
}

/// Asks all at once who they are. Those who are late are waited for only while one of them might be better than the
/// best that answered, and then not for long.
async fn ask(
    node: &Arc<Node>,
    candidates: Vec<Candidate>,
    is_good: impl Fn(&Candidate, &Hello) -> Option<Preference>,
) -> Vec<Asked> {
    let mut waiting = candidates.clone();
    let mut asking = JoinSet::new();
    for candidate in candidates {
        let node = Arc::clone(node);
        asking.spawn(async move {
            let hello = timeout(ASK_WITHIN, hello_of(&node, &candidate.address)).await;
            (candidate, hello.unwrap_or_else(|_| Err(LinkError::Silent(ASK_WITHIN).into())))
        });
    }
    let mut deadline = Instant::now() + ASK_WITHIN + LATE_WITHIN;
    let (mut asked, mut best): (Vec<Asked>, Option<Preference>) = (Vec::new(), None);
    while let Ok(Some(Ok((candidate, answer)))) = timeout_at(deadline, asking.join_next()).await {
        waiting.retain(|other| *other != candidate);
        if let Some(good) = answer.as_ref().ok().and_then(|hello| is_good(&candidate, hello)) {
            deadline = deadline.min(Instant::now() + LATE_WITHIN);
            best = Some(best.map_or(good, |best| best.min(good)));
        }
        asked.push((candidate, answer));
        if best.is_some_and(|best| waiting.iter().all(|other| other.at_best() >= best)) {
            break;
        }
    }
    asked
}

/// What a node says of itself.
async fn hello_of(node: &Arc<Node>, address: &str) -> anyhow::Result<Hello> {
    let (mut link, hello) = ask::open(node, address, Purpose::Ask).await?;
    link.conn.close().await?;
    // Whatever became of it, it leads nobody here.
    anyhow::ensure!(
        !node.store.state().has_forgotten_name(&hello.node),
        "{} was taken off the list of members with `walship forget`",
        hello.node
    );
    epochs::hear(node, &hello, link.identity.as_ref()).await?;
    Ok(hello)
}

/// Dials a node and shakes hands for a stream.
async fn connect(node: &Arc<Node>, address: &str) -> anyhow::Result<(Conn<Socket>, Hello)> {
    let (link, hello) = ask::open(node, address, Purpose::Stream).await?;
    Ok((link.conn, hello))
}

/// Looks for somebody to follow, attempt after attempt.
pub struct Search {
    node: Arc<Node>,
    start: Option<(TimelineId, Lsn)>,
    turn: usize,
    /// What each address said last: what it lacks, or that it said nothing.
    without: BTreeMap<String, Without>,
}

/// Why an address is no source now, as far as [`Gone`] goes.
#[derive(Clone, Debug)]
enum Without {
    /// It lacks the WAL.
    Lacks(String),
    /// It did not answer.
    Silent,
    /// It is no source for another reason, and would not have more.
    Other,
}

impl Search {
    /// A search; `start` is where an empty store begins.
    pub fn new(node: &Arc<Node>, start: Option<(TimelineId, Lsn)>) -> Search {
        Search { node: Arc::clone(node), start, turn: 0, without: BTreeMap::new() }
    }

    /// Connects to the best there is. An error says why there is none.
    pub async fn best(&mut self) -> anyhow::Result<Source> {
        let (node, need) = (Arc::clone(&self.node), need(&self.node, self.start));
        let ours = node.hello(Purpose::Stream);
        let judge =
            |candidate: &Candidate, hello: &Hello| fitness::judge(&ours, need, hello, candidate.listed);
        let is_good = |candidate: &Candidate, hello: &Hello| {
            let fitness = judge(candidate, hello).ok()?;
            (fitness.supply == Supply::Flowing).then_some(fitness.preference)
        };
        let asked = ask(&node, candidates(&node, self.turn), is_good).await;
        self.turn = self.turn.wrapping_add(1);
        let (mut fit, mut failures) = (Vec::new(), Vec::new());
        for (candidate, answer) in asked {
            match answer.map(|hello| judge(&candidate, &hello)) {
                Ok(Ok(fitness)) => fit.push((fitness, candidate.address)),
                Ok(Err(unfit)) => failures.push((candidate.address, unfit.into())),
                Err(error) => failures.push((candidate.address, error)),
            }
        }
        fit.sort();
        let nobody_has_it = fit.is_empty();
        for (fitness, address) in fit {
            match connect(&node, &address).await {
                Ok((conn, hello)) => {
                    self.without.clear();
                    return Ok(Source { conn, hello, address, fitness });
                }
                Err(error) => failures.push((address, error)),
            }
        }
        if nobody_has_it && let Some(gone) = self.gone(&failures) {
            return Err(gone.into());
        }
        Err(self.nobody(failures).await)
    }

    /// Why there is nobody. What a person can do most about comes first.
    async fn nobody(&self, mut failures: Vec<(String, anyhow::Error)>) -> anyhow::Error {
        // Asked for a stream, whoever does not fit hears why, too.
        for (address, error) in &mut failures {
            if let Some(Unfit::Mismatch(_)) = error.downcast_ref()
                && let Err(refusal) = connect(&self.node, address).await
            {
                *error = refusal;
            }
        }
        let is_refusal = |error: &anyhow::Error| match error.downcast_ref() {
            Some(LinkError::Rejected(reject)) => reject.code != Code::NotReady,
            Some(LinkError::Mismatch(_)) => true,
            _ => false,
        };
        if let Some(at) = failures.iter().position(|(_, error)| is_refusal(error)) {
            return failures.swap_remove(at).1;
        }
        if failures.is_empty() {
            return Fault::usage(
                "nobody to follow: there is no upstream and no member is known",
                "Set `upstream` in walship.toml to the primary's address.",
            );
        }
        let told: Vec<String> =
            failures.iter().map(|(address, error)| format!("{address}: {error:#}")).collect();
        anyhow::anyhow!("no primary answers ({})", told.join("; "))
    }

    /// Notes what was said, and decides whether what this node needs is gone everywhere: when somebody lacks it, and
    /// nobody who answered has it.
    fn gone(&mut self, failures: &[(String, anyhow::Error)]) -> Option<Gone> {
        for (address, error) in failures {
            let without = match (error.downcast_ref::<Unfit>(), error.downcast_ref::<LinkError>()) {
                (Some(lacks @ Unfit::Lacks { .. }), _) => Without::Lacks(lacks.to_string()),
                (None, Some(error)) if error.is_gone() => Without::Silent,
                _ => Without::Other,
            };
            self.without.insert(address.clone(), without);
        }
        let all = addresses(&self.node);
        self.without.retain(|address, _| all.contains(address));
        if all.iter().any(|address| !self.without.contains_key(address)) {
            return None;
        }
        let mut gone = Gone { lacking: Vec::new(), silent: Vec::new() };
        for (address, without) in &self.without {
            match without {
                Without::Lacks(what) if !gone.lacking.contains(what) => gone.lacking.push(what.clone()),
                Without::Silent => gone.silent.push(address.clone()),
                Without::Lacks(_) | Without::Other => {}
            }
        }
        (!gone.lacking.is_empty()).then_some(gone)
    }
}

/// Looks for a better source than the one that is followed at `address`, and connects to it. Waits for ever while there
/// can be none.
pub async fn better(node: Arc<Node>, address: String, mut current: watch::Receiver<Fitness>) -> Source {
    for turn in 0.. {
        wait_for_a_look(&mut current).await;
        let now = *current.borrow_and_update();
        let mut wanted = candidates(&node, turn);
        wanted.retain(|candidate| {
            let might_be = Fitness { supply: Supply::Flowing, preference: candidate.at_best() };
            might_be < now && candidate.address != address
        });
        if let Some(source) = look(&node, wanted, now).await {
            return source;
        }
    }
    std::future::pending().await
}

/// Waits until it is time to look again; while what is followed is the best that can be, until that changes.
async fn wait_for_a_look(current: &mut watch::Receiver<Fitness>) {
    let best = Fitness { supply: Supply::Flowing, preference: Preference::Listed(0) };
    let look_again = match *current.borrow_and_update() {
        now if now == best => Duration::MAX,
        _ => LOOK_EVERY,
    };
    tokio::select! {
        () = sleep(look_again) => {}
        // Its owner drops it together with whoever waits here.
        _ = current.changed() => sleep(NO_WAY_GRACE).await,
    }
}

/// Asks those who might be better, and connects to the best that is.
async fn look(node: &Arc<Node>, wanted: Vec<Candidate>, now: Fitness) -> Option<Source> {
    if wanted.is_empty() {
        return None;
    }
    // Before they are asked: they must be as far as this node was then.
    let (ours, need) = (node.hello(Purpose::Stream), need(node, None));
    let judge = |candidate: &Candidate, hello: &Hello| {
        fitness::judge(&ours, need, hello, candidate.listed).ok().filter(|fitness| *fitness < now)
    };
    let asked = ask(node, wanted, |candidate, hello| Some(judge(candidate, hello)?.preference)).await;
    let mut fit: Vec<(Fitness, String)> = asked
        .into_iter()
        .filter_map(|(candidate, answer)| Some((judge(&candidate, &answer.ok()?)?, candidate.address)))
        .collect();
    fit.sort();
    for (fitness, address) in fit {
        match connect(node, &address).await {
            Ok((conn, hello)) => return Some(Source { conn, hello, address, fitness }),
            Err(error) => tracing::debug!(%address, "a better source was not to be had: {error:#}"),
        }
    }
    None
}
