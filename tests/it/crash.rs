//! SIGKILL of any of a pair's four processes at random moments, under load: nothing acknowledged is lost, and the
//! standby and both stores end up equal.
//!
//! `WALSHIP_ROUNDS` sets the number of rounds, `WALSHIP_SEED` replays the choices of an earlier run; not its moments,
//! as what the processes are doing when they are killed is up to the machine.

use std::time::Duration;

use anyhow::ensure;
use walship::demo::{ClusterOptions, Random, StopMode, Workload, WorkloadOptions};
use walship::pg::control::ControlFile;
use walship::pg::{Lsn, SegmentSize};

use crate::harness::{Node, PATIENCE, Test, eventually};

const ROUNDS_VARIABLE: &str = "WALSHIP_ROUNDS";
const ROUNDS: u32 = 10;

/// Every so many rounds both sidecars are among the killed, and the stores are looked at as they were left.
const LOOK_EVERY: u32 = 4;

/// A stop that takes longer than this was kept waiting by a sidecar.
const STOP_WITHIN: Duration = Duration::from_secs(15);

/// What can be killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Process {
    PrimaryPostgres,
    PrimarySidecar,
    StandbyPostgres,
    StandbySidecar,
}

use Process::{PrimaryPostgres, PrimarySidecar, StandbyPostgres, StandbySidecar};

const PROCESSES: [Process; 4] = [PrimaryPostgres, PrimarySidecar, StandbyPostgres, StandbySidecar];

/// What a client does beside the writers in a round, so that there is more in the WAL than small commits.
const DISTURBANCES: [&str; 6] = [
    "SELECT 1",
    "CHECKPOINT",
    "SELECT pg_switch_wal()",
    "INSERT INTO bulk SELECT g, repeat(md5(g::text), 20) FROM generate_series(1, 5000) AS g",
    "DELETE FROM bulk WHERE number % 3 = 0; VACUUM bulk",
    "TRUNCATE bulk; CREATE INDEX ON bulk (number)",
];

/// A primary, a standby, and writers. Nodes are dropped before the test, whose folder they are in.
struct Crash {
    random: Random,
    workload: Workload,
    primary: Node,
    standby: Node,
    _test: Test,
}

impl Crash {
    async fn new(test: Test, seed: u64) -> Crash {
        println!("WALSHIP_SEED={seed}");
        // Frequent checkpoints: many full-page images, and a pg_wal that is recycled all the time.
        let options = ClusterOptions::default().set("min_wal_size", "4MB").set("max_wal_size", "8MB");
        let mut primary = Node::new(&test, "db1", options).await;
        primary.init().await;
        primary.start_primary().await;
        let conninfo = primary.cluster.conninfo();
        primary.cluster.sql("CREATE TABLE bulk (number int, text text)").await.unwrap();
        let load = WorkloadOptions {
            payload_bytes: 700,
            pause: Duration::from_millis(1),
            seed,
            ..WorkloadOptions::default()
        };
        let workload = Workload::start(&conninfo, &load).await.unwrap();
        let standby = test.standby("db2", &primary).await;
        Crash { random: Random::new(seed), workload, primary, standby, _test: test }
    }

    async fn rounds(mut self, rounds: u32) {
        for round in 1..=rounds {
            let before = self.workload.acknowledged();
            self.pause(1200).await;
            self.disturb();
            self.pause(300).await;
            let looks = round % LOOK_EVERY == 0;
            let victims = self.victims(looks);
            for &victim in &victims {
                self.kill(victim).await;
                self.pause(100).await;
            }
            if looks {
                compare_stores(&self.primary, &self.standby);
            }
            self.pause(500).await;
            let order = self.shuffled(victims.clone());
            println!("round {round}: {before} rows; killed {victims:?}, starting {order:?}");
            for (index, &victim) in order.iter().enumerate() {
                self.start(victim, &order[..index]).await;
                self.pause(200).await;
                if self.random.below(4) == 0 {
                    println!("round {round}: and {victim:?} again");
                    self.kill(victim).await;
                    self.start(victim, &[]).await;
                }
            }
            // The next crash may come while the standby still catches up.
            if looks || self.random.below(3) > 0 {
                let ledger = self.workload.ledger();
                self.replays(ledger.end_lsn()).await;
                if looks {
                    let up_to = Some(ledger.end_lsn());
                    ledger.verify(&self.standby.cluster.conninfo(), up_to).await.unwrap();
                }
            }
        }
        self.finish().await;
    }

    async fn pause(&mut self, milliseconds_max: u64) {
        tokio::time::sleep(Duration::from_millis(self.random.below(milliseconds_max))).await;
    }

    /// A client whose statement may well fail, as its server may be killed.
    fn disturb(&mut self) {
        let statement = *self.random.pick(&DISTURBANCES);
        let conninfo = self.primary.cluster.conninfo();
        tokio::spawn(async move {
            let client = walship::demo::cluster::connect(&conninfo).await?;
            for part in statement.split("; ") {
                client.batch_execute(part).await?;
            }
            anyhow::Ok(())
        });
    }

    /// One or more, in the order in which they are killed.
    fn victims(&mut self, both_sidecars: bool) -> Vec<Process> {
        let chosen = 1 + self.random.below(15);
        let is_victim = |index: usize, process: Process| {
            chosen & 1 << index != 0 || both_sidecars && [PrimarySidecar, StandbySidecar].contains(&process)
        };
        let victims =
            PROCESSES.into_iter().enumerate().filter(|(index, process)| is_victim(*index, *process));
        let victims = victims.map(|(_, process)| process).collect();
        self.shuffled(victims)
    }

