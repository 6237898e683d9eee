//! `walship completions`: a script for the shell.

use clap::CommandFactory;
use clap_complete::Shell;

use super::exit::Exit;
use super::{Cli, output};

/// Print a completion script for a shell
///
/// For bash: `walship completions bash > /etc/bash_completion.d/walship`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "walship", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}
