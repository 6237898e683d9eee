//! The primary is lost, and a standby takes its place.

use anyhow::ensure;
use walship::demo::digest;
use walship::report::{Role, Status};

use crate::harness::{Node, PROMOTE, Test, eventually};

/// What stands of a node in another's status.
fn member<'a>(status: &'a Status, name: &str) -> &'a walship::report::Member {
    status
        .members
        .iter()
        .find(|member| member.name == name)
        .unwrap_or_else(|| panic!("no {name}: {status:?}"))
}

/// Writes a table that a later look can tell apart.
pub async fn write(node: &Node, table: &str) {
    let statement = format!("CREATE TABLE {table} AS SELECT generate_series(1, 1000) AS a");
    node.cluster.sql(&statement).await.unwrap();
}

/// A primary and two standbys that know of each other, so that any of them can be asked.
pub async fn three(test: &Test) -> (Node, Node, Node) {
    let db1 = test.primary("db1").await;
    let (db2, db3) = (test.standby("db2", &db1).await, test.standby("db3", &db1).await);
    write(&db1, "before").await;
    for standby in [&db2, &db3] {
        standby.follows(&db1).await;
        standby.knows(&["db1", "db2", "db3"]).await;
    }
    (db1, db2, db3)
}

/// Writes more than goes over a slow link meanwhile.
pub async fn write_much(node: &Node, table: &str) {
    let statement = format!(
        "CREATE TABLE {table} AS SELECT repeat(md5(a::text), 10) FROM generate_series(1, 30000) AS a"
    );
    node.cluster.sql(&statement).await.unwrap();
}

/// Sets what a standby ships per second. Otherwise one that is behind gets from the others what they have.
pub async fn ships_at(node: &mut Node, rate: &str) {
    assert!(node.sidecar.terminate().await.success());
    node.sidecar.set("WALSHIP_MAX_RATE", rate);
    node.run().await;
}

#[tokio::test]
async fn a_primary_that_answers_is_not_replaced() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    // At once: it has not noted yet who else there is.
    let flushed = db1.cluster.value("SELECT pg_current_wal_flush_lsn()").await.unwrap();
    for arguments in [&["promote"][..], &["promote", "--dry-run"]] {
        let texts = [
            "PostgreSQL on db1 still answers as the primary",
            "hint: `walship switchover` hands over",
            &flushed,
        ];
        db2.walship(arguments).await.failed(3, &texts);
    }
    let done = db1.walship(&PROMOTE).await.succeeded();
    assert!(done.contains("db1 is the primary already"), "{done}");
    write(&db1, "goes_on").await;
    db2.follows(&db1).await;
    assert_eq!(db2.status().await.unwrap().node.committed_epoch, 0);
}

#[tokio::test]
async fn the_other_standby_follows_the_new_primary_without_a_restart() {
    let test = Test::new();
    let (mut db1, db2, db3) = three(&test).await;
    let postmasters = (db2.postmaster(), db3.postmaster());
    db1.dies().await;
    let plan = db2.walship(&["promote", "--dry-run"]).await.exited_with(0);
    assert!(plan.stdout.contains("nothing was changed") && plan.stderr.contains("at stake"), "{plan:?}");
    assert!(db2.status().await.unwrap().node.role == Role::Standby);

    let done = db2.walship(&PROMOTE).await.succeeded();
    assert!(done.contains("db2 is the primary of epoch 1"), "{done}");
    write(&db2, "after").await;
    db3.equals(&db2).await;
    assert_eq!((db2.postmaster(), db3.postmaster()), postmasters);
    db2.captures().await;
    assert_eq!(db2.cluster.value("SELECT slot_name FROM pg_replication_slots").await.unwrap(), "walship");
    assert_eq!(db3.cluster.value("SELECT count(*) FROM before").await.unwrap(), "1000");
    for node in [&db2, &db3] {
        let status = eventually("the status says the new primary", async || {
            let status = node.status().await?;
            let sane = status.node.committed_epoch == 1 && status.node.timeline.0 == 2;
            ensure!(sane && member(&status, "db2").role == Role::Primary, "{status:?}");
            ensure!(member(&status, "db1").role == Role::Superseded, "{status:?}");
            Ok(status)
        });
        status.await;
    }
    db3.walship(&["lag", "--warn", "64MiB,30s"]).await.succeeded();
    let table = db2.walship(&["lag", "--format", "table"]).await.stdout;
    assert!(table.contains("db3") && !table.contains("db2 "), "{table}");
    let again = db2.walship(&PROMOTE).await.succeeded();
    assert!(again.contains("db2 is the primary already, of epoch 1"), "{again}");
    db3.same_content_as(&db2);
}

