//! `walship status`: the topology, positions and traffic as one node sees them.

use std::io::{IsTerminal, stdout};
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;

use super::exit::{self, Exit};
use super::output;
use crate::report::{Status, json, table};

/// Moves the cursor home and clears the screen (ECMA-48).
const CLEAR_SCREEN: &str = "\x1b[H\x1b[2J";

/// Show the nodes and how far each is, as this node's sidecar knows it
///
/// The positions of all nodes, what the store holds and for whom, and the raw and compressed bytes that went over each
/// link. Positions that this node cannot know are unknown, not zero.
#[derive(clap::Args, Clone, Debug)]
#[command(after_long_help = exit::explained(&[
    (0, "the status is printed"),
    (1, "the sidecar does not answer"),
    (2, "wrong usage"),
], &[
    ("Now, and again every two seconds:", "walship status\n    walship status --watch"),
    ("For programs:", "walship status --format json"),
]))]
pub struct Args {
    /// How to print it.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Print it again every so many seconds, until interrupted.
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    pub watch: Option<u64>,
}

/// How to print a status.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Aligned columns.
    Table,
    /// The whole status as JSON.
    Json,
}

/// Prints the status that `fetch` brings from the sidecar, once or until interrupted.
pub async fn run(args: &Args, fetch: impl AsyncFn() -> anyhow::Result<Status>) -> anyhow::Result<Exit> {
    let Some(seconds) = args.watch else {
        output::print(&render(&fetch().await?, args.format)?)?;
        return Ok(Exit::Done);
    };
    let mut tick = tokio::time::interval(Duration::from_secs(seconds));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        // A sidecar that restarts is worth watching too.
        let text = match fetch().await {
            Ok(status) => render(&status, args.format)?,
            Err(error) => format!("{error:#}\n"),
        };
        let clear = if stdout().is_terminal() { CLEAR_SCREEN } else { "" };
        output::print(&format!("{clear}{text}"))?;
    }
}

/// A status in one of its forms.
pub fn render(status: &Status, format: Format) -> anyhow::Result<String> {
    match format {
        Format::Table => Ok(table::status(status)),
        Format::Json => json::render(status).context("render the status as JSON"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args as _, FromArgMatches};

    fn parse(line: &[&str]) -> Result<Args, clap::Error> {
        let command = Args::augment_args(clap::Command::new("status"));
        Args::from_arg_matches(&command.try_get_matches_from([&["status"], line].concat())?)
    }

    #[test]
    fn watch_takes_a_number_or_none() {
        assert_eq!(parse(&[]).unwrap().watch, None);
        assert_eq!(parse(&["--watch"]).unwrap().watch, Some(2));
        assert_eq!(parse(&["--watch", "10"]).unwrap().watch, Some(10));
        assert!(parse(&["--watch", "0"]).is_err());
    }
}
