//! The walship program under test: where it is, and one run of it from start to end.

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use walship::demo::Account;
use walship::pg::binaries::OVERRIDE_VARIABLE;

use super::PATIENCE;

/// What cargo built.
const BUILT: &str = env!("CARGO_BIN_EXE_walship");

/// A walship command, as the account that PostgreSQL runs as, without the caller's `WALSHIP_…` variables but for the
/// one that says which PostgreSQL is tested.
pub fn walship(account: &Account) -> Command {
    let mut command = account.command(program(account));
    let is_ours = |name: &OsString| name.as_encoded_bytes().starts_with(b"WALSHIP_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_ours(name) && name != OVERRIDE_VARIABLE) {
        command.env_remove(name);
    }
    command
}

/// The built program, or a copy of it where the account may enter no folder above the build.
fn program(account: &Account) -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let reachable = account.command("test").args(["-x", BUILT]).status().unwrap();
        if reachable.success() { BUILT.into() } else { copy_of_the_program() }
    })
}

/// One copy per build folder, in a folder that everyone may enter; made anew when the build is newer.
fn copy_of_the_program() -> PathBuf {
    let mut hasher = DefaultHasher::new();
    BUILT.hash(&mut hasher);
    let folder = std::env::temp_dir().join(format!("walship-built-{:016x}", hasher.finish()));
    let copy = folder.join("walship");
    let modified = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    if modified(&copy) <= modified(Path::new(BUILT)) {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        let temporary = folder.join(format!("walship.{}", std::process::id()));
        std::fs::copy(BUILT, &temporary).unwrap();
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&temporary, &copy).unwrap();
    }
    copy
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    command: String,
    code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it said.
    pub stderr: String,
}

impl Finished {
    /// Runs a command to its end; one that does not end fails the test.
    pub async fn run(command: Command) -> Finished {
        Finished::run_within(PATIENCE, command).await
    }

    /// The same for a command that takes longer than others.
    pub async fn run_within(patience: Duration, command: Command) -> Finished {
        let name = format!("{command:?}");
        let mut command = tokio::process::Command::from(command);
        let output = command.stdin(std::process::Stdio::null()).kill_on_drop(true).output();
        let output: Output = match tokio::time::timeout(patience, output).await {
            Ok(output) => output.unwrap_or_else(|error| panic!("run {name}: {error}")),
            Err(_) => panic!("{name} did not end in {patience:?}"),
        };
        Finished {
            command: name,
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Checks that it succeeded; what it printed.
    #[track_caller]
    pub fn succeeded(self) -> String {
        self.exited_with(0).stdout
    }

    /// Itself, or an error unless it has this exit code: for what may yet come.
    pub fn exits(self, code: i32) -> anyhow::Result<Finished> {
        anyhow::ensure!(self.code == Some(code), "{:?}, not {code}{}", self.code, self.framed());
        Ok(self)
    }

    /// Checks that it failed with this exit code, saying all of these texts; what it said.
    #[track_caller]
    pub fn failed(self, code: i32, texts: &[&str]) -> String {
        let finished = self.exited_with(code);
        for text in texts {
            assert!(finished.stderr.contains(text), "{text:?} expected{}", finished.framed());
        }
        finished.stderr
    }

    /// Checks the exit code.
    #[track_caller]
    pub fn exited_with(self, code: i32) -> Finished {
        assert!(self.code == Some(code), "exit code {code} expected, {:?} found{}", self.code, self.framed());
        self
    }

    /// The exit code; none, when a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.code
    }

    /// All that it printed and said.
    pub fn said(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// The command and all about its end, for a person.
    pub fn framed(&self) -> String {
        format!("\n{}\n--- stdout\n{}--- stderr\n{}---", self.command, self.stdout, self.stderr)
    }
}
