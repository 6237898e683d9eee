//! A primary's PostgreSQL stops whatever commits wait for, and the standbys get its last record afterwards.

use std::time::{Duration, Instant};

use anyhow::ensure;
use rustix::process::Signal;
use walship::demo::StopMode;
use walship::demo::cluster::connect;
use walship::pg::control::ClusterState;
use walship::vitals::Contact;

use crate::ack::Three;
use crate::harness::{Node, eventually};

/// A stop that takes longer than this was kept waiting: it takes a fraction of a second by itself.
const STOP_WITHIN: Duration = Duration::from_secs(20);

const POLICIES: [&str; 5] = ["async", "any 1 (*)", "first 1 (db2, db3)", "chain (db2, db3)", "all"];

/// What the standbys are doing when the primary is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standbys {
    Up,
    Down,
    Frozen,
}

impl Three {
    async fn put(&mut self, standbys: Standbys) {
        for standby in [&mut self.db2, &mut self.db3] {
            match standbys {
                Standbys::Up => {}
                Standbys::Down => standby.sidecar.kill().await,
                Standbys::Frozen => standby.sidecar.signal(Signal::STOP),
            }
        }
    }

    async fn bring_back(&mut self, standbys: Standbys) {
        for standby in [&mut self.db2, &mut self.db3] {
            match standbys {
                Standbys::Up => {}
                Standbys::Down => standby.run().await,
                Standbys::Frozen => standby.sidecar.signal(Signal::CONT),
            }
        }
    }

    /// Stops the primary while the standbys are as they are, brings them back, and looks for its last record.
    async fn stop(&mut self, smart: bool, standbys: Standbys, policy: &str) {
        self.put(standbys).await;
        let conninfo = self.db1.cluster.conninfo();
        if !smart {
            // Some commits wait, which the stop ends.
            for _ in 0..3 {
                let client = connect(&conninfo).await.unwrap();
                tokio::spawn(async move { client.batch_execute("INSERT INTO t VALUES ('waits')").await });
            }
        }
        if standbys != Standbys::Up && !smart && policy != "async" {
            let query = "SELECT count(*) = 3 FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
            self.db1.cluster.wait_until(query, STOP_WITHIN).await.unwrap();
        }
        let begun = Instant::now();
        let stopping = async {
            if smart {
                stop_smartly(&self.db1).await
            } else {
                self.db1.cluster.stop(StopMode::Fast).await.unwrap()
            }
        };
        let stopped = tokio::time::timeout(STOP_WITHIN, stopping).await;
        assert!(stopped.is_ok(), "{policy}, standbys {standbys:?}: it does not stop");
        println!("{policy}, standbys {standbys:?}, smart {smart}: stopped in {:?}", begun.elapsed());
        let control = self.db1.control();
        assert_eq!(control.state, ClusterState::ShutDown);
        let checkpoint = control.checkpoint_lsn;
        let end = self.db1.status().await.unwrap().store.durable;
        assert!(end > checkpoint, "{end} is not past the shutdown checkpoint at {checkpoint}");
        self.bring_back(standbys).await;
        for standby in [&self.db2, &self.db3] {
            eventually(&format!("{} has the last record", standby.name()), async || {
                let durable = standby.status().await?.store.durable;
                ensure!(durable == end, "it has {durable} of {end}");
                Ok(())
            })
            .await;
        }
        self.db1.cluster.start().await.unwrap();
        // A PostgreSQL that is stopped before the sidecar is back waits for nobody, and proves nothing.
        eventually("the WAL is captured again", async || {
            let contact = self.db1.status().await?.primary.contact;
            ensure!(matches!(contact, Contact::Up { .. }), "{contact:?}");
            Ok(())
        })
        .await;
    }
}

pub async fn stop_smartly(node: &Node) {
    let mut stop = node.cluster.account().command(node.cluster.binaries().program("pg_ctl"));
    stop.args(["stop", "-m", "smart", "-t", "60", "-D"]).arg(node.cluster.data_directory());
    node.cluster.run(stop).await.unwrap();
}

async fn stops_under_every_policy(standbys: Standbys) {
    let mut three = Three::new().await;
    for policy in POLICIES {
        three.sync(policy).await;
        for smart in [false, true] {
            three.stop(smart, standbys, policy).await;
        }
    }
}

#[tokio::test]
async fn a_primary_stops_under_every_policy_while_standbys_follow() {
    stops_under_every_policy(Standbys::Up).await;
}

#[tokio::test]
async fn a_primary_stops_under_every_policy_while_standbys_are_down() {
    stops_under_every_policy(Standbys::Down).await;
}

#[tokio::test]
async fn a_primary_stops_under_every_policy_while_standbys_are_frozen() {
    stops_under_every_policy(Standbys::Frozen).await;
}
