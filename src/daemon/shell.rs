//! Commands from the configuration, run by a shell and bounded in time and in what is kept of their words.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::{Instant, timeout, timeout_at};

/// What is kept of what a command says on standard error.
const SAID_BYTES_MAX: usize = 4096;

/// Patience with the last of it, once the command has ended.
const LAST_WORDS_WITHIN: Duration = Duration::from_millis(200);

/// Why a command did not do what it is for.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// It did not run.
    #[error("it can't be run: {0}")]
    Start(#[from] std::io::Error),
    /// It and all that it started were killed.
    #[error("it has not ended after {} s", .0.as_secs())]
    Late(Duration),
    /// It ended otherwise than with 0.
    #[error("{status}{}{said}", if .said.is_empty() { "" } else { ": " })]
    Failed {
        /// How.
        status: ExitStatus,
        /// What it said on standard error.
        said: String,
    },
}

/// Runs a command with facts in its environment, and kills it and all that it started when it takes too long.
pub async fn run(command: &str, facts: &[(&str, String)], within: Duration) -> Result<(), ShellError> {
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(command).envs(facts.iter().map(|(name, value)| (name, value)));
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    shell.process_group(0).kill_on_drop(true);
    let mut child = shell.spawn()?;
    let group = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
    let mut said = child.stderr.take().ok_or_else(|| std::io::Error::other("it has no standard error"))?;
    let mut text = Vec::new();
    let ended = timeout(within, end(&mut child, &mut said, &mut text)).await;
    let Ok(ended) = ended else {
        if let Some(group) = group {
            // It may have ended at this very moment.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        return Err(ShellError::Late(within));
    };
    let status = ended?;
    if status.success() {
        return Ok(());
    }
    Err(ShellError::Failed { status, said: String::from_utf8_lossy(&text).trim().to_owned() })
}

/// Waits for its end, and takes its words meanwhile.
async fn end(child: &mut Child, said: &mut ChildStderr, text: &mut Vec<u8>) -> std::io::Result<ExitStatus> {
    let mut chunk = [0; 1024];
    let mut keep = |read: &[u8]| {
        let room = SAID_BYTES_MAX - text.len();
        text.extend_from_slice(&read[..read.len().min(room)]);
    };
    let status = loop {
        // Both are cancellation-safe: nothing is read that is not kept, and an end can be waited for again.
        tokio::select! {
            read = said.read(&mut chunk) => match read? {
                0 => return child.wait().await,
                bytes => keep(&chunk[..bytes]),
            },
            ended = child.wait() => break ended?,
        }
    };
    // What it left running may hold the other end open, and is not waited for.
    let deadline = Instant::now() + LAST_WORDS_WITHIN;
    while let Ok(Ok(bytes @ 1..)) = timeout_at(deadline, said.read(&mut chunk)).await {
        keep(&chunk[..bytes]);
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn it_is_told_the_facts_and_its_words_are_in_the_error() {
        let facts = [("WALSHIP_NODE", "db1".to_owned())];
        run("test \"$WALSHIP_NODE\" = db1", &facts, PATIENT).await.unwrap();
        let error = run("echo no route >&2; exit 7", &facts, PATIENT).await.unwrap_err();
        assert_eq!(error.to_string(), "exit status: 7: no route");
        assert_eq!(run("exit 7", &facts, PATIENT).await.unwrap_err().to_string(), "exit status: 7");
    }

    #[tokio::test]
    async fn of_a_flood_of_words_the_first_are_kept() {
        let error = run("yes >&2 & sleep 0.1; kill $!; exit 1", &[], PATIENT).await.unwrap_err();
        let ShellError::Failed { said, .. } = error else { panic!("{error}") };
        assert!(said.len() <= SAID_BYTES_MAX && said.starts_with("y\ny\n"));
    }

    fn sleeper(pid: &std::path::Path) -> rustix::process::Pid {
        let sleeper = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
        rustix::process::Pid::from_raw(sleeper).unwrap()
    }

    #[tokio::test]
    async fn what_it_leaves_running_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let command = format!("echo begun >&2; sleep 600 & echo $! > {}; exit 3", pid.display());
        let error = run(&command, &[], PATIENT).await.unwrap_err();
        assert_eq!(error.to_string(), "exit status: 3: begun");
        rustix::process::kill_process(sleeper(&pid), rustix::process::Signal::KILL).unwrap();
    }

    #[tokio::test]
    async fn what_takes_too_long_is_killed_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let command = format!("sleep 600 & echo $! > {}; wait", pid.display());
        let ended = run(&command, &[], Duration::from_millis(500)).await;
        assert_eq!(ended.unwrap_err().to_string(), "it has not ended after 0 s");
        let sleeper = sleeper(&pid);
        let begun = std::time::Instant::now();
        while rustix::process::test_kill_process(sleeper).is_ok() {
            let state = std::fs::read_to_string(format!("/proc/{}/stat", sleeper.as_raw_nonzero()));
            if state.is_ok_and(|state| state.contains(") Z")) {
                break;
            }
            assert!(begun.elapsed() < PATIENT, "it still runs");
            tokio::task::yield_now().await;
        }
    }
}
