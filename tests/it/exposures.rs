//! Commits that go on unprotected past the stall limit, and the log of them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::Signal;
use tokio::task::JoinHandle;
use walship::clock::WallTime;
use walship::demo::cluster::connect;
use walship::demo::{Ledger, Proxy, Workload, WorkloadOptions};
use walship::pg::control::ClusterState;
use walship::pg::{Level, Lsn};
use walship::store::{Exposure, Exposures};

use crate::ack::Three;
use crate::harness::{Disk, Node, PATIENCE, Test, eventually, ran_with_own_mounts};
use crate::stop::stop_smartly;

const LIMIT: Duration = Duration::from_millis(1000);

/// A primary and one standby behind a network, and commits that wait for it for a second.
pub struct Pair {
    pub db1: Node,
    pub db2: Node,
    proxy: Proxy,
    disk: Option<Disk>,
    _test: Test,
}

/// What happens to the standby.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    Frozen,
    Cut,
    Stalled,
    Killed,
    Full,
}

impl Pair {
    pub async fn new(disk_bytes: Option<u64>) -> Pair {
        let test = Test::new();
        let mut db1 = Node::new(&test, "db1", Default::default()).await;
        let proxy = Proxy::start(db1.listen()).await.unwrap();
        db1.advertise = proxy.address();
        db1.init().await;
        db1.start_primary().await;
        let disk =
            disk_bytes.map(|bytes| Disk::mount(&test.folder().join("db2/store"), bytes, &test.account));
        let db2 = test.standby("db2", &db1).await;
        db1.cluster.sql("CREATE TABLE t (a text)").await.unwrap();
        db1.walship(&["sync", "any 1 (*)", "--stall-limit", "1s"]).await.succeeded();
        db1.sidecar.expect_log("commits go on unprotected");
        Pair { db1, db2, proxy, disk, _test: test }
    }

    pub async fn break_it(&mut self, fault: Fault) {
        match fault {
            Fault::Frozen => self.db2.sidecar.signal(Signal::STOP),
            Fault::Cut => self.proxy.cut(),
            Fault::Stalled => self.proxy.stall(),
            Fault::Killed => self.db2.dies().await,
            Fault::Full => {
                self.db2.sidecar.expect_log("can't be written");
                self.db2.sidecar.expect_log("lag in seconds begins anew");
                self.disk.as_ref().unwrap().fill();
                // Blocks that a file has got already may still take some.
                let bulk = "INSERT INTO t SELECT repeat(md5(a::text), 30) FROM generate_series(1, 3000) AS a";
                self.db1.cluster.sql(&format!("SET synchronous_commit = local; {bulk}")).await.unwrap();
            }
        }
    }

    pub async fn mend(&mut self, fault: Fault) {
        match fault {
            Fault::Frozen => self.db2.sidecar.signal(Signal::CONT),
            Fault::Cut | Fault::Stalled => self.proxy.heal(),
            Fault::Killed => self.db2.run().await,
            Fault::Full => self.disk.as_ref().unwrap().free(),
        }
    }

    /// Starts the primary's sidecar anew, with a failure point.
    pub async fn restart_with(&mut self, failpoint: &str) {
        self.db1.sidecar.terminate().await;
        self.db1.runs_with(failpoint).await;
        self.db1.captures().await;
    }

    /// What the log has now: what is in the file, not what the sidecar believes.
    pub fn log(&self) -> Exposures {
        read(&self.db1.store())
    }

    /// One commit that is acknowledged.
    pub async fn commit(&self, level: &str) {
        let client = connect(&self.db1.cluster.conninfo()).await.unwrap();
        client.batch_execute(&format!("SET synchronous_commit = {level}")).await.unwrap();
        let insert = client.batch_execute("INSERT INTO t VALUES ('x')");
        tokio::time::timeout(PATIENCE, insert).await.expect("it is acknowledged").unwrap();
    }

    /// One that is being committed.
    pub async fn begin(&self) -> JoinHandle<()> {
        let client = connect(&self.db1.cluster.conninfo()).await.unwrap();
        tokio::spawn(async move {
            // Its connection may be cut by a stop.
            let _ = client.batch_execute("INSERT INTO t VALUES ('x')").await;
        })
    }

