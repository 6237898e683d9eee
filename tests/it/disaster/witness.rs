//! Somebody who looks at once, on the standbys that count, for what was acknowledged at `remote_apply`.

use anyhow::ensure;
use walship::demo::cluster::connect;

/// A client of the primary that reads on the standbys.
pub struct Witness {
    /// The primary's.
    pub conninfo: String,
    /// Those that count.
    pub standbys: Vec<String>,
    /// How many of them must show a row that is acknowledged.
    pub needed: usize,
    /// Its rows' mark.
    pub round: u32,
}

impl Witness {
    /// Commits rows until the primary is gone, and looks for each on the standbys that count, once it is acknowledged.
    /// The rows that were.
    pub async fn run(self) -> anyhow::Result<Vec<i32>> {
        let mut seen = Vec::new();
        let client = connect(&self.conninfo).await?;
        client.batch_execute("SET synchronous_commit = remote_apply").await?;
        let mut standbys = Vec::new();
        for conninfo in &self.standbys {
            standbys.push(connect(conninfo).await?);
        }
        for number in 0.. {
            let insert = format!("INSERT INTO witness VALUES ({}, {number})", self.round);
            if client.batch_execute(&insert).await.is_err() {
                break;
            }
            seen.push(number);
            let select = format!("SELECT FROM witness WHERE round = {} AND number = {number}", self.round);
            let mut hidden = 0;
            for standby in &standbys {
                // One that was killed shows nothing, and may have shown it.
                hidden += usize::from(standby.query(&select, &[]).await.is_ok_and(|rows| rows.is_empty()));
            }
            let shown = standbys.len() - hidden;
            ensure!(shown >= self.needed, "row {number} is acknowledged, and {hidden} standbys lack it");
        }
        Ok(seen)
    }
}
