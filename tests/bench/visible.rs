//! How soon a committed row is seen on the standby, asynchronously.

use walship::demo::latency::Latencies;

use crate::Effort;
use crate::pairs::Pairs;
use crate::table::Table;

/// Measures both pairs in turn.
pub async fn measure(pairs: &Pairs, effort: Effort, table: &mut Table) {
    let native = (pairs.native.conninfo(), pairs.native_standbys[0].conninfo());
    let walship = (pairs.primary.cluster.conninfo(), pairs.standbys[0].cluster.conninfo());
    let mut figures = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
    for round in 0..effort.rounds {
        for turn in 0..2 {
            let side = (round + turn) % 2;
            let (primary, standby) = [&native, &walship][side];
            empty(pairs, side).await;
            let latencies = Latencies::measure(primary, standby, effort.lasting).await.unwrap();
            for (figure, percent) in figures[side].iter_mut().zip([50, 99]) {
                figure.push(latencies.percentile(percent).as_secs_f64() * 1e3);
            }
        }
    }
    let [[native_p50, native_p99], [walship_p50, walship_p99]] = figures;
    table.add("commit to visible on the standby, p50", "ms", &native_p50, &walship_p50);
    table.add("commit to visible on the standby, p99", "ms", &native_p99, &walship_p99);
}

/// Each measurement counts its rows from one.
async fn empty(pairs: &Pairs, side: usize) {
    let (primary, standby) = match side {
        0 => (&pairs.native, &pairs.native_standbys[0]),
        _ => (&pairs.primary.cluster, &pairs.standbys[0].cluster),
    };
    primary.sql("DELETE FROM walship_probe").await.unwrap();
    let empty = "SELECT count(*) = 0 FROM walship_probe";
    standby.wait_until(empty, crate::harness::PATIENCE).await.unwrap();
}
