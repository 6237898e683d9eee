//! What the user types: one file per command.
//!
//! The command tree below is the one definition that help, manual pages and completions come from. A command turns
//! what was typed into a validated [`Config`] and hands it to the daemon, or asks the sidecar over its control socket.

pub mod basebackup;
pub mod check;
pub mod completions;
pub mod demo;
pub mod exit;
pub mod exposures;
pub mod fetch_wal;
mod forget;
pub mod history;
pub mod init;
pub mod invite;
pub mod lag;
mod logging;
mod outcome;
mod output;
mod privilege;
mod progress;
pub mod promote;
pub mod rejoin;
pub mod sidecar;
pub mod standby;
pub mod status;
pub mod switchover;
pub mod sync;
pub mod wait;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Arg, CommandFactory, Parser, Subcommand};
use tracing_subscriber::filter::LevelFilter;

use crate::config::{Config, Overrides};
use crate::daemon::control::Client;
use crate::fault::{Advised, Fault};
use exit::{Contract, Exit};

/// A verified, compressed, live standby of a PostgreSQL on another host
///
/// A sidecar beside the primary captures the write-ahead log and takes base backups; sidecars beside the standbys
/// receive both and feed their own PostgreSQL. Nothing is promoted but by `walship promote` and
/// `walship switchover`.
#[derive(Parser, Debug)]
#[command(
    name = "walship",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_long_help = EXPLAINED
)]
pub struct Cli {
    /// How the log on standard error is written
    #[arg(
        long,
        global = true,
        display_order = 990, // behind the commands' own
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        env = "WALSHIP_LOG_FORMAT",
        hide_env_values = true
    )]
    log_format: logging::Format,
    #[command(subcommand)]
    command: Command,
}

/// What the help of the program ends with.
const EXPLAINED: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage: flags, configuration or files
  3  refused and nothing changed
  4  the outcome is unknown: run it again

  `lag` and `check` speak to monitoring: 0 ok, 1 warning, 2 critical,
  3 unknown or wrong usage.

Environment:
  WALSHIP_LOG   what is logged, such as debug or walship::ship=trace
  WALSHIP_*     what the flag says whose help names the variable; the flag
                beats it, and it beats the configuration file

Examples:
  On the primary's host, once:

    walship init --name db1 -D /var/lib/postgresql/15/main
    walship check

  There, its sidecar; a service unit starts `walship run`:

    walship primary

  There, for each standby:

    walship invite db2 > db2.join

  On the standby's host, with the bundle:

    walship standby --join db2.join -D /var/lib/postgresql/15/main

  On any of them:

    walship status
";

/// The commands, in the order in which a new user meets them.
#[derive(Subcommand, Debug)]
enum Command {
    Init(init::Args),
    Check(Configured<check::Args>),
    Primary(sidecar::PrimaryArgs),
    Invite(Configured<invite::Args>),
    Standby(standby::Args),
    Run(sidecar::RunArgs),
    Basebackup(basebackup::Args),
    Status(Configured<status::Args>),
    Lag(Configured<lag::Args>),
    Sync(sync::Args),
    Forget(forget::Args),
    Exposures(Configured<exposures::Args>),
    History(Configured<history::Args>),
    Wait(wait::Args),
    Promote(promote::Args),
    Switchover(switchover::Args),
    Rejoin(rejoin::Args),
    FetchWal(fetch_wal::Args),
    Demo(demo::Args),
    Completions(completions::Args),
}

// A command that needs to know which node this is. (A doc comment here would become its help.)
#[derive(clap::Args, Debug)]
#[command(mut_args(only_with_long_help))]
struct Configured<A: clap::Args> {
    #[command(flatten)]
    args: A,
    #[command(flatten)]
    overrides: Overrides,
}

/// Keeps the short help of a command that only needs to find its node to what it is about.
fn only_with_long_help(flag: Arg) -> Arg {
    let is_of_configuration = flag.get_help_heading() == Some("Configuration");
    let is_wanted = flag.get_id() == "config";
    if is_of_configuration && !is_wanted { flag.hide_short_help(true) } else { flag }
}

/// Runs the command line of this process.
pub fn run() -> Exit {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let contract = Contract::of(arguments.iter().cloned(), &Cli::command());
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Where even that can't be written, the exit code still says it.
            let _ = error.print();
            return contract.of_clap(&error);
        }
    };
    logging::begin(cli.log_format, cli.command.log_level());
    match cli.command.run() {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("walship: {error:#}");
            if let Some(hint) = Fault::hint_of(&error) {
                eprintln!("hint: {hint}");
            }
            contract.of_error(&error)
        }
    }
}

impl Command {
    /// What a daemon does is news; a command says itself what it did.
    fn log_level(&self) -> LevelFilter {
        match self {
            Command::Primary(_) | Command::Standby(_) | Command::Run(_) => LevelFilter::INFO,
            _ => LevelFilter::WARN,
        }
    }

