//! A base backup with the WAL it needs, on the same machine.

use std::path::Path;
use std::time::Instant;

use crate::Effort;
use crate::harness::Test;
use crate::pairs::Pairs;
use crate::table::Table;

/// Measures `pg_basebackup` and `walship basebackup` in turn.
pub async fn measure(test: &Test, pairs: &Pairs, effort: Effort, table: &mut Table) {
    let target = test.folder().join("copy");
    let (mut native, mut walship) = (Vec::new(), Vec::new());
    for round in 0..effort.rounds {
        for turn in 0..2 {
            let began = Instant::now();
            if (round + turn) % 2 == 0 {
                pg_basebackup(pairs, &target).await;
                native.push(began.elapsed().as_secs_f64());
            } else {
                walship_basebackup(pairs, &target).await;
                walship.push(began.elapsed().as_secs_f64());
            }
            std::fs::remove_dir_all(&target).unwrap();
        }
    }
    table.add("base backup of the same data", "s", &native, &walship);
}

/// PostgreSQL's own.
pub async fn pg_basebackup(pairs: &Pairs, target: &Path) {
    let cluster = &pairs.native;
    let mut copy = cluster.account().command(cluster.binaries().program("pg_basebackup"));
    copy.args(["-c", "fast", "-X", "stream", "-d", &cluster.conninfo(), "-D"]).arg(target);
    cluster.run(copy).await.unwrap();
}

async fn walship_basebackup(pairs: &Pairs, target: &Path) {
    let from = pairs.primary.listen().to_string();
    let target = target.to_str().unwrap();
    pairs.primary.walship(&["basebackup", "--from", &from, "-D", target]).await.succeeded();
}
