//! A primary that diverged comes back: by pg_rewind, and by a copy of what differs, against a new copy of it all.

use std::path::Path;
use std::time::Instant;

use walship::report::Role;

use crate::Effort;
use crate::copies;
use crate::harness::{Node, PROMOTE};
use crate::pairs::{Pairs, pgbench};
use crate::table::Table;

/// What is changed on each side of the fork.
const TRANSACTIONS: [&str; 6] = ["-n", "-N", "-c", "4", "-t", "2000"];

/// Measures each way as often; walship's first two nodes change places with every time.
pub async fn measure(pairs: &mut Pairs, target: &Path, effort: Effort, table: &mut Table) {
    for method in ["rewind", "delta"] {
        let (mut native, mut walship) = (Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            let began = Instant::now();
            copies::pg_basebackup(pairs, target).await;
            native.push(began.elapsed().as_secs_f64());
            std::fs::remove_dir_all(target).unwrap();
            walship.push(rejoin(pairs, method).await);
        }
        println!("rejoin by {method}, one by one: {native:.2?}, {walship:.2?}");
        let what = format!("rejoin of a diverged primary, `--method {method}`, against a new pg_basebackup");
        table.add(what, "s", &native, &walship);
    }
}

/// From the command until it follows; its capsule with the summary is a part of that.
async fn rejoin(pairs: &mut Pairs, method: &str) -> f64 {
    diverge(&mut pairs.primary, &pairs.standbys[0]).await;
    let began = Instant::now();
    pairs.primary.walship(&["rejoin", "--method", method]).await.succeeded();
    pairs.primary.is(Role::Standby).await;
    pairs.primary.follows(&pairs.standbys[0]).await;
    let taken = began.elapsed().as_secs_f64();
    std::mem::swap(&mut pairs.primary, &mut pairs.standbys[0]);
    taken
}

/// `old` is lost, `new` takes its place, and both write on.
async fn diverge(old: &mut Node, new: &Node) {
    new.follows(old).await;
    new.knows(&["db1", "db2", "db3"]).await;
    old.dies().await;
    new.walship(&PROMOTE).await.succeeded();
    old.sidecar.expect_log("this node was superseded");
    old.sidecar.expect_log("the log that is here does not lead to where the copy begins");
    old.cluster.start().await.unwrap();
    for node in [&*old, new] {
        node.cluster.run(pgbench(&node.cluster, &TRANSACTIONS)).await.unwrap();
    }
    old.run().await;
    old.is(Role::Superseded).await;
}
