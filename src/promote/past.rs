//! All promotions that a node knows of: by their certificates, and by the timelines of its store where there is none.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::certificate::{Certificate, wrapped};
use super::kept::{Entry, Kept};
use crate::clock::Time;
use crate::pg::{Lsn, TimelineId};
use crate::store::State;

/// What a node knows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Past {
    /// Oldest first.
    pub promotions: Vec<Promotion>,
    /// Files that are no certificates, or not the ones that were written.
    pub not_genuine: Vec<NotGenuine>,
    /// How many older certificates were not looked at.
    pub older: usize,
}

/// A file in which no certificate is to be believed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NotGenuine {
    /// Its name.
    pub file: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A promotion.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Promotion {
    /// The epoch that was committed.
    pub epoch: u64,
    /// Who was promoted.
    pub node: String,
    /// When it was committed; what is not known here is `None`.
    pub committed_at: Option<Time>,
    /// The timeline that ended.
    pub old_timeline: Option<TimelineId>,
    /// The one that began; `None` when it was interrupted and gone on with by a later one.
    pub new_timeline: Option<TimelineId>,
    /// Where they parted.
    pub switch_lsn: Option<Lsn>,
    /// What it cost, in words; `None` where its certificate is not here.
    pub verdict: Option<String>,
    /// The whole.
    pub certificate: Option<Certificate>,
}

/// Puts together what a store knows.
pub fn of(state: &State, kept: Kept) -> Past {
    let mut promotions = BTreeMap::new();
    for made in &state.timelines {
        let Some(branch) = &made.branch else { continue };
        let (old_timeline, switch_lsn) = made.parent.unzip();
        let promotion = Promotion {
            epoch: branch.epoch,
            node: branch.node.clone(),
            committed_at: None,
            old_timeline,
            new_timeline: Some(made.timeline),
            switch_lsn,
            verdict: None,
            certificate: None,
        };
        promotions.insert((branch.epoch, branch.node.clone()), promotion);
    }
    let mut not_genuine = Vec::new();
    for Entry { file, found } in kept.entries {
        match found {
            Ok(certificate) => {
                let key = (certificate.epoch, certificate.node.clone());
                promotions.insert(key, Promotion::from(certificate));
            }
            Err(error) => not_genuine.push(NotGenuine { file, reason: error.to_string() }),
        }
    }
    Past { promotions: promotions.into_values().collect(), not_genuine, older: kept.older }
}

impl From<Certificate> for Promotion {
    fn from(certificate: Certificate) -> Promotion {
        Promotion {
            epoch: certificate.epoch,
            node: certificate.node.clone(),
            committed_at: Some(certificate.committed_at),
            old_timeline: Some(certificate.old_timeline),
            new_timeline: certificate.new_timeline,
            switch_lsn: certificate.switch_lsn,
            verdict: Some(certificate.verdict.text.clone()),
            certificate: Some(certificate),
        }
    }
}

impl Past {
    /// The files in which nothing is to be believed.
    pub fn not_genuine(&self) -> impl Iterator<Item = &str> {
        self.not_genuine.iter().map(|file| file.file.as_str())
    }
}

impl fmt::Display for Past {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.older > 0 {
            writeln!(f, "{} older certificates are not shown", self.older)?;
        }
        if self.promotions.is_empty() && self.not_genuine.is_empty() {
            writeln!(f, "no promotion is known here")?;
        }
        self.promotions.iter().try_for_each(|promotion| write!(f, "{promotion}"))?;
        for NotGenuine { file, reason } in &self.not_genuine {
            writeln!(f, "{file}:")?;
            write!(f, "{}", wrapped("", 1, reason))?;
        }
        Ok(())
    }
}

impl fmt::Display for Promotion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.committed_at.map_or("at a time that is not known here".to_owned(), |at| at.to_string());
        let how = match &self.certificate {
            Some(certificate) if certificate.switchover => ", handed over",
            Some(certificate) if certificate.forced => ", forced",
            _ => "",
        };
        write!(f, "epoch {}  {}, {at}{how}", self.epoch, self.node)?;
        match (self.old_timeline, self.new_timeline, self.switch_lsn) {
            (Some(old), Some(new), Some(lsn)) => writeln!(f, ": timeline {old} to {new} at {lsn}")?,
            (_, None, _) => writeln!(f, ": interrupted, and not completed yet, or by a later one")?,
            _ => writeln!(f)?,
        }
        let missing = format!("its certificate is not here: look on {}", self.node);
        write!(f, "{}", wrapped("", 1, self.verdict.as_ref().unwrap_or(&missing)))
    }
}
