//! walship beside PostgreSQL's own tools, on this machine, in turn: `cargo bench` prints ratios of medians in Markdown.
//!
//! Not a test: nothing here fails for being slow. `WALSHIP_BENCH_SECONDS` is the length of one run (default 5),
//! `WALSHIP_BENCH_ROUNDS` how many there are of each (default 3). Both sides fsync, and while one is measured the other
//! is idle; the order changes with every round, so that a machine that gets slower is fair to both. Names of modules as
//! arguments (`cargo bench --bench bench -- takeovers rejoins`) measure these alone.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

#[path = "../it/harness/mod.rs"]
#[allow(unused_imports, reason = "the tests need more of it")]
mod harness;

/// Transactions per second and commit latency, level by level.
mod commits;
/// Base backups.
mod copies;
/// A primary with two standbys by PostgreSQL's own replication, and one with two by walship's.
mod pairs;
/// A primary that diverged comes back.
mod rejoins;
/// Medians, ratios, and the table they are printed in.
mod table;
/// A standby takes over, and a client writes.
mod takeovers;
/// From the acknowledgement of a commit to its row on the standby.
mod visible;

use std::time::Duration;

use harness::Test;
use pairs::Pairs;
use table::Table;

/// How much is measured.
#[derive(Clone, Copy)]
struct Effort {
    /// One run.
    lasting: Duration,
    /// Runs of each side.
    rounds: usize,
}

impl Effort {
    fn from_environment() -> Effort {
        let number = |name: &str, default: u64| {
            std::env::var(name).map_or(default, |value| value.parse().expect(name))
        };
        let lasting = Duration::from_secs(number("WALSHIP_BENCH_SECONDS", 5));
        Effort { lasting, rounds: number("WALSHIP_BENCH_ROUNDS", 3) as usize }
    }
}

#[tokio::main]
async fn main() {
    let effort = Effort::from_environment();
    // cargo adds a flag of its own.
    let named: Vec<String> = std::env::args().skip(1).filter(|name| !name.starts_with("--")).collect();
    let wanted = |module: &str| named.is_empty() || named.iter().any(|name| name == module);
    let test = Test::new();
    let mut pairs = Pairs::new(&test).await;
    let mut table = Table::default();
    if wanted("copies") {
        copies::measure(&test, &pairs, effort, &mut table).await;
    }
    if wanted("visible") {
        visible::measure(&pairs, effort, &mut table).await;
    }
    if wanted("commits") {
        commits::measure(&mut pairs, effort, &mut table).await;
    }
    let link = pairs.link().await;
    if wanted("takeovers") {
        takeovers::measure(&mut pairs, effort, &mut table).await;
    }
    if wanted("rejoins") {
        rejoins::measure(&mut pairs, &test.folder().join("copy"), effort, &mut table).await;
    }
    println!("{table}");
    println!("WAL of all this on walship's link to one standby: {link}.");
}
