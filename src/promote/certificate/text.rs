//! A certificate for people.

use std::fmt;

use super::{Certificate, MemberThen, PartThen, PolicyOfCommits, VoteThen};
use crate::promote::plan::Fence;

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.switchover, self.by_hand) {
            (true, _) => "handing over",
            (false, false) => "promotion",
            (false, true) => "promotion by hand, adopted",
        };
        let forced = if self.forced { ", forced" } else { "" };
        writeln!(f, "certificate of epoch {}: {}, {what}{forced}", self.epoch, self.node)?;
        writeln!(f, "  verdict     {}", self.verdict.text)?;
        let completed = self.completed_at.map_or("not seen yet".to_owned(), |at| at.to_string());
        writeln!(
            f,
            "  times       asked {}, committed {}, promoted {completed}",
            self.began_at, self.committed_at
        )?;
        match (self.new_timeline, self.switch_lsn) {
            (Some(new), Some(lsn)) => {
                writeln!(
                    f,
                    "  timelines   {} to {new} at {lsn}; the log ended at {}",
                    self.old_timeline, self.end_lsn
                )?;
            }
            _ => writeln!(
                f,
                "  timelines   {}, whose log ended at {}; the new one was not seen yet",
                self.old_timeline, self.end_lsn
            )?,
        }
        writeln!(f, "  fence       {}", self.fenced())?;
        match &self.salvage {
            Some(pulled) => {
                writeln!(f, "  salvage     from {}: WAL from {} to {}", pulled.node, pulled.from, pulled.to)?
            }
            None => writeln!(f, "  salvage     none")?,
        }
        match &self.policy {
            Some(policy) => writeln!(f, "  policy      {policy}")?,
            None => writeln!(f, "  policy      async: commits waited for nobody")?,
        }
        for member in &self.members {
            writeln!(f, "  member      {member}")?;
        }
        for warning in &self.accepted {
            writeln!(f, "  {}    {warning}", if self.forced { "accepted" } else { "warning " })?;
        }
        if let Some(limit) = self.max_loss_bytes {
            writeln!(f, "  max-loss    {limit} bytes")?;
        }
        Ok(())
    }
}

impl Certificate {
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
        match self.lsn {
            Some(lsn) => write!(f, "; {} {lsn}", if is_frozen { "frozen at" } else { "last seen at" })?,
            None => write!(f, "; position unknown")?,
        }
        let known = |what: Option<u64>| what.map_or("unknown".to_owned(), |number| number.to_string());
        if let Some(timeline) = self.timeline {
            write!(f, " of timeline {timeline}")?;
        }
        match self.age_seconds {
            Some(seconds) => write!(f, ", {seconds} s before")?,
            None => write!(f, ", unknown when")?,
        }
        write!(f, "; promised {}, committed {}", known(self.promised_epoch), known(self.committed_epoch))
    }
}
