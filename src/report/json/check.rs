//! What `walship check` found, for programs: one way only.

use serde::Serialize;

use crate::report::check::{Finding, Mend, worst};

#[derive(Serialize)]
struct CheckJson<'a> {
    level: String,
    findings: Vec<FindingJson<'a>>,
}

#[derive(Serialize)]
struct FindingJson<'a> {
    level: String,
    what: &'a str,
    found: &'a str,
    mends: Vec<MendJson<'a>>,
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum MendJson<'a> {
    /// For a superuser, on the primary.
    Sql {
        sql: &'a str,
    },
    /// For a superuser, on this server.
    Setting {
        sql: String,
        restart: bool,
    },
    Command {
        command: &'a str,
    },
    Advice {
        text: &'a str,
    },
}

/// The findings as indented JSON with a line end.
pub fn check(findings: &[Finding]) -> Result<String, serde_json::Error> {
    let level = worst(findings).name().to_lowercase();
    let findings = findings.iter().map(FindingJson::from).collect();
    let mut text = serde_json::to_string_pretty(&CheckJson { level, findings })?;
    text.push('\n');
    Ok(text)
}

impl<'a> From<&'a Finding> for FindingJson<'a> {
    fn from(finding: &'a Finding) -> FindingJson<'a> {
        FindingJson {
            level: finding.level.name().to_lowercase(),
            what: &finding.what,
            found: &finding.found,
            mends: finding.mends.iter().map(MendJson::from).collect(),
        }
    }
}

impl<'a> From<&'a Mend> for MendJson<'a> {
    fn from(mend: &'a Mend) -> MendJson<'a> {
        match mend {
            Mend::Sql(sql) => MendJson::Sql { sql },
            Mend::Setting { restart, .. } => {
                MendJson::Setting { sql: mend.alter_system().unwrap_or_default(), restart: *restart }
            }
            Mend::Command(command) => MendJson::Command { command },
            Mend::Advice(text) => MendJson::Advice { text },
        }
    }
}