#[tokio::test]
async fn the_one_that_is_behind_is_refused_and_can_be_forced() {
    let test = Test::new();
    let (mut db1, mut db2, mut db3) = three(&test).await;
    ships_at(&mut db3, "1KiB").await;
    db2.sidecar.terminate().await;
    write_much(&db1, "not_on_db2").await;
    db3.follows(&db1).await;
    db1.dies().await;
    db2.run().await;
    let texts = ["db3 is further along, at", "hint: Run `walship promote` on db3", "no WAL beyond"];
    db2.walship(&["promote"]).await.failed(3, &texts);
    let done = db3.walship(&PROMOTE).await.succeeded();
    assert!(done.contains("db3 is the primary of epoch 1"), "{done}");
    ships_at(&mut db3, "").await;
    db2.equals(&db3).await;
}

#[tokio::test]
async fn nobody_is_promoted_while_a_silent_one_may_alone_have_acknowledged_commits() {
    let test = Test::new();
    let (mut db1, mut db2, mut db3) = three(&test).await;
    db1.walship(&["sync", "any 1 (*)"]).await.succeeded();
    eventually("db3 knows what commits wait for", async || {
        let policy = db3.status().await?.commits.and_then(|commits| commits.policy);
        ensure!(policy.as_ref().is_some_and(|policy| policy.text == "any 1 (*)"), "{policy:?}");
        Ok(())
    })
    .await;
    db3.sidecar.terminate().await;
    write(&db1, "acknowledged").await;
    db2.sidecar.terminate().await;
    db1.dies().await;
    db3.run().await;
    let texts = [
        "commits waited for any 1 (*), and db2 may alone have some that were acknowledged",
        "2 of them must answer, and 1 did",
        "hint: Start walship on db2 and run this again",
    ];
    db3.walship(&["promote"]).await.failed(3, &texts);
    db3.walship(&["promote", "--dry-run"]).await.failed(3, &texts);
    db2.run().await;
    db2.walship(&PROMOTE).await.succeeded();
    assert_eq!(db2.cluster.value("SELECT count(*) FROM acknowledged").await.unwrap(), "1000");
    db3.equals(&db2).await;
}

#[tokio::test]
async fn one_that_is_behind_gets_what_another_has_and_can_be_promoted() {
    let test = Test::new();
    let (mut db1, mut db2, db3) = three(&test).await;
    db2.sidecar.terminate().await;
    write_much(&db1, "not_on_db2").await;
    db3.follows(&db1).await;
    let rows = digest::digest(&db3.cluster.conninfo()).await.unwrap();
    db1.dies().await;
    db2.run().await;
    eventually("db2 has what db3 has", async || {
        let (ours, theirs) = (db2.status().await?.store.durable, db3.status().await?.store.durable);
        ensure!(ours == theirs, "{ours} of {theirs}");
        Ok(())
    })
    .await;
    db2.walship(&PROMOTE).await.succeeded();
    assert_eq!(digest::digest(&db2.cluster.conninfo()).await.unwrap(), rows);
    db3.equals(&db2).await;
}

#[tokio::test]
async fn forced_the_loss_is_named() {
    let test = Test::new();
    let (mut db1, mut db2, mut db3) = three(&test).await;
    ships_at(&mut db3, "1KiB").await;
    db2.sidecar.terminate().await;
    write_much(&db1, "not_on_db2").await;
    db1.cluster.sql("CHECKPOINT").await.unwrap();
    db3.follows(&db1).await;
    db3.cluster.sql("CHECKPOINT").await.unwrap();
    db1.dies().await;
    db2.runs_with("promote-pulling=fail").await;
    let forced = db2.walship(&["promote", "--force"]).await.exited_with(0);
    for text in
        ["warning: db3 is further along", "pull WAL from db3", "at stake: WAL from", "and will be lost"]
    {
        assert!(forced.stderr.contains(text), "{forced:?}");
    }
    // The other one has what the new primary never had in its files: it must not follow, and says why.
    db3.sidecar.expect_log("can't follow");
    db3.sidecar.wait_log("can't follow").await;
    let table = db3.walship(&["status"]).await.succeeded();
    assert!(table.contains("warning:"), "{table}");
    write(&db2, "after").await;
    assert!(db3.cluster.is_ready().await && db3.sidecar.is_running());

    // Nor does it take over later: its position lies beyond db2's, and it has nothing of what was written there.
    db2.dies().await;
    let texts =
        ["a promotion committed epoch 1, and db3 has no WAL of it", "written since the promotion of epoch 1"];
    db3.walship(&["promote"]).await.failed(3, &texts);
}

