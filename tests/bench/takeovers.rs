//! A standby takes over: from the command to the first row that a client gets in, who asks for nothing else all the time.

use std::time::Instant;

use tokio_postgres::Client;
use walship::demo::{Cluster, StopMode};
use walship::report::Role;

use crate::Effort;
use crate::harness::{PATIENCE, PROMOTE};
use crate::pairs::{Pairs, native_standby, pgbench};
use crate::table::Table;

/// What is written before, so that there are pages for a shutdown checkpoint.
const TRANSACTIONS: [&str; 6] = ["-n", "-N", "-c", "4", "-t", "2000"];

/// The client's table. It says nothing of its failures in PostgreSQL's log, of which there are thousands.
const PREPARE: &str = "CREATE TABLE IF NOT EXISTS walship_first_write (taken_at timestamptz)";
const QUIETLY: &str = "SET log_min_messages = 'panic'; SET log_min_error_statement = 'panic'";
const INSERT: &str = "INSERT INTO walship_first_write VALUES (now())";

/// Measures the loss of the primary, and the handing over, side by side; on each side the first two nodes change places
/// with every turn.
pub async fn measure(pairs: &mut Pairs, effort: Effort, table: &mut Table) {
    for is_lost in [true, false] {
        let (mut native, mut walship) = (Vec::new(), Vec::new());
        for round in 0..effort.rounds {
            for turn in 0..2 {
                match (round + turn) % 2 {
                    0 => native.push(by_hand(pairs, is_lost).await),
                    _ => walship.push(by_walship(pairs, is_lost).await),
                }
            }
        }
        let what = if is_lost {
            "first write after `promote`, the primary killed, against pg_ctl promote"
        } else {
            "first write after `switchover`, against pg_ctl stop and pg_ctl promote"
        };
        println!("{what}, one by one: {native:.2?}, {walship:.2?}");
        table.add(what, "s", &native, &walship);
    }
}

/// PostgreSQL's own standby. The old primary is copied anew afterwards.
async fn by_hand(pairs: &mut Pairs, is_lost: bool) -> f64 {
    let (old, new) = (&pairs.native, &pairs.native_standbys[0]);
    write(old, new).await;
    let mut client = Writer::of(new).await;
    if is_lost {
        old.kill().await.unwrap();
    }
    let began = Instant::now();
    let command = async {
        if !is_lost {
            old.stop(StopMode::Fast).await.unwrap();
        }
        new.promote().await.unwrap();
    };
    let ((), first) = tokio::join!(command, client.first_write(new));
    std::fs::remove_dir_all(old.data_directory()).unwrap();
    native_standby(old, "native", new).await;
    std::mem::swap(&mut pairs.native, &mut pairs.native_standbys[0]);
    first.duration_since(began).as_secs_f64()
}

/// walship's. The old primary follows afterwards: by itself when it handed over.
async fn by_walship(pairs: &mut Pairs, is_lost: bool) -> f64 {
    let (old, new) = (&mut pairs.primary, &pairs.standbys[0]);
    write(&old.cluster, &new.cluster).await;
    new.knows(&["db1", "db2", "db3"]).await;
    let mut client = Writer::of(&new.cluster).await;
    if is_lost {
        old.dies().await;
        old.sidecar.expect_log("this node was superseded");
    }
    let switchover = ["switchover", "--to", new.name()];
    let command = if is_lost { &PROMOTE } else { &switchover };
    let began = Instant::now();
    let (done, first) = tokio::join!(new.walship(command), client.first_write(&new.cluster));
    done.succeeded();
    if is_lost {
        old.run().await;
        old.is(Role::Superseded).await;
        old.walship(&["rejoin"]).await.succeeded();
    }
    old.is(Role::Standby).await;
    for standby in [&*old, &pairs.standbys[1]] {
        standby.follows(new).await;
    }
    std::mem::swap(&mut pairs.primary, &mut pairs.standbys[0]);
    first.duration_since(began).as_secs_f64()
}

/// Writes, and waits until the standby shows it all.
async fn write(primary: &Cluster, standby: &Cluster) {
    primary.sql(PREPARE).await.unwrap();
    primary.run(pgbench(primary, &TRANSACTIONS)).await.unwrap();
    let written = primary.value("SELECT pg_current_wal_flush_lsn()").await.unwrap();
    let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
    standby.wait_until(&replayed, PATIENCE).await.unwrap();
}

/// A client of one connection.
struct Writer(Client);

impl Writer {
    /// Connects it.
    async fn of(cluster: &Cluster) -> Writer {
        let client = cluster.connect().await.unwrap();
        client.batch_execute(QUIETLY).await.unwrap();
        Writer(client)
    }

    /// Asks for one row without a pause until it is in: when that was.
    async fn first_write(&mut self, cluster: &Cluster) -> Instant {
        let began = Instant::now();
        while let Err(error) = self.0.batch_execute(INSERT).await {
            assert!(began.elapsed() < PATIENCE, "{error:?}");
            if self.0.is_closed() {
                *self = Writer::of(cluster).await;
            }
        }
        Instant::now()
    }
}
