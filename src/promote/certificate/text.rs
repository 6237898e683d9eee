//! A certificate for people.

use std::fmt;

use super::{Certificate, MemberThen, PartThen, PolicyOfCommits, VoteThen};
use crate::promote::plan::Fence;

/// How wide it is, and where the fields' texts begin.
const COLUMNS: usize = 75;
const TEXTS_BEGIN: usize = 12;

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.switchover, self.by_hand) {
            (true, _) => "handing over",
            (false, false) => "promotion",
            (false, true) => "promotion by hand, adopted",
        };
        let forced = if self.forced { ", forced" } else { "" };
        writeln!(f, "certificate of epoch {}: {}, {what}{forced}", self.epoch, self.node)?;
        let mut field = |name: &str, text: &str| write!(f, "{}", wrapped(name, TEXTS_BEGIN, text));
        field("verdict", &self.verdict.text)?;
        let completed = self.completed_at.map_or("not seen yet".to_owned(), |at| at.to_string());
        let Certificate { began_at, committed_at, .. } = self;
        field("times", &format!("asked {began_at}, committed {committed_at}, promoted {completed}"))?;
        field("timelines", &self.timelines())?;
        field("fence", &self.fenced())?;
        let pulled = self.salvage.as_ref();
        let pulled =
            pulled.map(|pulled| format!("from {}: WAL from {} to {}", pulled.node, pulled.from, pulled.to));
        field("salvage", pulled.as_deref().unwrap_or("none"))?;
        let policy = self.policy.as_ref().map(ToString::to_string);
        field("policy", policy.as_deref().unwrap_or("async: commits waited for nobody"))?;
        if let Some(limit) = self.max_loss_bytes {
            field("max-loss", &format!("{limit} bytes"))?;
        }
        for member in &self.members {
            field("member", &member.to_string())?;
        }
        let name = if self.forced { "accepted" } else { "warning" };
        self.accepted.iter().try_for_each(|warning| field(name, warning))
    }
}

/// A name and a text beside it, broken between words.
pub(in crate::promote) fn wrapped(name: &str, texts_begin: usize, text: &str) -> String {
    let mut lines = format!("  {name:<texts_begin$}");
    let mut column = 2 + texts_begin;
    for (index, word) in text.split(' ').enumerate() {
        let width = word.chars().count();
        if index > 0 && column + 1 + width > COLUMNS {
            lines.push_str(&format!("\n  {:texts_begin$}", ""));
            column = 2 + texts_begin;
        } else if index > 0 {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += width;
    }
    lines + "\n"
}

impl Certificate {
    fn timelines(&self) -> String {
        let Certificate { old_timeline, end_lsn, .. } = self;
        match (self.new_timeline, self.switch_lsn) {
            (Some(new), Some(lsn)) => format!("{old_timeline} to {new} at {lsn}; the log ended at {end_lsn}"),
            _ => format!("{old_timeline}, whose log ended at {end_lsn}; the new one was not seen yet"),
        }
    }

    fn fenced(&self) -> String {
        let old = self.old_primary.as_deref().unwrap_or("no primary that is known");
        let at = self.fence.at.map_or(String::new(), |at| format!(", stood still at {at}"));
        match self.fence.by {
            Fence::Needless => "there was no primary to stop".to_owned(),
            Fence::Sidecar => format!("{old}, by its own sidecar{at}"),
            Fence::Command => format!("{old}, by the fence command{at}"),
            Fence::Nobody => format!("{old} was not stopped: what it still accepted is lost"),
        }
    }
}

impl fmt::Display for PolicyOfCommits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, stall limit {}: {} of {} ({}) had to have a commit; {} stood still, {} are enough; ",
            self.ack,
            self.stall_limit,
            self.needed,
            self.seats.len(),
            self.seats.join(", "),
            self.frozen,
            self.enough
        )?;
        match self.reported {
            Some(reported) if reported.is_armed => {
                write!(f, "reported armed at {}, released {}", reported.at, reported.released_lsn)?;
            }
            Some(reported) => write!(f, "reported at {} that commits went on unprotected", reported.at)?,
            None => write!(f, "whether it was armed is unknown")?,
        }
        if self.is_outdated { write!(f, "; a newer policy was known to somebody") } else { Ok(()) }
    }
}

impl fmt::Display for MemberThen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = match self.part {
            PartThen::Primary => "primary",
            PartThen::PrimaryWriting => "primary, writing",
            PartThen::PrimaryStopped => "primary, stopped",
            PartThen::Standby => "standby",
            PartThen::Superseded => "superseded",
        };
        let vote = match (self.vote, &self.refusal) {
            (VoteThen::Candidate, _) => "promoted".to_owned(),
            (VoteThen::Voted, _) => "voted".to_owned(),
            (VoteThen::Refused, why) => format!("refused: {}", why.as_deref().unwrap_or("unknown why")),
            (VoteThen::Silent, _) => "not heard".to_owned(),
        };
        write!(f, "{} ({part}) {vote}", self.node)?;
        let is_frozen = matches!(self.vote, VoteThen::Candidate | VoteThen::Voted);
        let known = |what: Option<u64>| what.map_or("unknown".to_owned(), |number| number.to_string());
        let age = self.age_seconds.map(|seconds| format!("{seconds} s before"));
        let age = age.unwrap_or_else(|| "unknown when".to_owned());
        match self.lsn {
            Some(lsn) => write!(f, "; {} {lsn}", if is_frozen { "frozen at" } else { "last seen at" })?,
            None => write!(f, "; position unknown, last heard")?,
        }
        if let Some(timeline) = self.timeline {
            write!(f, " of timeline {timeline}")?;
        }
        write!(f, "{} {age}", if self.lsn.is_some() { "," } else { "" })?;
        write!(f, "; promised {}, committed {}", known(self.promised_epoch), known(self.committed_epoch))
    }
}