#[tokio::test]
async fn a_replay_that_is_held_back_is_seen_before_anything_is_stopped() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    db2.cluster.sql("SELECT pg_wal_replay_pause()").await.unwrap();
    db1.stops().await;
    let refused = async |texts: &[&str]| {
        for arguments in [&["promote", "--dry-run"][..], &["promote"]] {
            db2.walship(arguments).await.failed(3, texts);
        }
    };
    refused(&["somebody paused the replay on db2", "hint: Run `SELECT pg_wal_replay_resume()`"]).await;
    db1.cluster.start().await.unwrap();
    db2.cluster.sql("ALTER SYSTEM SET recovery_min_apply_delay = '1h'").await.unwrap();
    db2.cluster.sql("SELECT pg_reload_conf()").await.unwrap();
    db2.cluster.sql("SELECT pg_wal_replay_resume()").await.unwrap();
    write(&db1, "late").await;
    db1.captures().await;
    db1.stops().await;
    let status = db1.status().await.unwrap();
    has(&db2, status.store.durable).await;
    refused(&["replays with a delay of 3600 s", "hint: Run `ALTER SYSTEM SET recovery_min_apply_delay"])
        .await;
    db2.stops().await;
    refused(&["this node's PostgreSQL can't be promoted now", "hint: It has to run"]).await;
    assert!(db2.sidecar.log().contains("the promotion failed").is_err(), "nothing was begun");
    assert!(db2.sidecar.is_running());
}

/// Waits until a standby's store has all up to a position.
async fn has(node: &Node, lsn: walship::pg::Lsn) {
    eventually("the WAL is shipped", async || {
        let durable = node.status().await?.store.durable;
        ensure!(durable >= lsn, "{durable} of {lsn}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn forced_a_paused_replay_is_resumed() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    db2.cluster.sql("SELECT pg_wal_replay_pause()").await.unwrap();
    write(&db1, "before").await;
    db1.captures().await;
    has(&db2, db1.status().await.unwrap().store.durable).await;
    db1.dies().await;
    let forced = db2.walship(&["promote", "--force"]).await.exited_with(0);
    assert!(forced.stderr.contains("resuming the replay that somebody paused"), "{forced:?}");
    assert_eq!(db2.cluster.value("SELECT count(*) FROM before").await.unwrap(), "1000");
    write(&db2, "after").await;
}

#[tokio::test]
async fn a_primary_that_comes_back_is_told_that_it_is_none() {
    let test = Test::new();
    let (mut db1, db2, mut db3) = three(&test).await;
    db1.dies().await;
    db2.walship(&PROMOTE).await.succeeded();
    db1.cluster.start().await.unwrap();
    db1.sidecar.expect_log("this node was superseded");
    db1.run().await;
    db1.sidecar.wait_log("this node was superseded").await;
    let texts = [
        "db1 was superseded: db2 was promoted with epoch 1",
        "hint: `walship rejoin` makes this node a standby of db2",
    ];
    db1.walship(&["promote"]).await.failed(3, &texts);
    eventually("its PostgreSQL is stopped, and starts as no primary", async || {
        ensure!(!db1.cluster.is_ready().await, "it is up");
        ensure!(db1.cluster.data_directory().join("standby.signal").exists(), "it would write");
        Ok(())
    })
    .await;

    // It is no standby, and nobody waits for it; of those that follow, who is down is said.
    let limits = ["lag", "--warn", "64MiB,30s", "--crit", "1GiB,5m"];
    let said = db2.walship(&limits).await.exited_with(0).stdout;
    assert!(said.contains("db3 OK") && !said.contains("db1"), "{said}");
    let table = db2.walship(&["status"]).await.succeeded();
    assert!(table.contains("db1    superseded"), "{table}");
    assert!(table.contains("warning: db1 was superseded and does not follow"), "{table}");
    assert!(!table.contains("held by      db1"), "{table}");
    eventually("the old primary shows the new one", async || {
        let status = db1.status().await?;
        ensure!(status.node.role == Role::Superseded, "{status:?}");
        ensure!(member(&status, "db2").role == Role::Primary, "{status:?}");
        Ok(())
    })
    .await;
    let said = db1.walship(&limits).await.exited_with(3).stdout;
    assert!(said.contains("UNKNOWN - this node was superseded and has no standbys any more"), "{said}");
    // Whoever starts it by hand is stopped, also after the sidecar was restarted.
    assert!(db1.sidecar.terminate().await.success());
    std::fs::remove_file(db1.cluster.data_directory().join("standby.signal")).unwrap();
    db1.cluster.start().await.unwrap();
    db1.run().await;
    eventually("it is stopped again", async || {
        ensure!(!db1.cluster.is_ready().await, "it is up");
        Ok(())
    })
    .await;
    db3.sidecar.terminate().await;
    eventually("the standby that is down is said", async || {
        let said = db2.walship(&limits).await.exits(3)?.stdout;
        ensure!(said.contains("db3 UNKNOWN: not heard for") && !said.contains("db1"), "{said}");
        Ok(())
    })
    .await;
    db3.run().await;
    write(&db2, "after").await;
    db3.equals(&db2).await;
}

#[tokio::test]
async fn promoted_before_the_members_were_noted_it_knows_them_all_the_same() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    let mut db3 = Node::empty(&test, "db3");
    db3.sidecar.set("WALSHIP_FAILPOINTS", "members-note=sleep:1h");
    db3.join(&db1.invite("db3").await, &[]);
    db3.follows(&db1).await;
    db3.knows(&["db1", "db2", "db3"]).await;
    db1.dies().await;
    db3.walship(&PROMOTE).await.succeeded();
    db3.sidecar.kill().await;
    db3.runs_with("").await;
    let status = db3.status().await.unwrap();
    assert!(member(&status, "db1").role == Role::Superseded, "{status:?}");
    assert!(member(&status, "db2").role == Role::Standby, "{status:?}");
    write(&db3, "after").await;
    db2.equals(&db3).await;
}

#[tokio::test]
async fn a_postgresql_that_has_all_already_need_not_stream_to_be_promoted() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    write(&db1, "before").await;
    db2.follows(&db1).await;
    db1.dies().await;
    db2.cluster.sql("ALTER SYSTEM SET primary_conninfo = ''").await.unwrap();
    db2.cluster.sql("SELECT pg_reload_conf()").await.unwrap();
    // A new process knows nothing of what the feed gave.
    db2.sidecar.terminate().await;
    db2.run().await;
    let done = db2.walship(&PROMOTE).await.succeeded();
    assert!(done.contains("db2 is the primary of epoch 1"), "{done}");
    assert_eq!(db2.cluster.value("SELECT count(*) FROM before").await.unwrap(), "1000");
}

#[tokio::test]
async fn a_role_that_may_not_promote_is_refused_before_there_is_no_way_back() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    db2.knows(&["db1", "db2"]).await;
    db1.cluster.sql("CREATE ROLE walship LOGIN REPLICATION").await.unwrap();
    db2.follows(&db1).await;
    db2.sidecar.terminate().await;
    db2.sidecar.set("WALSHIP_CONNINFO", &db2.cluster.conninfo_as("walship"));
    db2.run().await;
    db1.dies().await;
    db2.sidecar.expect_log("the promotion failed, going on as a standby");
    let texts = ["the role walship may not promote", "hint: A superuser grants it", "run `pg_ctl promote`"];
    db2.walship(&PROMOTE).await.failed(3, &texts);
    assert_eq!(db2.status().await.unwrap().node.committed_epoch, 0);
    db2.sidecar.expect_log("promoted by hand");
    db2.cluster.promote().await.unwrap();
    db2.walship(&PROMOTE).await.succeeded();
    write(&db2, "after").await;
    db2.captures().await;
}

