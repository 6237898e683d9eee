//! What clients were promised: writers that note each row whose commit was acknowledged to them, and the check that a
//! server still has them all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;

use super::Random;
use super::cluster::connect;
use crate::pg::Lsn;

/// The table that the writers fill. Its rows are a function of seed, client and serial, so nothing but numbers needs
/// to be noted.
const TABLE: &str = "walship_ledger";

/// How long a writer waits before it connects again after an error.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// How long one statement may take before the connection is given up: its server may be stopped or cut off.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Rows that are named in an error; the rest is counted.
const NAMED_ROWS_MAX: usize = 5;

/// How the writers write.
#[derive(Clone, Debug)]
pub struct WorkloadOptions {
    /// Connections that write at the same time.
    pub clients: u32,
    /// Bytes of text in each row, one row per commit.
    pub payload_bytes: usize,
    /// What each client waits between two commits.
    pub pause: Duration,
    /// Where the texts come from.
    pub seed: u64,
}

impl Default for WorkloadOptions {
    fn default() -> WorkloadOptions {
        WorkloadOptions { clients: 4, payload_bytes: 200, pause: Duration::ZERO, seed: 1 }
    }
}

/// A row that a client was told is committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Note {
    /// Which client wrote it.
    pub client: u32,
    /// Its number among that client's rows.
    pub serial: u64,
    /// A WAL position at or after the end of its commit record; `None` when the server went before it said so.
    pub lsn: Option<Lsn>,
}

/// What was acknowledged.
#[derive(Clone, Debug)]
pub struct Ledger {
    seed: u64,
    payload_bytes: usize,
    notes: Vec<Note>,
}

/// What a check found; what must not be is an error instead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verified {
    /// Noted rows that are there and equal.
    pub present: usize,
    /// Noted rows beyond the position asked for, or at an unknown one, that are not there.
    pub lost_beyond: usize,
}

/// Writers at work; dropping it stops them.
#[derive(Debug)]
pub struct Workload {
    ledger: Arc<Mutex<Ledger>>,
    conninfo: watch::Sender<String>,
    stop: CancellationToken,
    clients: JoinSet<()>,
}

impl Workload {
    /// Makes the table and starts the writers.
    pub async fn start(conninfo: &str, options: &WorkloadOptions) -> anyhow::Result<Workload> {
        let create = format!(
            "CREATE TABLE IF NOT EXISTS {TABLE} \
             (client bigint, serial bigint, payload text NOT NULL, PRIMARY KEY (client, serial))"
        );
        connect(conninfo).await?.batch_execute(&create).await.context("make the ledger's table")?;
        let ledger = Ledger { seed: options.seed, payload_bytes: options.payload_bytes, notes: Vec::new() };
        let ledger = Arc::new(Mutex::new(ledger));
        let (conninfo, stop) = (watch::Sender::new(conninfo.to_owned()), CancellationToken::new());
        let mut clients = JoinSet::new();
        for client in 0..options.clients {
            let writer = Writer {
                client,
                next_serial: 0,
                options: options.clone(),
                ledger: ledger.clone(),
                conninfo: conninfo.subscribe(),
                stop: stop.clone(),
            };
            clients.spawn(writer.run());
        }
        Ok(Workload { ledger, conninfo, stop, clients })
    }

    /// Sends the writers to another server, once their connections to this one end.
    pub fn redirect(&self, conninfo: &str) {
        self.conninfo.send_replace(conninfo.to_owned());
    }

