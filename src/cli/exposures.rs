//! `walship exposures`: which commits went on unprotected.

use std::path::Path;

use anyhow::Context;
use clap::ValueEnum;

use super::exit::{self, Exit};
use super::output;
use crate::config::Config;
use crate::fault::Fault;
use crate::report::{json, table};
use crate::store::{Exposures, Store, StoreError};

/// List the WAL whose commits went on unprotected on this node
///
/// Past its stall limit a policy lets commits go on although those whom it names do not have them. Each such window was
/// noted before its first commit was released: from which position to which, when, why, and who was missing. A weaker
/// policy that was forced is listed, too.
///
/// The list is read from this node's store, whether its sidecar runs or not, and holds the last 1000. A node that was
/// promoted has its own list, not that of the primary before it.
#[derive(clap::Args, Clone, Debug)]
#[command(after_long_help = exit::explained(&[
    (0, "the windows are printed, if there are any"),
    (1, "the log can't be read"),
    (2, "wrong usage"),
], &[
    ("All that are kept, the newest last:", "walship exposures"),
    ("For programs:", "walship exposures --format json"),
]))]
pub struct Args {
    /// How to print them.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// How to print exposures.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// For people.
    Table,
    /// One JSON object.
    Json,
}

/// Prints the log of this node.
pub fn run(args: &Args, config: &Config) -> anyhow::Result<Exit> {
    if !Store::exists(&config.store) {
        return Err(no_store(&config.store));
    }
    let log = read(&config.store)?;
    let text = match args.format {
        Format::Table => table::exposures(&log),
        Format::Json => json::exposures(&log).context("render the exposures as JSON")?,
    };
    output::print(&text)?;
    Ok(Exit::Done)
}

/// Reads the log of a store.
pub fn read(store: &Path) -> anyhow::Result<Exposures> {
    Exposures::read(store)
        .map_err(|error| match error {
            StoreError::Corrupt { .. } => Fault::advise(error, Exposures::IF_DAMAGED),
            _ => error.into(),
        })
        .context("read the exposure log")
}

/// What is read from a store is not to be had here.
pub fn no_store(store: &Path) -> anyhow::Error {
    Fault::usage(
        format!("{} holds no store", store.display()),
        "Run this on the host of a node, as the owner of its store.",
    )
}
