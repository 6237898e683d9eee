//! Whether two servers hold the same rows, table by table.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, bail};

use super::cluster::{connect, rows_of};

/// Logged tables and materialized views that users made.
const TABLES: &str = "SELECT oid::regclass::text FROM pg_class \
     WHERE relkind IN ('r', 'm') AND relpersistence = 'p' AND oid >= 16384 ORDER BY 1";

/// What stands for a table's rows in any order: their number, and the sum of their hashes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableDigest {
    rows: u64,
    hash: String,
}

impl fmt::Display for TableDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows, hash {}", self.rows, self.hash)
    }
}

/// The digest of every table in a database, by name. One snapshot, so that writers don't matter.
pub async fn digest(conninfo: &str) -> anyhow::Result<BTreeMap<String, TableDigest>> {
    let client = connect(conninfo).await?;
    client
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await
        .context("begin a snapshot")?;
    let mut digests = BTreeMap::new();
    for table in rows_of(&client, TABLES).await? {
        let query = format!(
            "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM {table} AS t"
        );
        let rows = rows_of(&client, &query).await?;
        let (count, hash) =
            rows.first().and_then(|row| row.split_once('|')).context("read a table's digest")?;
        digests.insert(table, TableDigest { rows: count.parse()?, hash: hash.to_owned() });
    }
    Ok(digests)
}

/// Compares all tables of two databases. Returns the number of rows that are equal; an error says which tables are
/// not.
pub async fn compare(expected: &str, found: &str) -> anyhow::Result<u64> {
    let (expected, found) = (digest(expected).await?, digest(found).await?);
    let mut different = Vec::new();
    for table in expected.keys().chain(found.keys().filter(|table| !expected.contains_key(*table))) {
        let says = |side: Option<&TableDigest>| side.map_or("not there".to_owned(), TableDigest::to_string);
        if expected.get(table) != found.get(table) {
            different.push(format!(
                "{table}: {} expected, {}",
                says(expected.get(table)),
                says(found.get(table))
            ));
        }
    }
    if !different.is_empty() {
        bail!("{} of {} tables differ:\n{}", different.len(), expected.len(), different.join("\n"));
    }
    Ok(expected.values().map(|digest| digest.rows).sum())
}
