//! The primary is killed under load and its disk is taken away, before anybody is promoted: under a policy that waits,
//! no acknowledged commit is missing on the node that takes over.
//!
//! Each round draws a policy, a level and what else goes wrong shortly before; the rounds go on from each other, and the
//! lost node joins anew with nothing, under its old name. `WALSHIP_ROUNDS` sets the number of rounds in all,
//! `WALSHIP_SEED` replays the choices of an earlier run; not its moments.

mod draw;
mod witness;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::ensure;
use rustix::process::Signal;
use tokio::task::JoinHandle;
use walship::demo::{ClusterOptions, Ledger, Proxy, Random, Workload, WorkloadOptions};

use self::draw::Fault::{CutPrimary, Freeze, KillBoth, KillSidecar, ResetPrimary, StallPrimary};
use self::draw::{Draw, Fault, Policy};
use self::witness::Witness;
use crate::cascade::{prefers, takes, written};
use crate::harness::{Node, PATIENCE, PROMOTE, Test, eventually};

const ROUNDS_VARIABLE: &str = "WALSHIP_ROUNDS";
const ROUNDS: u32 = 6;

/// What the log of a standby says that has what the new primary never had.
const LOST: &str = "this standby can't follow";

/// A node behind a link that can be cut.
struct Place {
    node: Node,
    link: Proxy,
    /// Whom it prefers to follow.
    prefers: Option<String>,
    /// How often its log said so far that it can't follow.
    times_lost: usize,
}

/// Nodes are dropped before the test, whose folder they are in.
struct Disaster {
    random: Random,
    workload: Workload,
    primary: Place,
    standbys: Vec<Place>,
    /// The operator's copy of the CA's key: the one on the first primary is lost with it.
    ca_key: PathBuf,
    invited: u32,
    refusals: u32,
    test: Test,
}

impl Place {
    async fn new(node: Node) -> Place {
        let mut node = node;
        let link = Proxy::start(node.listen()).await.unwrap();
        node.advertise = link.address();
        node.sidecar.expect_log(LOST);
        Place { node, link, prefers: None, times_lost: 0 }
    }

    /// All that it had is gone.
    fn wipe(&mut self) {
        for folder in [self.node.store(), self.node.cluster.data_directory()] {
            std::fs::remove_dir_all(folder).unwrap();
        }
        std::fs::remove_file(self.node.config_file()).unwrap();
        self.node.sidecar.set("WALSHIP_UPSTREAM", "");
        self.prefers = None;
    }

    /// Waits until it follows the new primary; false when it has what that one never had.
    async fn comes_along(&mut self, primary: &Node) -> bool {
        let written = primary.cluster.value("SELECT pg_current_wal_flush_lsn()").await.unwrap();
        let replayed = format!("SELECT pg_is_in_recovery() AND pg_last_wal_replay_lsn() >= '{written}'");
        eventually(&format!("{} comes along, or can't", self.node.name()), async || {
            let lost = self.node.sidecar.log().entries().iter().filter(|line| line.contains(LOST)).count();
            if lost > std::mem::replace(&mut self.times_lost, lost) {
                return Ok(false);
            }
            ensure!(self.node.cluster.value(&replayed).await? == "t", "not yet");
            Ok(true)
        })
        .await
    }

    /// Has it prefer a node, or whichever is best.
    async fn prefers(&mut self, upstream: Option<&Node>) {
        let name = upstream.map(|node| node.name().to_owned());
        if self.prefers != name {
            prefers(&mut self.node, upstream.as_slice());
            self.prefers = name;
            assert!(self.node.sidecar.terminate().await.success());
            self.node.run().await;
        }
    }
}

impl Disaster {
    async fn new(test: Test, seed: u64, standbys: usize) -> Disaster {
        println!("WALSHIP_SEED={seed}");
        let options = ClusterOptions::default()
            .set("shared_buffers", "8MB")
            .set("min_wal_size", "4MB")
            .set("max_wal_size", "8MB");
        let mut primary = Place::new(Node::new(&test, "db1", options).await).await;
        primary.node.init().await;
        primary.node.start_primary().await;
        let ca_key = test.folder().join("ca.key");
        std::fs::copy(primary.node.store().join("tls/ca.key"), &ca_key).unwrap();
        test.account.own(&ca_key).unwrap();
        let witness = "CREATE TABLE witness (round int, number int)";
        primary.node.cluster.sql(witness).await.unwrap();
        let load = WorkloadOptions { pause: Duration::from_millis(3), seed, ..WorkloadOptions::default() };
        let workload = Workload::start(&primary.node.cluster.conninfo(), &load).await.unwrap();
        let random = Random::new(seed);
        let (standbys_wanted, standbys) = (standbys, Vec::new());
        let mut all = Disaster { random, workload, primary, standbys, ca_key, invited: 0, refusals: 0, test };
        for number in 2..2 + standbys_wanted {
            let mut place = Place::new(Node::empty(&all.test, &format!("db{number}"))).await;
            all.join(&mut place).await;
            all.standbys.push(place);
        }
        all
    }