    /// Waits until so many commits wait.
    async fn wait_for_waiters(&self, count: u32) {
        let query = format!("SELECT count(*) = {count} FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
        self.db1.cluster.wait_until(&query, PATIENCE).await.unwrap();
    }

    /// Waits until nothing is unprotected any more; the window that was closed.
    pub async fn closed(&self, number: u64) -> Exposure {
        eventually(&format!("exposure {number} is closed"), async || {
            let window = self.log().windows.into_iter().find(|window| window.number == number);
            let window = window.context("it is not there")?;
            ensure!(window.closed.is_some(), "it is open: {window:?}");
            let status = self.db1.status().await?;
            ensure!(status.commits.context("no commits")?.exposure.is_none(), "the status has it still");
            Ok(window)
        })
        .await
    }

    /// A fault and its end: what commits do, and what is said of them.
    async fn goes_through(&mut self, fault: Fault, number: u64) {
        self.commit("on").await;
        assert_eq!(self.log().windows.len() as u64, number - 1, "before {fault:?}");
        self.break_it(fault).await;
        // The limit, from a commit that begins behind the fault.
        let begun = WallTime::now();
        self.commit("on").await;
        let log = self.log();
        let window = log.open().expect("the window is in the log before the first commit is released");
        assert_eq!((window.number, window.policy.as_str()), (number, "any 1 (*)"));
        assert!(window.missing.len() == 1 && window.missing[0].starts_with("db2 ("), "{window:?}");
        let waited = window.opened_at.seconds_since(begun);
        assert!(waited >= LIMIT.as_secs_f64(), "{fault:?}: it opened after {waited} s");
        // From then on nobody waits.
        let options = WorkloadOptions { clients: 2, ..WorkloadOptions::default() };
        let workload = Workload::start(&self.db1.cluster.conninfo(), &options).await.unwrap();
        acknowledges(&workload, 100).await;
        self.is_critical(number).await;
        let ledger = workload.stop().await;
        let answers = !matches!(fault, Fault::Frozen | Fault::Killed);
        let held = if answers { Some(self.db2.status().await.unwrap().store.durable) } else { None };
        self.db1.cluster.sql("SET synchronous_commit = local; CHECKPOINT").await.unwrap();
        self.mend(fault).await;
        let window = self.closed(number).await;
        check(&window, &ledger, held);
        self.db1.walship(&["lag", "--crit", "64GiB,30m"]).await.succeeded();
        // Protected again.
        self.commit("remote_apply").await;
        assert!(self.log().open().is_none());
        self.db2.follows(&self.db1).await;
        ledger.verify(&self.db2.cluster.conninfo(), None).await.unwrap();
    }

    async fn is_critical(&self, number: u64) {
        let said = "commits are unprotected for ";
        let status = self.db1.walship(&["status"]).await.succeeded();
        assert!(status.contains(&format!("critical: {said}")), "{status}");
        let lag = self.db1.walship(&["lag", "--crit", "64GiB,30m"]).await.exited_with(2).stdout;
        assert!(lag.starts_with("WALSHIP CRITICAL - ") && lag.contains(said), "{lag}");
        let check = self.db1.walship(&["check"]).await.exited_with(2).stdout;
        assert!(check.contains(said), "{check}");
        let metrics = self.db1.walship(&["lag", "--format", "prometheus"]).await.stdout;
        assert!(metrics.contains("walship_alarms 1"), "{metrics}");
        let list = self.db1.walship(&["exposures"]).await.succeeded();
        assert!(
            list.contains(&format!("{number}  open since ")) && list.contains("missing: db2 ("),
            "{list}"
        );
    }
}

fn read(store: &Path) -> Exposures {
    Exposures::read(store).unwrap()
}

async fn acknowledges(workload: &Workload, more: usize) {
    let before = workload.acknowledged();
    eventually(&format!("{more} more commits"), async || {
        let now = workload.acknowledged() - before;
        ensure!(now >= more, "only {now}");
        Ok(())
    })
    .await;
}

/// Checks that a window is what the ledger saw: it holds every commit that the standby did not have, and it begins where
/// the standby was.
fn check(window: &Exposure, ledger: &Ledger, held: Option<Lsn>) {
    let closed = window.closed.as_ref().unwrap();
    assert_eq!(closed.bytes, closed.to_lsn.bytes_since(window.from_lsn));
    assert!(closed.at >= window.opened_at && closed.reason == "all have caught up", "{window:?}");
    let inside =
        ledger.notes().iter().filter(|note| note.lsn.is_some_and(|lsn| lsn > window.from_lsn)).count();
    let beyond = ledger.notes().iter().filter(|note| note.lsn.is_some_and(|lsn| lsn > closed.to_lsn)).count();
    assert!(inside >= 100 && beyond == 0, "{inside} inside, {beyond} beyond {window:?}");
    if let Some(held) = held {
        assert!(window.from_lsn <= held, "it begins at {}, and the standby had {held}", window.from_lsn);
    }
}

#[tokio::test]
async fn past_the_limit_commits_go_on_and_the_log_has_them() {
    let mut pair = Pair::new(None).await;
    for (number, fault) in (1..).zip([Fault::Frozen, Fault::Cut, Fault::Stalled, Fault::Killed]) {
        pair.goes_through(fault, number).await;
    }
    let json = pair.db1.walship(&["exposures", "--format", "json"]).await.succeeded();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let windows = json["exposures"].as_array().unwrap();
    assert_eq!(windows.len(), 4);
    assert!(windows.iter().all(|window| window["bytes"].as_u64().unwrap() > 0), "{windows:?}");
}

#[tokio::test]
async fn past_the_limit_commits_go_on_while_the_standbys_disk_is_full() {
    if ran_with_own_mounts() {
        return;
    }
    let mut pair = Pair::new(Some(32 << 20)).await;
    pair.goes_through(Fault::Full, 1).await;
}

#[tokio::test]
async fn nothing_is_released_that_the_log_does_not_have() {
    let mut pair = Pair::new(None).await;
    pair.restart_with("exposures.write=fail").await;
    pair.db1.sidecar.expect_log("as the exposure log can't be written");
    pair.db1.sidecar.expect_log("what this node must not forget can't be noted");
    pair.break_it(Fault::Frozen).await;
    let client = connect(&pair.db1.cluster.conninfo()).await.unwrap();
    let commit = tokio::spawn(async move { client.batch_execute("INSERT INTO t VALUES ('x')").await });
    // Twice: it was tried again, and nothing went out in between.
    eventually("it was tried twice to write the log", async || {
        let tries = pair.db1.sidecar.log().entries();
        let tries =
            tries.iter().filter(|entry| entry.contains("as the exposure log can't be written")).count();
        ensure!(tries >= 2, "{tries}");
        Ok(())
    })
    .await;
    assert!(!commit.is_finished() && pair.log().windows.is_empty());
    pair.db1.sidecar.terminate().await;
    pair.db1.runs_with("").await;
    tokio::time::timeout(PATIENCE, commit).await.unwrap().unwrap().unwrap();
    assert!(pair.log().open().is_some());
    pair.mend(Fault::Frozen).await;
    pair.closed(1).await;
}

#[tokio::test]
async fn a_primary_that_nobody_waits_on_opens_nothing() {
    let mut pair = Pair::new(None).await;
    pair.db1.walship(&["sync", "any 1 (*)", "--stall-limit", "200ms"]).await.succeeded();
    pair.break_it(Fault::Cut).await;
    // WAL that nobody waits for, for many times the limit.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        let local = "SET synchronous_commit = local; INSERT INTO t VALUES ('x'); CHECKPOINT";
        pair.db1.cluster.sql(local).await.unwrap();
    }
    assert_eq!(pair.log(), Exposures::default());
    let begun = WallTime::now();
    pair.commit("on").await;
    let waited = pair.log().open().unwrap().opened_at.seconds_since(begun);
    assert!(waited >= 0.2, "the clock is that of the commit, and it opened after {waited} s");
    pair.mend(Fault::Cut).await;
    pair.closed(1).await;
}

