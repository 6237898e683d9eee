//! What is kept of a promotion: what it claims was lost, and that nothing keeps it from being kept.

use std::fs;
use std::path::PathBuf;

use anyhow::ensure;
use serde_json::Value;

use crate::harness::{Finished, Node, PROMOTE, Test, eventually};
use crate::promotion::{three, write};

/// Standard output, which is to be one JSON value.
#[track_caller]
fn json(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}{}", finished.framed()))
}

/// A text for people without its line breaks.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn in_json(node: &Node, arguments: &[&str], code: i32) -> Value {
    json(&node.walship(&[arguments, &["--format", "json"]].concat()).await.exited_with(code))
}

fn file(node: &Node, epoch: u64) -> PathBuf {
    node.store().join(format!("history/{epoch:010}-{}.json", node.name()))
}

/// What a certificate claims.
#[track_caller]
fn claim(certificate: &Value) -> &str {
    certificate["verdict"]["claim"].as_str().unwrap_or_else(|| panic!("no claim: {certificate}"))
}

/// The members of a certificate that voted, or were promoted.
fn voters(certificate: &Value) -> Vec<&str> {
    let members = certificate["members"].as_array().unwrap();
    let frozen = members.iter().filter(|member| member["vote"] != "silent" && member["vote"] != "refused");
    frozen.map(|member| member["node"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn handed_over_nothing_is_lost_and_in_async_what_is_not_known_is_said() {
    let test = Test::new();
    let (db1, mut db2, db3) = three(&test).await;
    let plan = in_json(&db2, &["switchover", "--to", "db2", "--dry-run"], 0).await;
    assert_eq!(plan["plan"]["stake"]["claim"], "nothing", "{plan}");
    let refused = in_json(&db2, &["promote", "--dry-run"], 3).await;
    assert_eq!(refused["outcome"], "refused", "{refused}");
    for (key, text) in [("reason", "db1 still answers as the primary"), ("hint", "walship switchover")] {
        assert!(refused[key].as_str().unwrap().contains(text), "{refused}");
    }

    // Ordered from another node, it comes over the link as it is kept.
    let done = db3.walship(&["switchover", "--to", "db2", "--format", "json"]).await.exited_with(0);
    let first = fs::read_to_string(file(&db2, 1)).unwrap();
    assert_eq!(done.stdout, first);
    let certificate = &json(&done)["certificate"];
    assert_eq!(
        (claim(certificate), &certificate["verdict"]["ended_cleanly"]),
        ("nothing", &Value::Bool(true))
    );
    assert_eq!((&certificate["old_timeline"], &certificate["new_timeline"]), (&1.into(), &2.into()));
    assert_eq!((&certificate["fence"]["by"], &certificate["forced"]), (&"sidecar".into(), &false.into()));
    assert!(certificate["fence"]["at"].is_string() && certificate["switch_lsn"].is_string(), "{certificate}");
    assert_eq!(voters(certificate), ["db1", "db2", "db3"]);
    assert!(certificate["members"].as_array().unwrap().iter().all(|member| member["age_seconds"].is_u64()));

    // The next one, of a primary that is lost; commits waited for nobody.
    write(&db2, "after").await;
    for standby in [&db1, &db3] {
        standby.equals(&db2).await;
        standby.knows(&["db1", "db2", "db3"]).await;
    }
    eventually("the others fetch the certificate", async || {
        let copies = [&db1, &db3].map(|node| node.store().join("history/0000000001-db2.json").exists());
        ensure!(copies == [true, true], "{copies:?}");
        Ok(())
    })
    .await;
    db2.dies().await;
    // db1, which is silent, too, would be needed: a fence is no vote.
    let done = db3.walship(&[&PROMOTE[..], &["--force"]].concat()).await.exited_with(0);
    for text in
        ["is the primary of epoch 2", "verdict none up to", "unknown after: db2 was last heard at", "until"]
    {
        assert!(words(&done.stdout).contains(text), "{text}{}", done.framed());
    }
    let again = in_json(&db3, &["promote"], 0).await;
    let certificate = &again["certificate"];
    assert_eq!((claim(certificate), &certificate["policy"]), ("nothing_known", &Value::Null));
    assert_eq!(
        (&certificate["fence"]["by"], &certificate["old_primary"]),
        (&"command".into(), &"db2".into())
    );

    // Both are known here; one that is changed is named, and nothing of it is believed.
    let history = in_json(&db3, &["history"], 0).await;
    let epochs = history["promotions"].as_array().unwrap().iter().map(|one| (&one["epoch"], &one["node"]));
    let expected: [(Value, Value); 2] = [(1.into(), "db2".into()), (2.into(), "db3".into())];
    assert!(epochs.eq(expected.iter().map(|(epoch, node)| (epoch, node))), "{history}");
    assert_eq!(history["exposures"], Value::Array(Vec::new()));
    // Of the one before its own it has fetched the certificate, though that node's disk may be lost.
    assert_eq!(fs::read_to_string(db3.store().join("history/0000000001-db2.json")).unwrap(), first);
    let kept = file(&db3, 2);
    let verified = db3.walship(&["history", "--verify", kept.to_str().unwrap()]).await.succeeded();
    assert!(words(&verified).contains("fence db2, by the fence command"), "{verified}");
    let text = fs::read_to_string(&kept).unwrap();
    fs::write(&kept, text.replace("none up to", "nothing is lost up to")).unwrap();
    let said = db3.walship(&["history"]).await.exited_with(1);
    assert!(words(&said.stdout).contains("0000000002-db3.json: its SHA-256 is"), "{}", said.framed());
    assert!(!words(&said.stdout).contains("nothing is lost up to"), "{}", said.framed());
    db3.walship(&["history", "--verify", kept.to_str().unwrap()]).await.failed(1, &["it was changed"]);
}

#[tokio::test]
async fn killed_between_commit_and_certificate_it_is_kept_and_claims_what_was_found_before() {
    let test = Test::new();
    let (mut db1, mut db2, db3) = three(&test).await;
    db1.walship(&["sync", "any 1 (*)"]).await.succeeded();
    db2.sidecar.terminate().await;
    db2.runs_with("promote-committed=abort").await;
    for standby in [&db2, &db3] {
        standby.follows(&db1).await;
        standby.knows(&["db1", "db2", "db3"]).await;
    }
    is_armed(&db2, true).await;
    db1.dies().await;
    db2.walship(&["promote"]).await.exited_with(4);
    db2.sidecar.ended().await;
    // PostgreSQL is a standby still: the same command goes on, and is killed behind that.
    db2.runs_with("promote-promoted=abort").await;
    db2.walship(&PROMOTE).await.exited_with(4);
    db2.sidecar.ended().await;
    assert!(!file(&db2, 2).exists());
    db2.runs_with("").await;
    let history = eventually("the sidecar completes it", async || {
        let history = db2.walship(&["history", "--format", "json"]).await.exits(0)?;
        let history: Value = serde_json::from_str(&history.stdout)?;
        ensure!(file(&db2, 2).exists(), "{history}");
        Ok(history)
    })
    .await;
    let [first, second] = &history["promotions"].as_array().unwrap()[..] else { panic!("{history}") };
    assert_eq!((&first["new_timeline"], &second["new_timeline"]), (&Value::Null, &2.into()), "{history}");
    for promotion in [first, second] {
        let certificate = &promotion["certificate"];
        assert_eq!(claim(certificate), "nothing_acknowledged", "{certificate}");
        assert!(
            promotion["verdict"].as_str().unwrap().starts_with("0 acknowledged bytes lost"),
            "{promotion}"
        );
        assert_eq!(certificate["policy"]["enough"], 2, "{certificate}");
    }
    write(&db2, "after").await;
    db3.equals(&db2).await;
    assert!(!db2.store().join("history/draft.json").exists());
}

/// Waits until a standby was told whether commits are protected: it is in what a promotion would cost.
async fn is_armed(node: &Node, expected: bool) {
    eventually("the standby is told whether commits are protected", async || {
        let plan = ["promote", "--dry-run", "--force", "--format", "json"];
        let plan: Value = serde_json::from_str(&node.walship(&plan).await.exits(0)?.stdout)?;
        let stake = &plan["plan"]["stake"];
        let told = stake["claim"] == "nothing_acknowledged" || stake["armed"].is_object();
        ensure!(told == expected, "{plan}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn with_a_stall_limit_and_with_too_few_positions_it_is_not_said_that_nothing_is_lost() {
    let test = Test::new();
    let (mut db1, mut db2, mut db3) = three(&test).await;
    db1.walship(&["sync", "any 1 (db3)", "--stall-limit", "200ms"]).await.succeeded();
    is_armed(&db2, true).await;
    // It goes on without db3, and says so to db2.
    db1.sidecar.expect_log("commits go on unprotected");
    assert!(db3.sidecar.terminate().await.success());
    write(&db1, "not_on_db3").await;
    is_armed(&db2, false).await;
    db1.dies().await;
    let refused = in_json(&db2, &["promote", "--fence-command", "true"], 3).await;
    assert!(refused["reason"].as_str().unwrap().contains("db3 may alone have some"), "{refused}");
    let certificate = &in_json(&db2, &[&PROMOTE[..], &["--force"]].concat(), 0).await["certificate"];
    assert_eq!((claim(certificate), &certificate["verdict"]["armed"]), ("nothing_known", &Value::Null));
    let policy = &certificate["policy"];
    assert_eq!(
        (&policy["stall_limit"], &policy["frozen"], &policy["enough"]),
        (&"200ms".into(), &0.into(), &1.into())
    );
    assert_eq!(policy["reported"]["is_armed"], false, "{certificate}");
    assert_eq!((&certificate["forced"], voters(certificate)), (&true.into(), vec!["db2"]));
    assert!(
        certificate["accepted"][0].as_str().unwrap().contains("db3 may alone have some"),
        "{certificate}"
    );

    // Protected again, as far as anybody knows: with a limit nobody knows what went on since that was said.
    db2.sidecar.expect_log("commits go on unprotected");
    db3.run().await;
    db3.equals(&db2).await;
    is_armed(&db3, true).await;
    db3.knows(&["db1", "db2", "db3"]).await;
    db2.dies().await;
    // db1, which is silent, too, would be needed: a fence is no vote.
    let done = db3.walship(&[&PROMOTE[..], &["--force"]].concat()).await.exited_with(0);
    for text in ["verdict none up to", ", reported armed at", "unknown after: db2 was last heard at"] {
        assert!(words(&done.stdout).contains(text), "{text}{}", done.framed());
    }
    assert!(!words(&done.stdout).contains("0 acknowledged"), "{}", done.framed());
}