    /// A node with nothing joins.
    async fn join(&mut self, place: &mut Place) {
        self.invited += 1;
        let name = place.node.name();
        let bundle = self.test.folder().join(format!("{name}-{}.join", self.invited));
        let (ca_key, address) = (self.ca_key.to_str().unwrap(), self.primary.node.advertise.to_string());
        let output = bundle.to_str().unwrap();
        let invite = ["invite", name, "--ca-key", ca_key, "-o", output, "--address", &address];
        self.primary.node.walship(&invite).await.succeeded();
        place.node.join(&bundle, &[]);
        place.node.follows(&self.primary.node).await;
    }

    async fn rounds(mut self, rounds: u32) {
        let begun = Instant::now();
        for round in 1..=rounds {
            self.round(round).await;
        }
        let ledger = self.workload.stop().await;
        println!(
            "{rounds} rounds with {} standbys in {:.1} s: {} commits acknowledged, none is missing; {} promotions refused",
            self.standbys.len(),
            begun.elapsed().as_secs_f64(),
            ledger.notes().len(),
            self.refusals,
        );
    }

    async fn round(&mut self, round: u32) {
        let begun = Instant::now();
        self.shuffle();
        let draw = Draw::new(&mut self.random, self.standbys.len());
        self.set(draw).await;
        let before = self.workload.acknowledged();
        let witness = self.witness(round, draw);
        self.workload.redirect(&self.primary.node.cluster.conninfo());
        written(&self.workload, 20).await;
        self.pause(800).await;
        if let Some((at, fault)) = draw.fault {
            self.begin(at, fault).await;
            self.pause(500).await;
        }
        self.lose_the_primary().await;
        let seen = match witness {
            Some(witness) => tokio::time::timeout(PATIENCE, witness).await.unwrap().unwrap().unwrap(),
            None => Vec::new(),
        };
        if let Some((at, fault)) = draw.fault.filter(|_| !draw.stays_away) {
            self.end(at, fault).await;
        }
        let lost = self.promote(draw).await;
        let ledger = self.workload.ledger();
        self.verify(&ledger, round, &seen).await;
        println!(
            "round {round}: {draw:?}: {} acknowledged, {} seen; {} took over, {:.1} s",
            ledger.notes().len() - before,
            seen.len(),
            self.primary.node.name(),
            begun.elapsed().as_secs_f64()
        );
        self.gather(lost, draw).await;
    }

    async fn pause(&mut self, milliseconds_max: u64) {
        tokio::time::sleep(Duration::from_millis(self.random.below(milliseconds_max))).await;
    }

    fn shuffle(&mut self) {
        for index in (1..self.standbys.len()).rev() {
            self.standbys.swap(index, self.random.below(index as u64 + 1) as usize);
        }
    }

    /// Sets the round's policy and level, and who follows whom.
    async fn set(&mut self, draw: Draw) {
        let chain = draw.policy == Policy::Chain;
        for index in 0..self.standbys.len() {
            let (before, rest) = self.standbys.split_at_mut(index);
            let upstream = before.first().filter(|_| chain && index == 1).map(|place| &place.node);
            rest[0].prefers(upstream).await;
        }
        for place in &self.standbys {
            place.node.follows(&self.primary.node).await;
        }
        let names: Vec<&str> = self.standbys.iter().map(|place| place.node.name()).collect();
        let primary = &self.primary.node;
        if chain {
            takes(&self.standbys[1].node, &[names[1], names[0], primary.name()]).await;
        }
        let policy = draw.policy.text(&names);
        eventually("the policy takes effect", async || {
            primary.walship(&["sync", &policy]).await.exits(0).map(drop)
        })
        .await;
        let client = primary.cluster.connect().await.unwrap();
        client.batch_execute("SET synchronous_commit = local").await.unwrap();
        // PostgreSQL's checkpointer lets commits wait, once it has read the setting; it does so before a checkpoint.
        client.batch_execute("CHECKPOINT").await.unwrap();
        let level = format!("ALTER ROLE postgres SET synchronous_commit = {}", draw.level);
        client.batch_execute(&level).await.unwrap();
    }

    /// In rounds of `remote_apply`, somebody who looks at once for what was acknowledged.
    fn witness(&self, round: u32, draw: Draw) -> Option<JoinHandle<anyhow::Result<Vec<i32>>>> {
        if draw.level != "remote_apply" {
            return None;
        }
        let (needed, of) = draw.policy.needed(self.standbys.len());
        let counting = if of == 1 { &self.standbys[1..2] } else { &self.standbys[..] };
        let standbys = counting.iter().map(|place| place.node.cluster.conninfo()).collect();
        let conninfo = self.primary.node.cluster.conninfo();
        Some(tokio::spawn(Witness { conninfo, standbys, needed, round }.run()))
    }