#[tokio::test]
async fn without_a_limit_commits_wait_until_one_is_forced() {
    let mut pair = Pair::new(None).await;
    pair.db1.sidecar.expect_log("a weaker policy was forced without a quorum");
    // Stricter, so at once, and as well when the first quorum is there.
    pair.db1.walship(&["sync", "any 1 (*)", "--stall-limit", "never"]).await.succeeded();
    pair.break_it(Fault::Cut).await;
    let commit = pair.begin().await;
    pair.wait_for_waiters(1).await;
    let limit = ["sync", "any 1 (*)", "--stall-limit", "200ms"];
    let said = pair.db1.walship(&limit).await.exited_with(4).stderr;
    assert!(said.contains("weaker than the policy before") && said.contains("--force"), "{said}");
    pair.wait_for_waiters(1).await;
    let said = pair.db1.walship(&[&limit[..], &["--force"]].concat()).await.succeeded();
    assert!(said.contains("not known to db2"), "{said}");
    tokio::time::timeout(PATIENCE, commit).await.unwrap().unwrap();
    // One for the change, one for the limit.
    assert_eq!(pair.log().open().map(|window| window.number), Some(2));
    pair.mend(Fault::Cut).await;
    pair.closed(2).await;
}

#[tokio::test]
async fn a_primary_stops_while_its_commits_are_unprotected_and_while_they_still_wait() {
    let mut pair = Pair::new(None).await;
    for (limit, smart, windows) in [("1h", false, 0), ("500ms", false, 1), ("500ms", true, 2)] {
        pair.db1.walship(&["sync", "any 1 (*)", "--stall-limit", limit]).await.succeeded();
        pair.break_it(Fault::Frozen).await;
        let commit = pair.begin().await;
        if windows == 0 {
            pair.wait_for_waiters(1).await;
        } else {
            tokio::time::timeout(PATIENCE, commit).await.unwrap().unwrap();
            assert!(pair.log().open().is_some());
        }
        let stopping = async { if smart { stop_smartly(&pair.db1).await } else { pair.db1.stops().await } };
        tokio::time::timeout(PATIENCE, stopping).await.expect("it stops");
        assert_eq!(pair.db1.control().state, ClusterState::ShutDown);
        let end = pair.db1.status().await.unwrap().store.durable;
        pair.mend(Fault::Frozen).await;
        eventually("the standby has the last record", async || {
            let durable = pair.db2.status().await?.store.durable;
            ensure!(durable == end, "it has {durable} of {end}");
            Ok(())
        })
        .await;
        if windows > 0 {
            pair.closed(windows).await;
        }
        assert_eq!(pair.log().windows.len() as u64, windows);
        pair.db1.cluster.start().await.unwrap();
        pair.db1.captures().await;
    }
}