    fn run(self) -> anyhow::Result<Exit> {
        match self {
            Command::Init(args) => init::run(&args).map(|()| Exit::Done),
            Command::Check(Configured { args, overrides }) => check_node(&args, &overrides),
            Command::Primary(args) => sidecar::primary(&args),
            Command::Invite(Configured { args, overrides }) => {
                invite::run(&args, &configuration(&overrides)?).map(|()| Exit::Done)
            }
            Command::Standby(args) => standby::run(&args),
            Command::Run(args) => sidecar::resume(&args),
            Command::Basebackup(args) => basebackup::run(&args),
            Command::Status(Configured { args, overrides }) => {
                let store = store_of(&overrides)?;
                runtime()?
                    .block_on(status::run(&args, async || Client::connect(&store).await?.status().await))
            }
            Command::Lag(Configured { args, overrides }) => {
                let fetch = async || Client::connect(&store_of(&overrides)?).await?.status().await;
                runtime()?.block_on(lag::run(&args, fetch))
            }
            Command::Sync(args) => sync::run(&args),
            Command::Forget(args) => forget::run(&args),
            Command::Exposures(Configured { args, overrides }) => {
                exposures::run(&args, &configuration(&overrides)?)
            }
            Command::History(Configured { args, overrides }) => {
                history::run(&args, || configuration(&overrides))
            }
            Command::Wait(args) => wait::run(&args),
            Command::Promote(args) => promote::run(&args),
            Command::Switchover(args) => switchover::run(&args),
            Command::Rejoin(args) => rejoin::run(&args),
            Command::FetchWal(args) => fetch_wal::run(&args),
            Command::Demo(args) => demo::run(&args),
            Command::Completions(args) => completions::run(&args),
        }
    }
}

fn check_node(args: &check::Args, overrides: &Overrides) -> anyhow::Result<Exit> {
    let config = configuration(overrides)?;
    privilege::become_owner_of(&config.postgres.data_directory)?;
    let runtime = runtime()?;
    let binaries = runtime.block_on(crate::daemon::binaries(&config)).map_err(|error| format!("{error:#}"));
    let subject = crate::report::check::gather::Subject {
        conninfo: crate::daemon::conninfo(&config)?,
        data_directory: config.postgres.data_directory.clone(),
        store: config.store.clone(),
        control_socket: config.control_socket(),
        listen: config.listen.to_string(),
        slot_name: config.slot.clone(),
        account: crate::report::check::gather::account(&config.postgres.data_directory).unwrap_or_default(),
        binaries,
    };
    runtime.block_on(check::run(args, &subject))
}

/// The store of this node, whose sidecar is to be asked.
fn store_of(overrides: &Overrides) -> anyhow::Result<PathBuf> {
    Ok(configuration(overrides)?.store)
}

/// Has the sidecar of this node carry out what `ask` asks of it: prints what is done on the way, and then the outcome.
fn have_done(
    overrides: &Overrides,
    ask: impl AsyncFnOnce(Client) -> anyhow::Result<String>,
) -> anyhow::Result<Exit> {
    let store = store_of(overrides)?;
    let done = runtime()?.block_on(async { ask(Client::connect(&store).await?).await })?;
    output::print(&format!("{done}\n"))?;
    Ok(Exit::Done)
}

/// Says a line of what is done.
fn say(line: &str) {
    eprintln!("{line}");
}

/// The configuration; what is wrong with it comes with a hint and the outcome of wrong usage.
fn configuration(overrides: &Overrides) -> anyhow::Result<Config> {
    Config::load(overrides).advised()
}

/// The runtime of a command; made only after the process has become who it is to be.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }

    /// Every command line of walship in a text's code blocks, as words; placeholders such as PGDATA are words, too.
    fn command_lines(text: &str) -> Vec<Vec<&str>> {
        let mut inside = false;
        let mut lines = Vec::new();
        for line in text.lines() {
            if line.trim_start().starts_with("```") {
                inside = !inside;
            }
            // Behind a prompt, with or without the host's name.
            let prompt = line.split_once(' ').filter(|(word, _)| word.ends_with(['$', '#']));
            let line = prompt.map_or(line, |(_, command)| command);
            if inside && line.starts_with("walship ") {
                // Up to a redirection, a pipe, or the next command.
                let words = line.split_whitespace();
                lines.push(words.take_while(|word| !["<", ">", "|", "&&", "#"].contains(word)).collect());
            }
        }
        lines
    }

    #[test]
    fn every_command_line_of_the_readme_is_one() {
        let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
        let text = std::fs::read_to_string(readme).unwrap();
        let lines = command_lines(&text);
        assert!(lines.len() > 10, "{lines:?}");
        for words in lines {
            let parsed = Cli::try_parse_from(shell_words(&words.join(" ")));
            assert!(parsed.is_ok(), "{}: {}", words.join(" "), parsed.unwrap_err());
        }
    }

    /// Words with single quotes around those that have spaces.
    fn shell_words(line: &str) -> Vec<String> {
        line.split('\'')
            .enumerate()
            .flat_map(|(at, part)| match at % 2 {
                1 => vec![part.to_owned()],
                _ => part.split_whitespace().map(str::to_owned).collect(),
            })
            .collect()
    }
}
