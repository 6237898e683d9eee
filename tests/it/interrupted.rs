//! walship is killed between any two steps of a change of the primary: the same command, run again, finishes.

use anyhow::ensure;
use walship::demo::Random;
use walship::report::Role;

use crate::harness::{Node, PROMOTE, Test, eventually};
use crate::promotion::{three, write};

/// Who is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Primary,
    Taker,
}

const OF_HANDING_OVER: [(Who, &str); 8] = [
    (Who::Taker, "promote-promised"),
    (Who::Primary, "vote-promised"),
    (Who::Primary, "vote-stopped"),
    (Who::Primary, "vote-signalled"),
    (Who::Taker, "promote-drained"),
    (Who::Taker, "promote-committed"),
    (Who::Taker, "promote-promoted"),
    (Who::Primary, "superseded-heard"),
];

/// Of a promotion after a loss; the old primary is killed when it comes back.
const OF_PROMOTING: [(Who, &str); 7] = [
    (Who::Taker, "promote-promised"),
    (Who::Taker, "promote-fenced"),
    (Who::Taker, "promote-drained"),
    (Who::Taker, "promote-committed"),
    (Who::Taker, "promote-promoted"),
    (Who::Primary, "superseded-heard"),
    (Who::Primary, "superseded-signalled"),
];

/// Of the way back of one that diverged; where a rewind was begun and did not end, a copy takes its place.
const OF_REJOINING: [&str; 10] = [
    "rejoin-stopped",
    "rejoin-completed",
    "rejoin-kept",
    "rejoin-summarised",
    "rewind-noted",
    "rewind-armed",
    "rewind-ended",
    "rewind-noted-ended",
    "rewind-cut",
    "rewind-settled",
];

/// A node is started again with a failure point.
async fn will_die(node: &mut Node, point: &str) {
    assert!(node.sidecar.terminate().await.success());
    node.runs_with(&format!("{point}=abort")).await;
}

async fn lives_again(node: &mut Node) {
    node.sidecar.ended().await;
    node.runs_with("").await;
}

/// All have what the primary has, and it is the only one that writes.
async fn agree(primary: &Node, others: [&Node; 2], table: &str) {
    primary.is(Role::Primary).await;
    write(primary, table).await;
    for standby in others {
        standby.is(Role::Standby).await;
        standby.equals(primary).await;
        assert_eq!(standby.cluster.value("SELECT pg_is_in_recovery()").await.unwrap(), "t");
        standby.knows(&["db1", "db2", "db3"]).await;
    }
}

/// In an order that the seed decides, each with what the ones before left.
fn shuffled<T: Copy>(random: &mut Random, points: &[T]) -> Vec<T> {
    let mut left = points.to_vec();
    let mut drawn = Vec::new();
    while !left.is_empty() {
        drawn.push(left.swap_remove(random.below(left.len() as u64) as usize));
    }
    drawn
}

/// A primary, who takes its place, and a third; the first two say things when they are killed.
async fn nodes(test: &Test) -> (Node, Node, Node) {
    let (primary, taker, third) = three(test).await;
    let texts = [
        "the promotion failed, going on as a standby",
        "this node was superseded",
        "not rejoined",
        "the log that is here does not lead to where the copy begins",
    ];
    for (node, text) in [&primary, &taker].into_iter().flat_map(|node| texts.map(|text| (node, text))) {
        node.sidecar.expect_log(text);
    }
    (primary, taker, third)
}

/// Both standbys have what the primary has.
async fn follow(primary: &Node, standbys: [&Node; 2]) {
    for standby in standbys {
        standby.follows(primary).await;
    }
}