#[tokio::test]
async fn a_damaged_log_is_named_and_can_be_moved_away() {
    let mut pair = Pair::new(None).await;
    pair.break_it(Fault::Cut).await;
    pair.commit("on").await;
    pair.db1.sidecar.terminate().await;
    let path = pair.db1.store().join("walship.exposures");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("any 1", "any 9")).unwrap();
    for command in ["exposures", "run"] {
        let texts = ["walship.exposures is damaged", "checksum", "Move that file away"];
        pair.db1.walship(&[command]).await.failed(1, &texts);
    }
    std::fs::remove_file(&path).unwrap();
    pair.db1.run().await;
    assert_eq!(pair.db1.walship(&["exposures"]).await.succeeded(), "no commit went on unprotected\n");
}

#[tokio::test]
async fn a_replay_that_stands_still_ends_protection_only_for_those_who_wait_for_it() {
    let mut three = Three::new().await;
    three.db1.sidecar.expect_log("commits go on unprotected");
    three.db1.walship(&["sync", "all", "--stall-limit", "500ms"]).await.succeeded();
    three.hold("db3", Level::Apply).await;
    let options = WorkloadOptions { clients: 2, ..WorkloadOptions::default() };
    let workload = Workload::start(&three.db1.cluster.conninfo(), &options).await.unwrap();
    // For far longer than the limit: these wait for the fsync alone, again and again.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        acknowledges(&workload, 10).await;
    }
    assert!(read(&three.db1.store()).windows.is_empty(), "nobody waits for the replay");
    let begun = WallTime::now();
    three.commit("remote_apply").await.ends("past the limit").await;
    workload.stop().await;
    let log = read(&three.db1.store());
    let window = log.open().unwrap();
    assert!(window.apply_is_used && window.reason.contains("replayed"), "{window:?}");
    assert!(window.opened_at.seconds_since(begun) >= 0.5, "{window:?}");
    assert!(window.missing.len() == 1 && window.missing[0].starts_with("db3 ("), "{window:?}");
    three.let_go("db3", Level::Apply).await;
    eventually("it is closed", async || {
        ensure!(read(&three.db1.store()).open().is_none());
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_weaker_policy_can_be_forced_and_that_is_on_record() {
    let mut three = Three::new().await;
    three.db1.sidecar.expect_log("a weaker policy was forced without a quorum");
    three.sync("all").await;
    three.hold("db2", Level::Write).await;
    three.hold("db3", Level::Write).await;
    let commit = three.commit("on").await;
    let lsn = three.waits(&commit).await;
    let said = three.db1.walship(&["sync", "any 1 (*)", "--force"]).await.succeeded();
    for text in ["policy 3 is in effect", "It is not known to db2, db3", "Recorded as exposure 1"] {
        assert!(said.contains(text), "{text}: {said}");
    }
    three.still_waits(&commit, "by a policy that waits for one").await;
    let said = three.db1.walship(&["sync", "async", "--force"]).await.succeeded();
    assert!(said.contains("commits wait for nobody: policy 4 is in effect"), "{said}");
    commit.ends("as nobody is waited for").await;
    let list = three.db1.walship(&["exposures"]).await.succeeded();
    for text in
        ["policy all: `walship sync --force`", "missing: db2 (does not know of policy 3), db3 (does not"]
    {
        assert!(list.contains(text), "{text}: {list}");
    }
    let log = read(&three.db1.store());
    assert!(log.windows.len() == 2 && log.open().is_none(), "{log:?}");
    assert!(
        log.windows[1].from_lsn < lsn && log.windows[1].closed.as_ref().unwrap().to_lsn >= lsn,
        "{log:?}"
    );
    three.let_go("db2", Level::Write).await;
    three.let_go("db3", Level::Write).await;
}
