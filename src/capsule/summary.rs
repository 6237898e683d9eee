//! Lines of `pg_waldump`, counted. Pure; foreign text, of which nothing is believed but what it counts.

use std::collections::BTreeMap;
use std::fmt;

/// Relations and resource managers that are told apart; those beyond are counted together.
const RELATIONS_MAX: usize = 1000;
const MANAGERS_MAX: usize = 256;

/// What was in the lines.
#[derive(Default)]
pub struct Summary {
    records: u64,
    commits: u64,
    first_commit: Option<String>,
    last_commit: Option<String>,
    aborts: u64,
    managers: Counts,
    relations: Counts,
}

/// Names with how often each came.
#[derive(Default)]
struct Counts {
    of: BTreeMap<String, u64>,
    others: u64,
}

impl Counts {
    fn add(&mut self, name: &str, most: usize) {
        if let Some(count) = self.of.get_mut(name) {
            *count += 1;
        } else if self.of.len() < most {
            self.of.insert(name.to_owned(), 1);
        } else {
            self.others += 1;
        }
    }
}

impl Summary {
    /// Counts one line; what is no record is passed over.
    pub fn take(&mut self, line: &str) {
        let Some(manager) = line.strip_prefix("rmgr: ").and_then(|rest| rest.split_whitespace().next())
        else {
            return;
        };
        self.records += 1;
        self.managers.add(manager, MANAGERS_MAX);
        let Some((_, description)) = line.split_once(" desc: ") else { return };
        if manager == "Transaction" {
            self.take_outcome(description);
        }
        let mut seen: Vec<&str> =
            description.split("rel ").skip(1).map(node_of).filter(|node| is_node(node)).collect();
        seen.sort_unstable();
        seen.dedup();
        for node in seen {
            self.relations.add(node, RELATIONS_MAX);
        }
    }

    fn take_outcome(&mut self, description: &str) {
        let verb = description.split_whitespace().next().unwrap_or_default();
        match verb {
            "COMMIT" | "COMMIT_PREPARED" => {
                self.commits += 1;
                let rest = description[verb.len()..].split(';').next().unwrap_or_default().trim();
                // A prepared one is named first, as in `733: 2026-…`.
                let time = rest.split_once(": ").map_or(rest, |(_, time)| time).to_owned();
                self.first_commit.get_or_insert_with(|| time.clone());
                self.last_commit = Some(time);
            }
            "ABORT" | "ABORT_PREPARED" => self.aborts += 1,
            _ => {}
        }
    }
}

/// `tablespace/database/file` at the start of a text.
fn node_of(text: &str) -> &str {
    &text[..text.find(|c: char| !(c.is_ascii_digit() || c == '/')).unwrap_or(text.len())]
}

fn is_node(node: &str) -> bool {
    node.split('/').filter(|part| !part.is_empty()).count() == 3
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Records: {}", self.records)?;
        match (&self.first_commit, &self.last_commit) {
            (Some(first), Some(last)) => {
                writeln!(
                    f,
                    "Transactions that committed: {}, the first at {first}, the last at {last}",
                    self.commits
                )?;
            }
            _ => writeln!(f, "Transactions that committed: none")?,
        }
        writeln!(f, "Transactions that were rolled back: {}", self.aborts)?;
        writeln!(f, "\nRecords of each resource manager:")?;
        list(f, &self.managers)?;
        writeln!(f, "\nRelations touched, as tablespace/database/file, with the records that touch them:")?;
        list(f, &self.relations)?;
        if !self.relations.of.is_empty() {
            writeln!(
                f,
                "\nIn that database (SELECT datname FROM pg_database WHERE oid = DATABASE) a file that is still in use there is \
                 named by\nSELECT pg_filenode_relation(TABLESPACE, FILE), with 0 for the tablespace 1663."
            )?;
        }
        Ok(())
    }
}

/// The most frequent first.
fn list(f: &mut fmt::Formatter<'_>, counts: &Counts) -> fmt::Result {
    let mut all: Vec<_> = counts.of.iter().collect();
    all.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), name.as_str()));
    for (name, count) in all {
        writeln!(f, "  {name:<24} {count}")?;
    }
    if counts.others > 0 {
        writeln!(f, "  {:<24} {}", "others", counts.others)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "\
rmgr: Heap        len (rec/tot):     59/    59, tx:        733, lsn: 0/0150B5A8, prev 0/0150B570, desc: INSERT off 1 flags 0x08, blkref #0: rel 1663/5/16384 blk 0
rmgr: Btree       len (rec/tot):     64/    64, tx:        733, lsn: 0/0150B5E8, prev 0/0150B5A8, desc: SPLIT_R, blkref #0: rel 1663/5/16387 blk 1, blkref #1: rel 1663/5/16387 blk 2
rmgr: Transaction len (rec/tot):     34/    34, tx:        733, lsn: 0/0150B628, prev 0/0150B5E8, desc: COMMIT 2026-11-25 23:46:32.123456 UTC; inval msgs: catcache 80 rel 1259
rmgr: Heap        len (rec/tot):     59/    59, tx:        734, lsn: 0/0150B650, prev 0/0150B628, desc: HOT_UPDATE off 1 xmax 734, blkref #0: rel 1663/5/16384 fork fsm blk 0
rmgr: Transaction len (rec/tot):     34/    34, tx:        734, lsn: 0/0150B690, prev 0/0150B650, desc: ABORT 2026-11-25 23:46:33 UTC
rmgr: Transaction len (rec/tot):     66/    66, tx:          0, lsn: 0/0150B6B8, prev 0/0150B690, desc: COMMIT_PREPARED 735: 2026-11-25 23:46:34.5 UTC
rmgr: Standby
pg_waldump: something that it says
";

    #[test]
    fn transactions_relations_and_managers_are_counted() {
        let mut summary = Summary::default();
        LINES.lines().for_each(|line| summary.take(line));
        let text = summary.to_string();
        for part in [
            "Records: 7\n",
            "committed: 2, the first at 2026-11-25 23:46:32.123456 UTC, the last at 2026-11-25 23:46:34.5 UTC\n",
            "rolled back: 1\n",
            "  Transaction              3\n  Heap                     2\n  Btree                    1\n",
            "  1663/5/16384             2\n  1663/5/16387             1\n\nIn that database",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    }

    #[test]
    fn more_relations_than_are_told_apart_are_counted_together() {
        let mut summary = Summary::default();
        for file in 0..RELATIONS_MAX + 5 {
            summary.take(&format!("rmgr: Heap x, desc: INSERT, blkref #0: rel 1663/5/{file} blk 0"));
        }
        let text = summary.to_string();
        assert!(text.contains("  others                   5\n"), "{text}");
        assert_eq!(summary.relations.of.len(), RELATIONS_MAX);
        assert!(Summary::default().to_string().contains("committed: none"));
    }
}
