//! A cluster to which anything happens, for a while: nodes are killed, frozen, cut off and healed, promotions, switchovers
//! and rejoins are run as they come, while clients write wherever they can.
//!
//! No commit that was acknowledged is lost, no two nodes have commits acknowledged at once, every command ends as commands
//! may, and once everything runs again all nodes are equal within a bounded time. `WALSHIP_SECONDS` says how long it goes
//! on, `WALSHIP_SEED` replays the choices of an earlier run; not its moments, and what is drawn depends on what the cluster
//! looks like at each.

mod clients;
mod draw;
mod operator;
mod stage;
mod witness;
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use walship::demo::Random;

use self::clients::Clients;
use self::stage::Stage;
use self::witness::Witness;
use crate::harness::Test;

const SECONDS_VARIABLE: &str = "WALSHIP_SECONDS";
const SECONDS: u64 = 60;

const SEED_VARIABLE: &str = "WALSHIP_SEED";
const SEED: u64 = 4;

/// After so much of it everything is mended and looked at, which takes about as long as is left for it at the end.
const ROUND: Duration = Duration::from_secs(45);
const MENDING: Duration = Duration::from_secs(15);

/// In runs from so long on it may be four nodes, which take their time to be made and to be mended.
const FOUR_NODES_FROM: Duration = Duration::from_secs(300);

/// Between two events, at most.
const PACE_MILLISECONDS_MAX: u64 = 1500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_no_acknowledged_commit_is_lost_and_no_two_nodes_acknowledge() {
    let test = Test::new();
    let seconds =
        std::env::var(SECONDS_VARIABLE).ok().map(|seconds| seconds.parse().expect(SECONDS_VARIABLE));
    let within = Duration::from_secs(seconds.unwrap_or(SECONDS));
    let seed = if std::env::var_os(SEED_VARIABLE).is_some() { test.seed() } else { SEED };
    let seconds = within.as_secs();
    println!("{SEED_VARIABLE}={seed} {SECONDS_VARIABLE}={seconds} cargo test --test it chaos -- --nocapture");
    let mut run = Run::new(test, seed, within).await;
    let done = run.go_on(within).await;
    println!("{}", run.witness.story());
    done.unwrap_or_else(|wrong| panic!("{SEED_VARIABLE}={seed}: {wrong:#}"));
    run.clients.stop().await;
}

/// Writers end before the nodes do.
struct Run {
    clients: Clients,
    stage: Stage,
    witness: Arc<Witness>,
    random: Random,
    begun: Instant,
}

impl Run {
    async fn new(test: Test, seed: u64, within: Duration) -> Run {
        let mut random = Random::new(seed);
        let nodes = if within < FOUR_NODES_FROM { 3 } else { *random.pick(&[3, 4]) };
        let names = &["db1", "db2", "db3", "db4"][..nodes];
        let policy = *random.pick(&["any 1 (*)", "any 1 (*)", "any 1 (*)", "all"]);
        let level = *random.pick(&["on", "on", "remote_apply"]);
        let keys: Vec<&[&str]> = names
            .iter()
            .map(|_| *random.pick::<&[&str]>(&[&[], &["auto_rejoin"], &["auto_rejoin", "auto_reseed"]]))
            .collect();
        println!("{nodes} nodes, {policy} at {level}; {keys:?}");
        let begun = Instant::now();
        let stage = Stage::new(test, names, &keys, policy, begun).await;
        let witness = Arc::new(Witness::new(begun));
        let conninfos = stage.actors.iter().map(|actor| actor.node.cluster.conninfo()).collect();
        let clients = Clients::start(conninfos, level, &witness);
        Run { clients, stage, witness, random, begun }
    }

    async fn go_on(&mut self, within: Duration) -> anyhow::Result<()> {
        let end = self.begun + within;
        loop {
            self.round((Instant::now() + ROUND).min(end - MENDING)).await?;
            let primary = self.stage.settle().await?;
            self.stage.verify(primary, &self.clients, &self.witness).await?;
            self.stage.say(&self.witness.story());
            if Instant::now() + MENDING >= end {
                return Ok(());
            }
        }
    }

    async fn round(&mut self, end: Instant) -> anyhow::Result<()> {
        while Instant::now() < end {
            let world = self.stage.look().await?;
            self.witness.judge()?;
            let event = draw::draw(&mut self.random, &world);
            self.stage.carry_out(event).await?;
            sleep(Duration::from_millis(self.random.below(PACE_MILLISECONDS_MAX))).await;
        }
        Ok(())
    }
}
