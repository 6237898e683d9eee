//! `walship lag`: how far the standbys are behind, for people, cron and monitoring.

use anyhow::Context;
use clap::ValueEnum;

use super::exit::{self, Exit};
use super::output;
use crate::fault::{Outcome, WithFault};
use crate::pg::Conninfo;
use crate::pg::sql::Sql;
use crate::report::lag::{self, LagReport};
use crate::report::threshold::{Level, Limits, Threshold};
use crate::report::{Status, bare, json, nagios, prometheus, table};

/// Show how far each standby is behind, and judge it by thresholds
///
/// Ship (getting WAL across), flush (having it on disk) and replay (showing it to readers) are told apart. Behind in
/// time is the age of the oldest WAL that a standby lacks, so an idle primary's standby is 0s behind. While a link is
/// cut, `>=` marks what is at least so; what is not known is UNKNOWN, never 0. What a person must act on at once, such
/// as a store that is full, is CRITICAL whatever the thresholds.
#[derive(clap::Args, Clone, Debug)]
#[command(after_long_help = exit::explained(&[
    (0, "ok"),
    (1, "warning"),
    (2, "critical"),
    (3, "unknown, or wrong usage"),
], &[
    ("From cron or monitoring, one line:", "walship lag --warn 64MiB,30s --crit 1GiB,5m"),
    ("For people:", "walship lag --format table"),
    ("A PostgreSQL without a sidecar:", "walship lag --dsn 'host=db2 user=monitor dbname=postgres'"),
    ("For Prometheus' textfile collector:",
     "walship lag --format prometheus > /var/lib/node_exporter/walship.prom"),
]))]
pub struct Args {
    /// Warn beyond this size, this duration, or either, such as 64MiB,30s.
    #[arg(long, value_name = "SIZE,TIME")]
    pub warn: Option<Threshold>,
    /// Critical beyond this size, this duration, or either, such as 1GiB,5m.
    #[arg(long, value_name = "SIZE,TIME")]
    pub crit: Option<Threshold>,
    /// How to print it.
    #[arg(long, value_enum, default_value_t = Format::Nagios)]
    pub format: Format,
    /// Ask this PostgreSQL instead of the sidecar, a primary or a standby; bytes are known then, time only where
    /// nothing is lacking
    #[arg(long, value_name = "CONNINFO")]
    pub dsn: Option<String>,
}

/// How to print lag.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Aligned columns.
    Table,
    /// One JSON object.
    Json,
    /// One line with performance data.
    Nagios,
    /// Text for a Prometheus textfile collector.
    Prometheus,
}

/// Prints lag, from a status that `fetch` brings from the sidecar or from a PostgreSQL by itself.
pub async fn run(args: &Args, fetch: impl AsyncFnOnce() -> anyhow::Result<Status>) -> anyhow::Result<Exit> {
    match report(args, fetch).await {
        Ok((text, exit)) => output::print(&text).map(|()| exit),
        // Monitoring reads the standard output alone.
        Err(error) if args.format == Format::Nagios => {
            output::print(&nagios::failed(&format!("{error:#}")))?;
            Ok(Exit::Found(Level::Unknown))
        }
        Err(error) => Err(error),
    }
}

async fn report(
    args: &Args,
    fetch: impl AsyncFnOnce() -> anyhow::Result<Status>,
) -> anyhow::Result<(String, Exit)> {
    let limits = Limits::new(args.warn, args.crit).outcome(Outcome::Usage)?;
    let report = match &args.dsn {
        Some(dsn) => from_postgres(dsn).await?,
        None => lag::of(&fetch().await?),
    };
    render(&report, &limits, args.format)
}

async fn from_postgres(dsn: &str) -> anyhow::Result<LagReport> {
    let conninfo = Conninfo::parse(dsn).outcome(Outcome::Usage)?;
    let sql = Sql::connect(&conninfo).await?;
    bare::lag(&sql, &conninfo.endpoint().to_string()).await.context("read the lag from PostgreSQL")
}

/// Lag in one of its forms, and the exit code that goes with it.
pub fn render(report: &LagReport, limits: &Limits, format: Format) -> anyhow::Result<(String, Exit)> {
    let text = match format {
        Format::Table => table::lag(report, limits),
        Format::Json => json::lag(report, limits).context("render the lag as JSON")?,
        Format::Nagios => nagios::render(report, limits),
        Format::Prometheus => prometheus::lag(report),
    };
    Ok((text, Exit::Found(report.level(limits))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args as _, FromArgMatches};

    fn parse(line: &[&str]) -> Result<Args, clap::Error> {
        let command = Args::augment_args(clap::Command::new("lag"));
        Args::from_arg_matches(&command.try_get_matches_from([&["lag"], line].concat())?)
    }

    #[test]
    fn a_threshold_that_cannot_be_read_is_explained() {
        let error = parse(&["--warn", "64M"]).unwrap_err().to_string();
        assert!(error.contains("say `64MiB`"), "{error}");
        let args = parse(&["--warn", "64MiB,30s", "--crit", "5m"]).unwrap();
        assert_eq!((args.warn.unwrap().bytes, args.crit.unwrap().bytes), (Some(64 << 20), None));
    }

    #[tokio::test]
    async fn a_sidecar_that_does_not_answer_is_unknown_on_standard_output() {
        let args = parse(&[]).unwrap();
        let exit = run(&args, async || Err(anyhow::anyhow!("no control socket"))).await.unwrap();
        assert_eq!(exit.code(), 3);
        let args = parse(&["--format", "json"]).unwrap();
        assert!(run(&args, async || Err(anyhow::anyhow!("no control socket"))).await.is_err());
    }

    #[tokio::test]
    async fn swapped_thresholds_are_wrong_usage() {
        let args = parse(&["--warn", "1GiB", "--crit", "1MiB", "--format", "table"]).unwrap();
        let error = run(&args, async || Err(anyhow::anyhow!("not reached"))).await.unwrap_err();
        assert_eq!(crate::fault::Fault::outcome_of(&error), Outcome::Usage);
    }
}
