//! How long after its commit a row is visible on a standby, measured from outside.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::cluster::connect;

/// The table that is written and looked at.
pub const CREATE_TABLE: &str = "CREATE TABLE IF NOT EXISTS walship_probe (id bigint PRIMARY KEY)";

/// Longer than this and it is no latency any more.
const VISIBLE_WITHIN: Duration = Duration::from_secs(30);

/// The measurements, sorted.
#[derive(Clone, Default, Debug)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// Commits on the primary, one after another for so long, and looks at the standby until each is visible. The
    /// clock runs from the acknowledgement of the commit to the standby's answer that shows it.
    pub async fn measure(primary: &str, standby: &str, lasting: Duration) -> anyhow::Result<Latencies> {
        let (primary, standby) = (connect(primary).await?, connect(standby).await?);
        let insert = primary.prepare("INSERT INTO walship_probe VALUES ($1)").await?;
        let newest = standby.prepare("SELECT coalesce(max(id), 0) FROM walship_probe").await?;
        let began = Instant::now();
        let mut all = Vec::new();
        for id in 1_i64.. {
            if began.elapsed() >= lasting {
                break;
            }
            primary.execute(&insert, &[&id]).await.context("commit on the primary")?;
            let committed = Instant::now();
            while standby.query_one(&newest, &[]).await.context("look at the standby")?.get::<_, i64>(0) < id
            {
                let waited = committed.elapsed();
                ensure!(waited < VISIBLE_WITHIN, "a commit is not visible on the standby after {waited:?}");
            }
            all.push(committed.elapsed());
        }
        all.sort_unstable();
        Ok(Latencies(all))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// What so many per cent of them do not exceed; zero when there is none.
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let of = |count: u64| Latencies((1..=count).map(Duration::from_millis).collect());
        let shown = |count| [50, 99, 100].map(|percent| of(count).percentile(percent).as_millis());
        assert_eq!(shown(200), [100, 198, 200]);
        assert_eq!(shown(1), [1, 1, 1]);
        assert_eq!(shown(0), [0, 0, 0]);
    }
}