#[tokio::test]
async fn asked_for_twice_at_once_a_promotion_answers_both() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    db2.knows(&["db1", "db2"]).await;
    db2.sidecar.terminate().await;
    db2.runs_with("promote-drained=sleep:2s").await;
    db1.dies().await;
    let (one, two) = tokio::join!(db2.walship(&PROMOTE), db2.walship(&PROMOTE));
    let told = [one.succeeded(), two.succeeded()];
    let first = told.iter().filter(|told| told.contains("db2 is the primary of epoch 1")).count();
    let second = told.iter().filter(|told| told.contains("db2 was promoted meanwhile")).count();
    assert_eq!((first, second), (1, 1), "{told:?}");
}

#[tokio::test]
async fn killed_with_its_postgresql_after_the_promotion_it_comes_back_as_the_primary() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    db2.knows(&["db1", "db2"]).await;
    db2.sidecar.terminate().await;
    db2.runs_with("promote-promoted=abort").await;
    db1.dies().await;
    db2.walship(&PROMOTE).await.failed(4, &["the sidecar ended without an answer"]);
    db2.sidecar.ended().await;
    db2.cluster.kill().await.unwrap();
    db2.runs_with("").await;
    assert!(db2.status().await.unwrap().node.role == Role::Primary);
    db2.cluster.start().await.unwrap();
    write(&db2, "after").await;
    db2.captures().await;
}

#[tokio::test]
async fn whom_a_standby_heard_of_last_it_knows_after_a_restart() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    let mut db3 = Node::empty(&test, "db3");
    db3.join(&db1.invite("db3").await, &[]);
    // At once: in a second it is on disk anyway.
    db2.knows(&["db3"]).await;
    db2.sidecar.terminate().await;
    db3.follows(&db1).await;
    db1.sidecar.terminate().await;
    db2.run().await;
    db2.knows(&["db3"]).await;
}
