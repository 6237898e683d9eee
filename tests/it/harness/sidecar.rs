//! A walship that runs: started, stopped, killed, listened to.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal};
use walship::demo::Account;

use super::{Log, command, eventually};

/// A sidecar of one node, over all its restarts. Dropping it kills the process, and fails the test if the log holds
/// what was not announced or the process had ended by itself.
#[derive(Debug)]
pub struct Sidecar {
    name: String,
    account: Account,
    folder: PathBuf,
    environment: Vec<(String, String)>,
    child: Option<Child>,
    log: Log,
}

impl Sidecar {
    /// A sidecar that will run in `folder` and log to `walship.log` there; it is not started.
    pub fn new(name: &str, folder: &Path, account: &Account) -> Sidecar {
        Sidecar {
            name: name.to_owned(),
            account: account.clone(),
            folder: folder.to_owned(),
            environment: Vec::new(),
            child: None,
            log: Log::new(folder.join("walship.log")),
        }
    }

    /// Sets a variable for later starts, such as `WALSHIP_FAILPOINTS`; an empty value unsets it.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.retain(|(set, _)| set != name);
        if !value.is_empty() {
            self.environment.push((name.to_owned(), value.to_owned()));
        }
    }

    /// Starts `walship ARGUMENTS…`, whose log follows what is there.
    pub fn start(&mut self, arguments: &[impl AsRef<OsStr>]) {
        let mut command = command::walship(&self.account);
        command.args(arguments);
        self.start_command(command);
    }

    /// Starts any command in the sidecar's place.
    pub fn start_command(&mut self, mut command: Command) {
        assert!(self.child.is_none(), "{} was not told to end", self.name);
        let append =
            |file: &str| OpenOptions::new().create(true).append(true).open(self.folder.join(file)).unwrap();
        command.current_dir(&self.folder).envs(self.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(append("walship.out")).stderr(append("walship.log"));
        self.child = Some(command.spawn().unwrap());
    }

    /// True while the process runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// The process that runs.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name)).id()
    }

    /// Asks it to end (SIGTERM) and waits for that.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended().await
    }

    /// Kills it (SIGKILL).
    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.ended().await;
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name));
        rustix::process::kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Waits until it has ended, by itself or not, which is then expected.
    pub async fn ended(&mut self) -> ExitStatus {
        let Sidecar { name, child, log, .. } = self;
        let child = child.as_mut().unwrap_or_else(|| panic!("{name} does not run"));
        let what = format!("{name} has ended");
        let status = eventually(&what, async || match child.try_wait()? {
            Some(status) => Ok(status),
            None => bail!("it runs; its log ends:\n{}", log.end()?),
        })
        .await;
        self.child = None;
        status
    }

    /// What it logged.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Announces that warnings and errors which contain `text` belong to this test.
    pub fn expect_log(&self, text: &str) {
        self.log.expect(text);
    }

    /// Waits until it has logged a line that contains `text`.
    pub async fn wait_log(&self, text: &str) {
        eventually(&format!("{} logs {text:?}", self.name), async || self.log.contains(text)).await;
    }

    /// What is wrong at the end of a test.
    fn verdict(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            let ended = child.try_wait()?;
            child.kill().and_then(|()| child.wait()).context("kill it")?;
            if let Some(status) = ended {
                bail!("it ended by itself ({status}); its log ends:\n{}", self.log.end()?);
            }
        }
        match self.log.unannounced() {
            none if none.is_empty() => Ok(()),
            some => bail!("it logged what this test had not announced:\n{}", some.join("\n")),
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let verdict = self.verdict();
        if std::thread::panicking() {
            println!("--- the end of {}'s log\n{}\n---", self.name, self.log.end().unwrap_or_default());
        } else if let Err(wrong) = verdict {
            panic!("{}: {wrong:#}", self.name);
        }
    }
}
