//! The log on standard error.

use std::io::{IsTerminal, Write, stderr};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::progress;

/// Says what is logged, as tracing has it: `debug`, `walship::capture=trace`.
const FILTER_VARIABLE: &str = "WALSHIP_LOG";

/// How lines are written.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// For people and the journal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Where lines go: a progress bar makes way for each.
struct BesideBars;

impl Write for BesideBars {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        progress::bars().suspend(|| stderr().write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        stderr().flush()
    }
}

/// Begins logging, for the rest of the process; what is below `level` only where the environment asks for it.
pub fn begin(format: Format, level: LevelFilter) {
    let filter = EnvFilter::builder()
        .with_env_var(FILTER_VARIABLE)
        .with_default_directive(level.into())
        .from_env_lossy();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| BesideBars);
    match format {
        Format::Text => builder.with_ansi(stderr().is_terminal()).init(),
        Format::Json => builder.json().init(),
    }
}
