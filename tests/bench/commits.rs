//! pgbench's TPC-B-like transactions without the contended updates (`-N`), in each mode, with few and many clients.

use walship::demo::Cluster;

use crate::Effort;
use crate::pairs::{Pairs, pgbench};
use crate::table::Table;

/// What commits wait for.
struct Mode {
    /// walship's policy.
    policy: &'static str,
    /// PostgreSQL's `synchronous_standby_names` that comes to the same, where there is one.
    names: Option<&'static str>,
    /// `synchronous_commit`.
    level: &'static str,
}

const fn mode(policy: &'static str, names: Option<&'static str>, level: &'static str) -> Mode {
    Mode { policy, names, level }
}

const MODES: [Mode; 6] = [
    mode("async", Some(""), "on"),
    mode("any 1 (*)", Some("ANY 1 (native2, native3)"), "remote_write"),
    mode("any 1 (*)", Some("ANY 1 (native2, native3)"), "on"),
    mode("any 1 (*)", Some("ANY 1 (native2, native3)"), "remote_apply"),
    mode("first 1 (db2, db3)", Some("FIRST 1 (native2, native3)"), "on"),
    mode("all", Some("FIRST 2 (native2, native3)"), "on"),
];

/// PostgreSQL's standbys of standbys are not waited for.
const CHAIN: Mode = mode("chain (db2, db3)", None, "on");

const CLIENTS: [&str; 2] = ["1", "8"];

/// What one run comes to.
struct Run {
    transactions_per_second: f64,
    latency_ms: f64,
}

/// Measures every mode; walship's standbys are a chain afterwards.
pub async fn measure(pairs: &mut Pairs, effort: Effort, table: &mut Table) {
    for mode in &MODES {
        each(pairs, mode, effort, table).await;
    }
    pairs.form_a_chain().await;
    each(pairs, &CHAIN, effort, table).await;
    pairs.wait_for(Some(""), "async").await;
}

async fn each(pairs: &Pairs, mode: &Mode, effort: Effort, table: &mut Table) {
    pairs.wait_for(mode.names, mode.policy).await;
    for clients in CLIENTS {
        let (mut native, mut walship) = (Vec::new(), Vec::new());
        for round in 0..effort.rounds {
            for turn in 0..2 {
                if (round + turn) % 2 == 1 {
                    walship.push(run(&pairs.primary.cluster, mode.level, clients, effort).await);
                } else if mode.names.is_some() {
                    native.push(run(&pairs.native, mode.level, clients, effort).await);
                }
            }
        }
        let what =
            |figure: &str| format!("{figure}, {clients} client(s), `{}`, `{}`", mode.policy, mode.level);
        let of = |runs: &[Run], figure: fn(&Run) -> f64| runs.iter().map(figure).collect::<Vec<_>>();
        let figure: fn(&Run) -> f64 = |run| run.transactions_per_second;
        table.add(what("transactions"), "/s", &of(&native, figure), &of(&walship, figure));
        let figure: fn(&Run) -> f64 = |run| run.latency_ms;
        table.add(what("latency"), "ms", &of(&native, figure), &of(&walship, figure));
    }
}

async fn run(cluster: &Cluster, level: &str, clients: &str, effort: Effort) -> Run {
    let seconds = effort.lasting.as_secs().to_string();
    let mut command = pgbench(cluster, &["-n", "-N", "-c", clients, "-T", &seconds]);
    command.env("PGOPTIONS", format!("-c synchronous_commit={level}"));
    let output = String::from_utf8(cluster.run(command).await.unwrap().stdout).unwrap();
    let figure = |name: &str| -> f64 {
        let line = output.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
        let text = line.unwrap_or_else(|| panic!("no {name} in {output}"));
        text.split_whitespace().next().unwrap().parse().unwrap()
    };
    Run { transactions_per_second: figure("tps"), latency_ms: figure("latency average") }
}
