//! `walship completions`: a script for the shell.

use clap::CommandFactory;
use clap_complete::Shell;

use super::exit::{self, Exit};
use super::{Cli, output};

/// Print a completion script for a shell
///
/// It completes commands, flags and their values. Put it where the shell looks for such scripts.
#[derive(clap::Args, Debug)]
#[command(after_long_help = exit::explained(&[
    (0, "the script is printed"),
    (2, "wrong usage"),
], &[
    ("For bash:", "walship completions bash > /etc/bash_completion.d/walship"),
    ("For zsh:", "walship completions zsh > /usr/local/share/zsh/site-functions/_walship"),
    ("For fish:", "walship completions fish > ~/.config/fish/completions/walship.fish"),
]))]
pub struct Args {
    /// The shell that the script is for
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
