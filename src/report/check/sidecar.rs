//! Our sidecar: whether it runs, and what it finds wrong.

use super::{Facts, Finding, Mend, Sidecar};
use crate::report::threshold::Level;
use crate::report::warnings;

const WHAT: &str = "sidecar";

pub fn evaluate(facts: &Facts) -> Vec<Finding> {
    match &facts.sidecar {
        Sidecar::Down => vec![down(facts)],
        Sidecar::Silent(reason) => vec![
            Finding::new(Level::Critical, WHAT, format!("it runs, but gives no status: {reason}"))
                .mended_by(Mend::Advice("Look at its log, and start it again.".to_owned())),
        ],
        Sidecar::Up(status) => {
            let alarms = warnings::alarms(status).into_iter().map(|alarm| (Level::Critical, alarm));
            let warnings = warnings::of(status).into_iter().map(|warning| (Level::Warning, warning));
            let mut findings: Vec<Finding> =
                alarms.chain(warnings).map(|(level, text)| Finding::new(level, WHAT, text)).collect();
            if findings.is_empty() {
                let role = status.node.role.name();
                findings.push(Finding::new(Level::Ok, WHAT, format!("it runs as a {role}, and all is well")));
            }
            findings
        }
    }
}

/// Before a node is one it has no sidecar.
fn down(facts: &Facts) -> Finding {
    match &facts.host.has_state {
        Ok(false) => Finding::new(Level::Ok, WHAT, "this node has none yet"),
        Ok(true) => Finding::new(Level::Critical, WHAT, "it does not run")
            .mended_by(Mend::Advice("Start it: `walship run` goes on in this node's role.".to_owned())),
        Err(reason) => Finding::new(Level::Critical, WHAT, format!("it can't run: {reason}"))
            .mended_by(Mend::Advice("Move the store away, and seed this node anew.".to_owned())),
    }
}
