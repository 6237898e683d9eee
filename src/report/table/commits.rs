//! What commits wait for, for people.

use super::{Grid, position, unknown};
use crate::pg::{Level, Levels, Lsn};
use crate::report::commits::{Commits, SetPolicy, Setting, listed};
use crate::report::{Status, warnings};

/// What `walship sync` shows: the policy, who counts, and what is missing.
pub fn commits(status: &Status) -> String {
    let Some(commits) = &status.commits else {
        return "no policy is known here yet\n".to_owned();
    };
    let mut grid = Grid::headless();
    for (name, value) in facts(commits) {
        grid.row(vec![name.to_owned(), value]);
    }
    let mut text = grid.render();
    let seats = seats(commits);
    if !seats.is_empty() {
        text.push('\n');
        text += &seats.render();
    }
    for (level, sentences) in [("critical", warnings::alarms(status)), ("warning", warnings::of(status))] {
        for sentence in sentences {
            text += &format!("\n{level}: {sentence}");
        }
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// The policy, line by line.
pub(super) fn facts(commits: &Commits) -> Vec<(&'static str, String)> {
    let policy = |policy: &SetPolicy| match policy.is_async {
        true => format!("wait for nobody (async), policy {}", policy.serial),
        false => {
            let SetPolicy { text, stall_limit, serial, .. } = policy;
            format!("wait for {text}, stall limit {stall_limit}, policy {serial}")
        }
    };
    let none = || "wait: no policy is set yet, and nothing is released".to_owned();
    let mut facts = vec![("commits", commits.policy.as_ref().map_or_else(none, policy))];
    if let Some(set) = commits.policy.as_ref().filter(|set| !set.is_async) {
        facts.push(("", format!("members {}", listed(&set.names))));
    }
    if let Some(setting) = &commits.setting {
        let Setting { standby_names, commit, .. } = setting;
        facts.push((
            "",
            format!("synchronous_standby_names = '{standby_names}', synchronous_commit = {commit}"),
        ));
    }
    if let Some(pending) = &commits.pending {
        facts.push(("", format!("pending: {}", policy(&pending.policy))));
    }
    facts
}

/// Who counts, how far each is, and what that releases.
pub(super) fn seats(commits: &Commits) -> Grid {
    let mut grid = Grid::new(["COMMITS WAIT FOR", "COUNTS", "WRITTEN", "FLUSHED", "REPLAYED", "POLICY"]);
    let positions = |at: &Levels<Option<Lsn>>| Level::ALL.map(|level| position(*at.get(level)));
    for seat in &commits.seats {
        let serial = if seat.policy_serial == 0 { unknown() } else { seat.policy_serial.to_string() };
        grid.row(
            [vec![seat.name.clone(), seat.part.clone()], positions(&seat.at).into(), vec![serial]].concat(),
        );
    }
    if let Some(released) = commits.released.as_ref().filter(|_| !commits.seats.is_empty()) {
        grid.row([vec!["released".to_owned(), String::new()], positions(released).into()].concat());
    }
    grid
}