    /// How many commits were acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).notes.len()
    }

    /// What was acknowledged so far.
    pub fn ledger(&self) -> Ledger {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets each writer finish its statement, and returns all that was acknowledged.
    pub async fn stop(mut self) -> Ledger {
        self.stop.cancel();
        while self.clients.join_next().await.is_some() {}
        self.ledger()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// One client.
struct Writer {
    client: u32,
    next_serial: u64,
    options: WorkloadOptions,
    ledger: Arc<Mutex<Ledger>>,
    conninfo: watch::Receiver<String>,
    stop: CancellationToken,
}

impl Writer {
    /// Writes until told to stop, through every loss of its connection. A row whose commit was not answered may be
    /// there or not; it is not noted, and its number is not used again.
    async fn run(mut self) {
        while !self.stop.is_cancelled() {
            // An error is what faults are made for; a server that stays away shows in the number of notes.
            if self.write().await.is_err() {
                tokio::time::sleep(RETRY_DELAY).await;
            }
        }
    }

    async fn write(&mut self) -> anyhow::Result<()> {
        let conninfo = self.conninfo.borrow_and_update().clone();
        let client = tokio::time::timeout(STATEMENT_TIMEOUT, connect(&conninfo)).await??;
        let insert = format!("INSERT INTO {TABLE} VALUES ($1, $2, $3)");
        let insert = client.prepare(&insert).await?;
        while !self.stop.is_cancelled() && !self.conninfo.has_changed().unwrap_or(false) {
            let serial = self.next_serial;
            self.next_serial += 1;
            let payload = payload(self.options.seed, self.client, serial, self.options.payload_bytes);
            let (owner, number) = (i64::from(self.client), serial as i64);
            let row: [&(dyn ToSql + Sync); 3] = [&owner, &number, &payload];
            tokio::time::timeout(STATEMENT_TIMEOUT, client.execute(&insert, &row)).await??;
            // At once: the promise was made, whatever becomes of the next question.
            let noted = self.note(serial);
            // Where the WAL's insertion stands is at or after this commit also when it was not waited for.
            let position = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]);
            let row = tokio::time::timeout(STATEMENT_TIMEOUT, position).await??;
            self.note_position(noted, row.get::<_, &str>(0).parse()?);
            if !self.options.pause.is_zero() {
                tokio::time::sleep(self.options.pause).await;
            }
        }
        Ok(())
    }

    /// Notes an acknowledged row; at which place.
    fn note(&self, serial: u64) -> usize {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.notes.push(Note { client: self.client, serial, lsn: None });
        ledger.notes.len() - 1
    }

    fn note_position(&self, place: usize, lsn: Lsn) {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(note) = ledger.notes.get_mut(place) {
            note.lsn = Some(lsn);
        }
    }
}

impl Ledger {
    /// The notes, in the order of the acknowledgements.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// The highest position noted; what a standby must reach to have every row whose position is known.
    pub fn end_lsn(&self) -> Lsn {
        self.notes.iter().filter_map(|note| note.lsn).max().unwrap_or(Lsn::INVALID)
    }

    /// Checks that a server has every noted row whose position is known to be at or below `up_to` (all, if there is
    /// none), and that every row it has is as its client wrote it. An error names rows.
    pub async fn verify(&self, conninfo: &str, up_to: Option<Lsn>) -> anyhow::Result<Verified> {
        let client = connect(conninfo).await?;
        let select = format!("SELECT client, serial, payload FROM {TABLE}");
        let rows = client.query(&select, &[]).await.context("read the ledger's table")?;
        let mut payloads = HashMap::with_capacity(rows.len());
        for row in &rows {
            payloads.insert((row.get::<_, i64>(0), row.get::<_, i64>(1)), row.get::<_, &str>(2));
        }
        let (mut missing, mut verified) = (Vec::new(), Verified { present: 0, lost_beyond: 0 });
        for note in &self.notes {
            match payloads.contains_key(&(i64::from(note.client), note.serial as i64)) {
                true => verified.present += 1,
                false if up_to.is_some_and(|up_to| note.lsn.is_none_or(|lsn| lsn > up_to)) => {
                    verified.lost_beyond += 1
                }
                false => missing.push((note.client, note.serial, note.lsn)),
            }
        }
        if !missing.is_empty() {
            let named = &missing[..missing.len().min(NAMED_ROWS_MAX)];
            bail!(
                "{} of {} acknowledged rows are missing, such as (client, serial, LSN) {named:?}",
                missing.len(),
                self.notes.len()
            );
        }
        for ((owner, serial), found) in payloads {
            let written =
                payload(self.seed, u32::try_from(owner)?, u64::try_from(serial)?, self.payload_bytes);
            ensure!(
                found == written,
                "row {serial} of client {owner} is {found:?}, and {written:?} was written"
            );
        }
        Ok(verified)
    }
}

/// The text of a row: half of it hard to compress, half easy, as data is.
fn payload(seed: u64, client: u32, serial: u64, bytes: usize) -> String {
    let row = u64::from(client).rotate_left(32) ^ serial.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut random = Random::new(seed ^ row);
    let mut text = String::with_capacity(bytes + 16);
    while text.len() < bytes / 2 {
        text.push_str(&format!("{:016x}", random.number()));
    }
    while text.len() < bytes {
        text.push_str(" acknowledged");
    }
    text.truncate(bytes);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_have_their_size_and_differ() {
        for bytes in [0, 1, 33, 200] {
            assert_eq!(payload(1, 2, 3, bytes).len(), bytes);
        }
        assert_ne!(payload(1, 2, 3, 40), payload(1, 2, 4, 40));
        assert_ne!(payload(1, 2, 3, 40), payload(1, 3, 3, 40));
        assert_ne!(payload(1, 2, 3, 40), payload(2, 2, 3, 40));
        assert_eq!(payload(1, 2, 3, 40), payload(1, 2, 3, 40));
    }
}
