//! Clients that write wherever they can: one beside each node, all the time, as if each believed that its node is the
//! primary.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use walship::demo::cluster::connect;

use super::witness::{Note, Witness};
use crate::harness::PATIENCE;

/// What they fill; rows are never changed.
pub const TABLE: &str =
    "CREATE TABLE chaos (writer int, serial bigint, payload text, PRIMARY KEY (writer, serial))";

/// Between two commits, between two looks at a standby, and after an error.
const PAUSE: Duration = Duration::from_millis(10);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A statement that takes longer is given up, with its connection, and never noted.
const STATEMENT_WITHIN: Duration = Duration::from_secs(15);

/// The writers; dropping it ends them.
pub struct Clients {
    may_write: watch::Sender<bool>,
    /// How many are at it.
    busy: watch::Sender<usize>,
    writers: JoinSet<()>,
}

/// One of them.
struct Writer {
    number: i32,
    conninfo: String,
    level: &'static str,
    next_serial: i64,
    may_write: watch::Receiver<bool>,
    busy: watch::Sender<usize>,
    witness: Arc<Witness>,
}

impl Clients {
    /// Starts a writer for each server.
    pub fn start(conninfos: Vec<String>, level: &'static str, witness: &Arc<Witness>) -> Clients {
        let (may_write, busy) = (watch::Sender::new(true), watch::Sender::new(0));
        let mut writers = JoinSet::new();
        for (number, conninfo) in (0..).zip(conninfos) {
            let (may_write, busy, witness) = (may_write.subscribe(), busy.clone(), Arc::clone(witness));
            let writer = Writer { number, conninfo, level, next_serial: 0, may_write, busy, witness };
            writers.spawn(writer.run());
        }
        Clients { may_write, busy, writers }
    }

    /// Has them pause. A statement that is on its way is waited for, as far as its server answers it.
    pub async fn pause(&self) {
        self.may_write.send_replace(false);
        let mut busy = self.busy.subscribe();
        // The sender is here, and each writer gives a statement up in time.
        let _ = busy.wait_for(|busy| *busy == 0).await;
    }

    /// Has them go on.
    pub fn go_on(&self) {
        self.may_write.send_replace(true);
    }

    /// Ends them, once each has ended its statement.
    pub async fn stop(self) {
        let Clients { may_write, mut writers, .. } = self;
        may_write.send_replace(false);
        // Who waits for the permission to go on ends with the one who gives it.
        drop(may_write);
        let ended = timeout(PATIENCE, async { while writers.join_next().await.is_some() {} });
        ended.await.expect("the writers end");
    }
}

impl Writer {
    async fn run(mut self) {
        while self.may_write.wait_for(|may| *may).await.is_ok() {
            self.busy.send_modify(|busy| *busy += 1);
            // An error is what the rest is made for, and said only when nothing is acknowledged where it should be.
            if let Err(error) = self.write().await {
                self.witness.failed(self.number, format!("{error:#}"));
            }
            self.busy.send_modify(|busy| *busy -= 1);
            sleep(LOOK_EVERY).await;
        }
    }

    /// Writes on one connection, until it breaks or the writers pause.
    async fn write(&mut self) -> anyhow::Result<()> {
        let client = timeout(STATEMENT_WITHIN, connect(&self.conninfo)).await??;
        let level = format!("SET synchronous_commit = {}", self.level);
        timeout(STATEMENT_WITHIN, client.batch_execute(&level)).await??;
        let insert = "INSERT INTO chaos VALUES ($1, $2::bigint, repeat(md5(($2::bigint)::text), 4)) RETURNING \
             pg_walfile_name(pg_current_wal_insert_lsn()), current_setting('synchronous_standby_names')";
        while *self.may_write.borrow() {
            let recovers = client.query_one("SELECT pg_is_in_recovery()", &[]);
            if timeout(STATEMENT_WITHIN, recovers).await??.get::<_, bool>(0) {
                sleep(LOOK_EVERY).await;
                continue;
            }
            let serial = self.next_serial;
            self.next_serial += 1;
            let begun = Instant::now();
            let row = timeout(STATEMENT_WITHIN, client.query_one(insert, &[&self.number, &serial])).await??;
            let timeline = row.get::<_, &str>(0).get(..8).context("a WAL file has a longer name")?;
            self.witness.note(Note {
                writer: self.number,
                serial,
                timeline: u32::from_str_radix(timeline, 16)?,
                is_protected: row.get::<_, &str>(1) == "walship",
                begun,
                acknowledged: Instant::now(),
            });
            sleep(PAUSE).await;
        }
        Ok(())
    }
}
