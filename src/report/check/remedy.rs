//! All that mends the findings, once each, in the order and for the hands that it takes.

use super::{Finding, Mend};

/// What to do, by who does it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Remedy {
    /// SQL about roles and grants, for a superuser on the primary.
    pub sql: Vec<String>,
    /// SQL that changes settings, for a superuser on this server.
    pub settings: Vec<String>,
    /// Whether a setting needs a restart of PostgreSQL.
    pub restart: bool,
    /// Commands for the account of PostgreSQL on this host.
    pub commands: Vec<String>,
    /// Sentences, each with what it is about.
    pub advice: Vec<String>,
}

impl Remedy {
    /// What mends these findings.
    pub fn of(findings: &[Finding]) -> Remedy {
        let mut remedy = Remedy::default();
        for (finding, mend) in
            findings.iter().flat_map(|finding| finding.mends.iter().map(move |mend| (finding, mend)))
        {
            match mend {
                Mend::Sql(sql) => push_new(&mut remedy.sql, sql.clone()),
                Mend::Setting { restart, .. } => {
                    remedy.settings.extend(mend.alter_system());
                    remedy.restart |= restart;
                }
                Mend::Command(command) => push_new(&mut remedy.commands, command.clone()),
                Mend::Advice(text) => push_new(&mut remedy.advice, format!("{}: {text}", finding.what)),
            }
        }
        let reload = !remedy.settings.is_empty() && !remedy.restart;
        remedy.settings.extend(reload.then(|| "SELECT pg_reload_conf();".to_owned()));
        remedy
    }
}

fn push_new(list: &mut Vec<String>, text: String) {
    if !list.contains(&text) {
        list.push(text);
    }
}
