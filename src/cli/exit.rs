//! Exit codes: one enum for the two contracts that commands have.
//!
//! `lag` and `check` speak to monitoring: 0 ok, 1 warning, 2 critical, 3 unknown or wrong usage. All others: 0 done,
//! 1 failed, 2 wrong usage, 3 refused and nothing changed, 4 outcome unknown.

use std::ffi::OsString;
use std::process::{ExitCode, Termination};

use crate::fault::{Fault, Outcome};
use crate::report::threshold::Level;

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Done.
    Done,
    /// Not done.
    Ended(Outcome),
    /// What a monitoring command found.
    Found(Level),
}

/// Which of the two contracts a command has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contract {
    /// Most commands.
    Command,
    /// `lag` and `check`.
    Monitoring,
}

/// What a command's long help and manual page end with: its exit codes and some examples, each a text and a command.
pub fn explained(codes: &[(u8, &str)], examples: &[(&str, &str)]) -> String {
    let codes: Vec<String> = codes.iter().map(|(code, meaning)| format!("  {code}  {meaning}\n")).collect();
    let examples: Vec<String> =
        examples.iter().map(|(text, command)| format!("  {text}\n\n    {command}\n")).collect();
    format!("Exit codes:\n{}\nExamples:\n{}", codes.concat(), examples.join("\n"))
}

/// The commands that speak to monitoring.
const MONITORING: [&str; 2] = ["lag", "check"];

impl Exit {
    /// The code.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Ended(Outcome::Failed) => 1,
            Exit::Ended(Outcome::Usage) => 2,
            Exit::Ended(Outcome::Refused) => 3,
            Exit::Ended(Outcome::Unknown) => 4,
            Exit::Found(level) => level.code(),
        }
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self.code())
    }
}

impl Contract {
    /// The contract of a command line, also of one that clap refused: that of the first argument which is a command.
    pub fn of(arguments: impl IntoIterator<Item = OsString>, program: &clap::Command) -> Contract {
        let command = arguments
            .into_iter()
            .skip(1)
            .find(|argument| program.get_subcommands().any(|command| argument == command.get_name()));
        match command {
            Some(name) if MONITORING.iter().any(|monitoring| name == *monitoring) => Contract::Monitoring,
            _ => Contract::Command,
        }
    }

    /// How a command ends that failed with an error. A monitoring command that fails has found nothing out.
    pub fn of_error(self, error: &anyhow::Error) -> Exit {
        match self {
            Contract::Command => Exit::Ended(Fault::outcome_of(error)),
            Contract::Monitoring => Exit::Found(Level::Unknown),
        }
    }

    /// How a command line ends that clap did not take as it is: help and version are what was asked for.
    pub fn of_clap(self, error: &clap::Error) -> Exit {
        match (error.use_stderr(), self) {
            (false, _) => Exit::Done,
            (true, Contract::Command) => Exit::Ended(Outcome::Usage),
            (true, Contract::Monitoring) => Exit::Found(Level::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Arg, Command};

    fn program() -> Command {
        Command::new("walship")
            .arg(Arg::new("config").long("config").global(true))
            .subcommands(["lag", "check", "promote"].map(Command::new))
    }

    fn exit(line: &str) -> u8 {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let error = program().try_get_matches_from(&arguments).unwrap_err();
        Contract::of(arguments, &program()).of_clap(&error).code()
    }

    #[test]
    fn wrong_usage_has_the_code_of_the_commands_contract() {
        assert_eq!(exit("walship promote --bogus"), 2);
        assert_eq!(exit("walship lag --bogus"), 3);
        assert_eq!(exit("walship --config lag.toml check --bogus"), 3);
        assert_eq!(exit("walship --config x promote lag"), 2);
        assert_eq!(exit("walship lagg"), 2);
        assert_eq!(exit("walship lag --help"), 0);
    }

    #[test]
    fn outcomes_and_levels_have_the_documented_codes() {
        let outcomes = [Outcome::Failed, Outcome::Usage, Outcome::Refused, Outcome::Unknown];
        assert_eq!(outcomes.map(|outcome| Exit::Ended(outcome).code()), [1, 2, 3, 4]);
        let levels = [Level::Ok, Level::Warning, Level::Critical, Level::Unknown];
        assert_eq!(levels.map(|level| Exit::Found(level).code()), [0, 1, 2, 3]);
        let refused = Fault::refused("the primary still answers", "Stop it first.");
        assert_eq!(Contract::Command.of_error(&refused).code(), 3);
        assert_eq!(Contract::Monitoring.of_error(&anyhow::anyhow!("no socket")).code(), 3);
    }
}
