//! What came of a promotion: in words with its certificate, or as JSON alone.

use clap::ValueEnum;
use serde_json::json;

use super::exit::Exit;
use super::{output, runtime, store_of};
use crate::config::Overrides;
use crate::daemon::control::{Client, Done};
use crate::fault::Fault;
use crate::promote::kept::{self, NotGenuine};

/// How to print an outcome.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// Has the sidecar of this node carry out what `ask` asks of it, and prints what came of it. An error is printed as JSON,
/// too, and returned for the rest.
pub fn print_of(
    format: Format,
    overrides: &Overrides,
    ask: impl AsyncFnOnce(Client) -> anyhow::Result<Done>,
) -> anyhow::Result<Exit> {
    let done = carry_out(overrides, ask);
    let text = match (&done, format) {
        (Ok(done), Format::Text) => in_words(done),
        (Ok(Done { json: Some(json), .. }), Format::Json) => json.clone(),
        (Ok(Done { line, json: None }), Format::Json) => pretty(&json!({ "message": line })),
        (Err(error), Format::Json) => {
            let (reason, hint, outcome) = Fault::tell(error);
            let outcome = outcome.unwrap_or_else(|| "failed".to_owned());
            pretty(&json!({ "outcome": outcome, "reason": reason, "hint": hint }))
        }
        (Err(_), Format::Text) => String::new(),
    };
    output::print(&text)?;
    done.map(|_| Exit::Done)
}

fn carry_out(
    overrides: &Overrides,
    ask: impl AsyncFnOnce(Client) -> anyhow::Result<Done>,
) -> anyhow::Result<Done> {
    let store = store_of(overrides)?;
    runtime()?.block_on(async { ask(Client::connect(&store).await?).await })
}

/// A plan was told line by line already.
fn in_words(done: &Done) -> String {
    let certificate = match done.json.as_deref().map(kept::parse) {
        Some(Ok(certificate)) => certificate.to_string(),
        Some(Err(changed @ NotGenuine::Changed { .. })) => {
            format!("the certificate is not shown: {changed}\n")
        }
        Some(Err(NotGenuine::Unreadable(_))) | None => String::new(),
    };
    format!("{}\n{certificate}", done.line)
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}
