//! `walship history`: the promotions that this node knows of, what each cost, and which commits went on unprotected.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueEnum;

use super::exit::{self, Exit};
use super::{exposures, output};
use crate::config::Config;
use crate::fault::{Fault, Outcome};
use crate::promote::kept;
use crate::promote::past::{self, Past};
use crate::report::{json, table};
use crate::store::Store;

/// List the promotions that this node knows of, and what each cost
///
/// For each promotion: its epoch, who was promoted, when, the timelines and where they parted, and what it cost, in the
/// words of its certificate. That is kept in the store of the node that was promoted, in the folder `history`, with the
/// SHA-256 of its content, and the others fetch it from there; one that was changed since is named, and nothing that it says
/// is shown. After the promotions comes what `walship exposures` prints: the commits that went on unprotected here.
///
/// All is read from this node's store, whether its sidecar runs or not.
#[derive(clap::Args, Clone, Debug)]
#[command(after_long_help = exit::explained(&[
    (0, "all is printed, and every certificate is what was written"),
    (1, "a certificate was changed or can't be read; all others are printed"),
    (2, "wrong usage"),
], &[
    ("All that is known, the newest last:", "walship history"),
    ("For programs:", "walship history --format json"),
    ("A certificate from elsewhere, in full:", "walship history --verify 0000000003-db2.json"),
]))]
pub struct Args {
    /// How to print it.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Check this certificate, and print it in full; `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    pub verify: Option<PathBuf>,
}

/// How to print the history.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// Prints what the store of this node knows; `config` is asked for only where that is needed.
pub fn run(args: &Args, config: impl FnOnce() -> anyhow::Result<Config>) -> anyhow::Result<Exit> {
    if let Some(file) = &args.verify {
        return verify(args.format, file);
    }
    let config = config()?;
    let state = Store::state_in(&config.store).context("read the state")?;
    let state = state.ok_or_else(|| exposures::no_store(&config.store))?;
    let log = exposures::read(&config.store)?;
    let past = past::of(&state, kept::all(&config.store).context("list the certificates")?);
    let text = match args.format {
        Format::Text => format!("{past}\n{}", table::exposures(&log)),
        Format::Json => render(&past, &json::exposures(&log)?).context("render the history as JSON")?,
    };
    output::print(&text)?;
    let wrong: Vec<&str> = past.not_genuine().collect();
    match wrong.is_empty() {
        true => Ok(Exit::Done),
        false => Err(changed(format!("not what was written: {}", wrong.join(", ")))),
    }
}

/// Certificates do not change by themselves.
fn changed(what: String) -> anyhow::Error {
    let hint = "Somebody or a broken disk changed it, and what it says is not to be relied upon.";
    Fault::with(anyhow::anyhow!(what), hint, Outcome::Failed)
}

/// The log comes as its own command prints it.
fn render(past: &Past, exposures: &str) -> anyhow::Result<String> {
    let mut all = serde_json::to_value(past)?;
    let exposures: serde_json::Value = serde_json::from_str(exposures)?;
    all["exposures"] = exposures["exposures"].clone();
    all["exposures_forgotten"] = exposures["forgotten"].clone();
    Ok(format!("{all:#}\n"))
}

fn verify(format: Format, file: &Path) -> anyhow::Result<Exit> {
    let path = if file == Path::new("-") { Path::new("/dev/stdin") } else { file };
    let text = kept::read(path)?;
    let certificate = kept::parse(&text).map_err(|error| changed(format!("{}: {error}", file.display())))?;
    output::print(&match format {
        Format::Text => format!("{certificate}"),
        Format::Json => text,
    })?;
    Ok(Exit::Done)
}
