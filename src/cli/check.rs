//! `walship check`: whether everything is as it must be, and what mends it.

use anyhow::Context;
use clap::ValueEnum;

use super::exit::{self, Exit};
use super::output;
use crate::daemon::control::Client;
use crate::report::check::gather::{self, Subject};
use crate::report::check::{self, Facts, Sidecar};
use crate::report::{json, table};

/// Look whether everything is as it must be, and print what mends the rest
///
/// Looks at PostgreSQL with its role, grants and settings, at the folders, certificates and addresses, and at what the
/// sidecar finds wrong. For what is wrong it prints the SQL, the settings and the commands. It changes nothing.
#[derive(clap::Args, Clone, Debug)]
#[command(after_long_help = exit::explained(&[
    (0, "ok"),
    (1, "warning"),
    (2, "critical"),
    (3, "unknown, or wrong usage"),
], &[
    ("On each host, before the sidecar runs and whenever something is odd:", "walship check"),
]))]
pub struct Args {
    /// How to print it.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// How to print what was found.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// For people.
    Table,
    /// One JSON object.
    Json,
}

/// Looks, judges and prints.
pub async fn run(args: &Args, subject: &Subject) -> anyhow::Result<Exit> {
    let facts = gather::facts(subject, sidecar(subject).await).await?;
    let (text, exit) = render(&facts, args.format)?;
    output::print(&text)?;
    Ok(exit)
}

/// What the sidecar says; one that is not there is no error.
async fn sidecar(subject: &Subject) -> Sidecar {
    match Client::connect(&subject.store).await {
        Err(_) => Sidecar::Down,
        Ok(client) => match client.status().await {
            Ok(status) => Sidecar::Up(Box::new(status)),
            Err(error) => Sidecar::Silent(format!("{error:#}")),
        },
    }
}

/// The judgement of what was seen in one of its forms, and the exit code that goes with it.
pub fn render(facts: &Facts, format: Format) -> anyhow::Result<(String, Exit)> {
    let findings = check::evaluate(facts);
    let text = match format {
        Format::Table => table::check(facts, &findings),
        Format::Json => json::check(&findings).context("render the findings as JSON")?,
    };
    Ok((text, Exit::Found(check::worst(&findings))))
}
