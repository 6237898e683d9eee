//! Commands of the site's own around a change of role.

use anyhow::ensure;
use walship::report::Role;

use crate::harness::{Node, PROMOTE, Test, eventually};
use crate::promotion::write;

/// Has its commands note what they are told in the file `told`, and fail while there is a file of their moment's name.
async fn with_hooks(node: &mut Node) {
    node.sidecar.terminate().await;
    let folder = node.folder().display().to_string();
    let mut config = std::fs::read_to_string(node.config_file()).unwrap();
    for moment in ["before", "after"] {
        let told = "$WALSHIP_HOOK $WALSHIP_ROLE_BEFORE $WALSHIP_ROLE $WALSHIP_PRIMARY $WALSHIP_EPOCH";
        let command = format!(
            "echo {told} >> {folder}/told; test ! -e {folder}/{moment} || {{ echo not now >&2; exit 1; }}"
        );
        let default = format!("# {moment}_role_change = \"\"");
        assert!(config.contains(&default));
        config = config.replace(&default, &format!("{moment}_role_change = {command:?}"));
    }
    std::fs::write(node.config_file(), config).unwrap();
    node.run().await;
}

/// Waits until the commands were told this since it was asked last.
async fn were_told(node: &Node, expected: &[&str]) {
    let told = node.folder().join("told");
    eventually(&format!("the commands on {} were told", node.name()), async || {
        let text = std::fs::read_to_string(&told)?;
        let lines: Vec<&str> = text.lines().collect();
        ensure!(lines == expected, "{lines:?}");
        Ok(())
    })
    .await;
    std::fs::remove_file(&told).unwrap();
}

/// Waits until the last that the commands were told ends like this; all of it, as above.
async fn eventually_told(node: &Node, end: &str) -> Vec<String> {
    let told = node.folder().join("told");
    let read = || std::fs::read_to_string(&told);
    eventually(&format!("the commands on {} were told {end:?}", node.name()), async || {
        let text = read()?;
        ensure!(text.trim_end().ends_with(end), "{text}");
        Ok(())
    })
    .await;
    let lines = read().unwrap().lines().map(str::to_owned).collect();
    std::fs::remove_file(&told).unwrap();
    lines
}

async fn two(test: &Test) -> (Node, Node) {
    let mut db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    with_hooks(&mut db1).await;
    with_hooks(&mut db2).await;
    write(&db1, "before").await;
    db2.follows(&db1).await;
    db2.knows(&["db1", "db2"]).await;
    // A role that it begins with is no change.
    assert!(!db1.folder().join("told").exists() && !db2.folder().join("told").exists());
    (db1, db2)
}

#[tokio::test]
async fn they_are_told_of_each_change_and_the_one_before_can_refuse_it() {
    let test = Test::new();
    let (db1, db2) = two(&test).await;
    let refuses = db2.folder().join("before");
    std::fs::write(&refuses, "").unwrap();
    db2.sidecar.expect_log("the promotion failed, going on as a standby");
    let why = "before_role_change, told of primary after standby, failed: exit status: 1: not now";
    db1.walship(&["switchover"]).await.failed(3, &[why]);
    // It was told of a change that did not come, and of what stays.
    were_told(&db2, &["before standby primary db2 1", "after standby standby db1 1"]).await;
    // Whether it was told that it is down depends on how long it was.
    let told = eventually_told(&db1, "primary db1 1").await;
    assert_eq!(told[0], "before primary down db2 1");
    std::fs::remove_file(refuses).unwrap();

    let refuses = db1.folder().join("before");
    std::fs::write(&refuses, "").unwrap();
    db1.walship(&["switchover"])
        .await
        .failed(3, &["db1 did not stop: before_role_change, told of down after primary"]);
    were_told(&db1, &["before primary down db2 2", "after primary primary db1 2"]).await;
    assert!(!db2.folder().join("told").exists());
    std::fs::remove_file(refuses).unwrap();

    write(&db1, "still").await;
    db1.walship(&["switchover"]).await.succeeded();
    // The command has ended by then: whoever waits for the switchover finds the address moved.
    were_told(&db2, &["before standby primary db2 3", "after standby primary db2 3"]).await;
    were_told(&db1, &["before primary down db2 3", "after primary down db2 3", "after down standby db2 3"])
        .await;
    write(&db2, "after").await;
    db1.equals(&db2).await;
}

#[tokio::test]
async fn one_that_fails_after_the_change_is_reported_until_it_is_run_again() {
    let test = Test::new();
    let (mut db1, mut db2) = two(&test).await;
    let fails = db2.folder().join("after");
    std::fs::write(&fails, "").unwrap();
    db2.sidecar.expect_log("after_role_change failed");
    db1.dies().await;
    let done = db2.walship(&PROMOTE).await.exited_with(0).said();
    assert!(
        done.contains("warning: after_role_change, told of primary, failed: exit status: 1: not now"),
        "{done}"
    );
    let status = db2.status().await.unwrap();
    assert_eq!(status.node.role, Role::Primary);
    assert!(status.alarms.iter().any(|alarm| alarm.starts_with("after_role_change")), "{:?}", status.alarms);
    db2.sidecar.kill().await;
    std::fs::remove_file(fails).unwrap();
    std::fs::remove_file(db2.folder().join("told")).unwrap();
    db2.run().await;
    were_told(&db2, &["after standby primary db2 1"]).await;
    assert!(db2.status().await.unwrap().alarms.is_empty());

    // The old primary comes back with its PostgreSQL: it is taken down, and what follows is told of that.
    db1.cluster.start().await.unwrap();
    db1.sidecar.expect_log("this node was superseded");
    db1.run().await;
    were_told(&db1, &["after primary down db2 1"]).await;
}