    fn shuffled(&mut self, mut processes: Vec<Process>) -> Vec<Process> {
        for index in (1..processes.len()).rev() {
            processes.swap(index, self.random.below(index as u64 + 1) as usize);
        }
        processes
    }

    async fn kill(&mut self, process: Process) {
        match process {
            PrimaryPostgres => self.primary.cluster.kill().await.unwrap(),
            StandbyPostgres => self.standby.cluster.kill().await.unwrap(),
            PrimarySidecar => self.primary.sidecar.kill().await,
            StandbySidecar => self.standby.sidecar.kill().await,
        }
    }

    async fn start(&mut self, process: Process, started: &[Process]) {
        match process {
            PrimaryPostgres => self.primary.cluster.start().await.unwrap(),
            StandbyPostgres => {
                // A sidecar that finds its standby down starts it, and may be about to do so.
                if !started.contains(&StandbySidecar)
                    && let Err(error) = self.standby.cluster.start().await
                {
                    println!("somebody else starts it: {error:#}");
                }
                eventually("the standby's PostgreSQL answers", async || {
                    self.standby.cluster.sql("SELECT 1").await.map(drop)
                })
                .await;
            }
            PrimarySidecar => self.primary.sidecar.start(&["run"]),
            StandbySidecar => self.standby.sidecar.start(&["run"]),
        }
    }

    /// Waits until the standby has replayed up to `lsn`, at most.
    async fn replays(&self, lsn: Lsn) {
        let query =
            format!("SELECT coalesce(pg_last_wal_replay_lsn(), '0/0') >= '{lsn}', pg_last_wal_replay_lsn()");
        let what = format!("the standby has replayed {lsn}");
        let replayed = walship::demo::wait::until(&what, PATIENCE, async || {
            let answer = self.standby.cluster.value(&query).await?;
            ensure!(answer.starts_with("t|"), "it has replayed {answer}");
            Ok(())
        });
        if let Err(error) = replayed.await {
            for node in [&self.primary, &self.standby] {
                println!("--- status of {}\n{:?}", node.name(), node.walship(&["status"]).await);
            }
            panic!("{error:#}");
        }
    }

    /// Ends the load and then everything in order, and checks it all.
    async fn finish(mut self) {
        self.replays(self.workload.ledger().end_lsn()).await;
        let ledger = self.workload.stop().await;
        // Some acknowledged positions are those of records that nothing has flushed yet.
        self.primary.cluster.sql("CHECKPOINT").await.unwrap();
        assert!(self.standby.equals(&self.primary).await >= ledger.notes().len() as u64);
        ledger.verify(&self.primary.cluster.conninfo(), None).await.unwrap();

        let stopped = tokio::time::timeout(STOP_WITHIN, self.primary.cluster.stop(StopMode::Fast));
        stopped.await.expect("a sidecar keeps PostgreSQL from stopping").unwrap();
        let control = ControlFile::read(&self.primary.cluster.data_directory()).unwrap();
        eventually("both stores have the shutdown checkpoint", async || {
            let ends =
                [self.primary.status().await?.store.durable, self.standby.status().await?.store.durable];
            ensure!(
                ends[0] == ends[1] && ends[0] > control.redo_lsn,
                "{ends:?}, it is at {}",
                control.redo_lsn
            );
            Ok(())
        })
        .await;
        for node in [&mut self.primary, &mut self.standby] {
            assert_eq!(node.sidecar.terminate().await.code(), Some(0), "{}", node.name());
        }
        compare_stores(&self.primary, &self.standby);
    }
}

/// Checks the stores of two sidecars that are not running, and the primary's against its PostgreSQL's files.
fn compare_stores(primary: &Node, standby: &Node) {
    let (from, to) = (end_of_whole_store(primary), end_of_whole_store(standby));
    assert!(to <= from, "the standby's store ends at {to:?}, beyond the primary's at {from:?}");
    standby.same_content_as(primary);
    let files = primary.cluster.data_directory().join("pg_wal");
    for (name, segment) in primary.content() {
        // Most are recycled; what is there was written before it was streamed.
        if let Ok(file) = std::fs::read(files.join(&name)) {
            assert!(file[..segment.wal.len()] == segment.wal[..], "{name} differs from PostgreSQL's");
        }
    }
}

/// Checks that a store has no gap, and that all but its last segment are sealed; its last segment and how much of it.
fn end_of_whole_store(node: &Node) -> (String, usize) {
    let content = node.content();
    let names: Vec<&String> = content.keys().collect();
    let size = SegmentSize::new(1 << 20).unwrap();
    let numbers: Vec<_> = names.iter().map(|name| size.parse_file_name(name).unwrap().1).collect();
    assert!(numbers.windows(2).all(|two| two[0].next() == two[1]), "{} has a gap: {names:?}", node.name());
    let (last, before) = names.split_last().expect("a store with WAL");
    assert!(before.iter().all(|name| content[*name].sealed), "{} is not sealed below {last}", node.name());
    ((*last).clone(), content[*last].wal.len())
}

#[tokio::test]
async fn kills_at_random_moments_lose_nothing() {
    let rounds = std::env::var(ROUNDS_VARIABLE).ok().map(|rounds| rounds.parse().expect(ROUNDS_VARIABLE));
    let test = Test::new();
    let seed = test.seed();
    Crash::new(test, seed).await.rounds(rounds.unwrap_or(ROUNDS)).await;
}

#[tokio::test]
async fn a_run_is_replayed_by_its_seed() {
    Crash::new(Test::new(), 7).await.rounds(2).await;
}