#[tokio::test]
async fn a_handing_over_that_is_killed_at_any_step_is_finished_by_the_same_command() {
    let test = Test::new();
    let (mut primary, mut taker, third) = nodes(&test).await;
    for (round, (who, point)) in shuffled(&mut test.random(), &OF_HANDING_OVER).into_iter().enumerate() {
        println!("{} hands over to {}: {who:?} is killed at {point}", primary.name(), taker.name());
        let victim = if who == Who::Primary { &mut primary } else { &mut taker };
        will_die(victim, point).await;
        taker.follows(&primary).await;
        let to = taker.name().to_owned();
        let command = ["switchover", "--to", &to];
        let first = third.walship(&command).await;
        let victim = if who == Who::Primary { &mut primary } else { &mut taker };
        lives_again(victim).await;
        if point != "superseded-heard" {
            assert!([Some(1), Some(3), Some(4)].contains(&first.code()), "{}", first.framed());
        }
        eventually("the same command finishes", async || {
            third.walship(&command).await.exits(0)?;
            ensure!(taker.status().await?.node.role == Role::Primary, "{} is none yet", taker.name());
            Ok(())
        })
        .await;
        agree(&taker, [&primary, &third], &format!("round_{round}")).await;
        std::mem::swap(&mut primary, &mut taker);
    }
}

#[tokio::test]
async fn a_promotion_that_is_killed_at_any_step_is_finished_by_the_same_command() {
    let test = Test::new();
    let (mut primary, mut taker, third) = nodes(&test).await;
    for (round, (who, point)) in shuffled(&mut test.random(), &OF_PROMOTING).into_iter().enumerate() {
        println!("{} takes the place of {}: {who:?} is killed at {point}", taker.name(), primary.name());
        follow(&primary, [&taker, &third]).await;
        if who == Who::Taker {
            will_die(&mut taker, point).await;
            taker.follows(&primary).await;
        }
        primary.dies().await;
        let first = taker.walship(&PROMOTE).await;
        if who == Who::Taker {
            first.failed(4, &["the sidecar ended without an answer"]);
            lives_again(&mut taker).await;
            taker.walship(&PROMOTE).await.succeeded();
        } else {
            first.succeeded();
        }
        write(&taker, &format!("after_{round}")).await;
        primary.cluster.start().await.unwrap();
        if who == Who::Primary {
            primary.sidecar.set("WALSHIP_FAILPOINTS", &format!("{point}=abort"));
            primary.sidecar.start(&["run"]);
            lives_again(&mut primary).await;
        } else {
            primary.runs_with("").await;
        }
        primary.is(Role::Superseded).await;
        primary.walship(&["rejoin"]).await.succeeded();
        agree(&taker, [&primary, &third], &format!("round_{round}")).await;
        std::mem::swap(&mut primary, &mut taker);
    }
}

#[tokio::test]
async fn a_rejoin_that_is_killed_at_any_step_is_finished_by_the_same_command() {
    let test = Test::new();
    let (mut primary, mut taker, third) = nodes(&test).await;
    for (round, point) in shuffled(&mut test.random(), &OF_REJOINING).into_iter().enumerate() {
        println!("{} comes back to {}, and is killed at {point}", primary.name(), taker.name());
        follow(&primary, [&taker, &third]).await;
        primary.dies().await;
        taker.walship(&PROMOTE).await.succeeded();
        write(&taker, &format!("after_{round}")).await;
        primary.cluster.start().await.unwrap();
        write(&primary, &format!("only_here_{round}")).await;
        primary.cluster.sql("UPDATE before SET a = -a").await.unwrap();
        primary.runs_with(&format!("{point}=abort")).await;
        primary.is(Role::Superseded).await;
        primary.walship(&["rejoin"]).await.exits(4).unwrap();
        lives_again(&mut primary).await;
        primary.walship(&["rejoin"]).await.succeeded();
        agree(&taker, [&primary, &third], &format!("round_{round}")).await;
        assert_eq!(primary.cluster.value("SELECT to_regclass('only_here_0') IS NULL").await.unwrap(), "t");
        std::mem::swap(&mut primary, &mut taker);
    }
}