    async fn begin(&mut self, at: usize, fault: Fault) {
        let standby = &mut self.standbys[at].node;
        match fault {
            KillSidecar => standby.sidecar.kill().await,
            KillBoth => standby.dies().await,
            Freeze => standby.sidecar.signal(Signal::STOP),
            CutPrimary => self.primary.link.cut(),
            ResetPrimary => self.primary.link.reset(),
            StallPrimary => self.primary.link.stall(),
        }
    }

    async fn end(&mut self, at: usize, fault: Fault) {
        let standby = &mut self.standbys[at].node;
        match fault {
            KillSidecar | KillBoth => standby.run().await,
            Freeze => standby.sidecar.signal(Signal::CONT),
            CutPrimary | ResetPrimary | StallPrimary => {}
        }
    }

    /// Both processes, in either order, and all that is on its disk.
    async fn lose_the_primary(&mut self) {
        let node = &mut self.primary.node;
        if self.random.below(2) == 0 {
            node.cluster.kill().await.unwrap();
            node.sidecar.kill().await;
        } else {
            node.dies().await;
        }
        self.primary.wipe();
        link_is_whole(&self.primary.link);
    }

    /// Promotes the one that is furthest, which any other names. Returns what is left of the old primary.
    async fn promote(&mut self, draw: Draw) -> Place {
        let away = draw.fault.map(|(at, _)| at).filter(|_| draw.stays_away);
        let up: Vec<usize> = (0..self.standbys.len()).filter(|at| Some(*at) != away).collect();
        let mut at = *self.random.pick(&up);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let done = self.standbys[at].node.walship(&PROMOTE).await;
            let said = done.stderr.clone();
            let Err(error) = done.exits(0) else { break };
            assert!(Instant::now() < deadline, "nobody is promoted: {error:#}");
            let Some(further) = named_instead(&said) else { continue };
            println!("{} is refused, {further} is further", self.standbys[at].node.name());
            self.refusals += 1;
            at = self.standbys.iter().position(|place| place.node.name() == further).unwrap();
            if let Some((_, fault)) = draw.fault.filter(|_| Some(at) == away) {
                self.end(at, fault).await;
            }
        }
        let winner = self.standbys.remove(at);
        std::mem::replace(&mut self.primary, winner)
    }

    /// Every row that was acknowledged in this round and before is there, and whatever a witness saw.
    async fn verify(&self, ledger: &Ledger, round: u32, seen: &[i32]) {
        let conninfo = self.primary.node.cluster.conninfo();
        let verified = ledger.verify(&conninfo, None).await.unwrap();
        assert_eq!(verified.present, ledger.notes().len());
        let numbers = format!("SELECT number FROM witness WHERE round = {round}");
        let there = self.primary.node.cluster.sql(&numbers).await.unwrap();
        for number in seen {
            assert!(there.contains(&number.to_string()), "witnessed row {number} is missing");
        }
    }

    /// Everybody who can follows the new primary; who has more than that, or nothing, joins anew.
    async fn gather(&mut self, lost: Place, draw: Draw) {
        let mut lost = lost;
        if draw.stays_away
            && let Some((_, fault)) = draw.fault
        {
            for at in 0..self.standbys.len() {
                match fault {
                    Freeze => self.end(at, fault).await,
                    _ if !self.standbys[at].node.sidecar.is_running() => self.end(at, fault).await,
                    _ => {}
                }
            }
        }
        self.join(&mut lost).await;
        for at in 0..self.standbys.len() {
            if !self.standbys[at].comes_along(&self.primary.node).await {
                let mut place = self.standbys.remove(at);
                println!("{} has more than the new primary, and joins anew", place.node.name());
                place.node.dies().await;
                place.wipe();
                self.join(&mut place).await;
                self.standbys.insert(at, place);
            }
        }
        self.standbys.push(lost);
    }
}

/// What was done to the links of a primary that is gone is no more.
fn link_is_whole(link: &Proxy) {
    link.reset();
    link.heal();
}

/// Whom a refused promotion names as further along.
fn named_instead(said: &str) -> Option<&str> {
    let (_, rest) = said.split_once("hint: Run `walship promote` on ")?;
    rest.split_once(',').map(|(name, _)| name)
}

/// A share of the rounds with so many standbys.
async fn rounds_with(standbys: usize, share: impl FnOnce(u32) -> u32) {
    let rounds = std::env::var(ROUNDS_VARIABLE).ok().map(|rounds| rounds.parse().expect(ROUNDS_VARIABLE));
    let test = Test::new();
    let seed = test.seed();
    Disaster::new(test, seed, standbys).await.rounds(share(rounds.unwrap_or(ROUNDS))).await;
}

#[tokio::test]
async fn of_two_standbys_the_promoted_one_has_all_that_was_acknowledged() {
    rounds_with(2, |rounds| rounds / 2).await;
}

#[tokio::test]
async fn of_three_standbys_the_promoted_one_has_all_that_was_acknowledged() {
    rounds_with(3, |rounds| rounds - rounds / 2).await;
}
