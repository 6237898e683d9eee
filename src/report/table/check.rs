//! What `walship check` found, and below it everything that mends it, ready to be pasted.

use std::fmt::Write;

use super::Grid;
use crate::report::check::remedy::Remedy;
use crate::report::check::{Facts, Finding};
use crate::report::threshold::Level;

/// The findings, worst last, and the remedy.
pub fn check(facts: &Facts, findings: &[Finding]) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.level);
    let mut grid = Grid::headless();
    for finding in sorted {
        grid.row(vec![finding.level.name().to_owned(), finding.what.clone(), finding.found.clone()]);
    }
    let mut text = grid.render();
    let remedy = Remedy::of(findings);
    let on_primary = facts.server.as_ref().is_ok_and(|server| server.in_recovery);
    let sql_place = if on_primary { ", on the primary, for this is a standby" } else { "" };
    let database = &facts.database;
    section(&mut text, &format!("SQL for a superuser in the database {database}{sql_place}"), &remedy.sql);
    let restart = if remedy.restart { "; then restart PostgreSQL" } else { "" };
    section(&mut text, &format!("SQL for a superuser of this server{restart}"), &remedy.settings);
    section(&mut text, "Commands for the account of PostgreSQL on this host", &remedy.commands);
    section(&mut text, "Advice", &remedy.advice);
    let _ = writeln!(text, "\n{}", summary(findings));
    text
}

fn section(text: &mut String, head: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{head}:");
    for line in lines {
        let _ = writeln!(text, "  {line}");
    }
}

/// `2 critical, 1 warning, 20 ok`.
fn summary(findings: &[Finding]) -> String {
    let levels = [Level::Critical, Level::Warning, Level::Unknown, Level::Ok];
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let parts = levels.map(|level| (count(level), level)).into_iter().filter(|&(count, _)| count > 0);
    parts
        .map(|(count, level)| format!("{count} {}", level.name().to_lowercase()))
        .collect::<Vec<_>>()
        .join(", ")
}
