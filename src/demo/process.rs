//! The processes of one server, found and ended without pg_ctl.
//!
//! A server's processes are those that run `postgres` with the data directory as their working directory: the
//! postmaster goes there first thing and its children stay. A process group does not serve: each child of the
//! postmaster starts a session of its own.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions};

/// How often a process list is looked at while processes end.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How long SIGKILL may take: a process in the middle of writing much ends after that.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);

/// The processes of the server in `data_directory`. A zombie has no working directory, so it is none of them.
pub fn of_server(data_directory: &Path) -> Vec<Pid> {
    let Ok(data_directory) = data_directory.canonicalize() else { return Vec::new() };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let folder = Path::new("/proc").join(pid.to_string());
        std::fs::read_link(folder.join("cwd")).is_ok_and(|cwd| cwd == data_directory)
            && std::fs::read(folder.join("comm")).is_ok_and(|name| name == b"postgres\n")
    })
    .filter_map(Pid::from_raw)
    .collect()
}

/// The postmaster's process id, from the first line of `postmaster.pid`, if that process is alive. While initdb works
/// there is a negative one: a backend that runs alone.
pub fn postmaster(data_directory: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(data_directory.join("postmaster.pid")).ok()?;
    let pid = text.lines().next().and_then(|line| line.parse().ok()).filter(|pid| *pid > 0);
    let pid = pid.and_then(Pid::from_raw)?;
    of_server(data_directory).contains(&pid).then_some(pid)
}

/// Makes servers whose parent is gone (pg_ctl leaves every postmaster so) children of this process, so that it can
/// take their exit statuses. Whether and when process 1 would is its own business; until someone does, a dead
/// postmaster's process id looks alive to the next start in the same data directory, which then refuses.
pub fn adopt_orphans() {
    // Only where prctl is forbidden does it fail, and there things are as before.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
}

/// Kills the whole server with SIGKILL and waits until nothing of it is left. The postmaster is stopped first, so
/// that it neither starts a child that we don't see nor notices what we do. Returns false when something survived.
pub fn kill_all(data_directory: &Path) -> bool {
    let postmaster = postmaster(data_directory);
    signal(postmaster.as_slice(), Signal::STOP);
    let deadline = Instant::now() + KILL_TIMEOUT;
    let mut killed = Vec::new();
    while Instant::now() < deadline {
        let alive = of_server(data_directory);
        signal(&alive, Signal::KILL);
        killed.extend(alive.iter().copied());
        reap(&killed);
        if alive.is_empty() && !postmaster.is_some_and(exists) {
            return true;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    false
}

/// Stops the whole server with SIGSTOP, the postmaster first, so that no child is left out.
pub fn freeze(data_directory: &Path) {
    signal(postmaster(data_directory).as_slice(), Signal::STOP);
    signal(&of_server(data_directory), Signal::STOP);
}

/// Lets a server that was frozen go on.
pub fn thaw(data_directory: &Path) {
    signal(&of_server(data_directory), Signal::CONT);
}

/// Asks for an immediate shutdown, and kills what is left when `within` has passed. Unlike [`kill_all`] this
/// leaves no shared memory behind.
pub fn stop_immediately(data_directory: &Path, within: Duration) {
    let deadline = Instant::now() + within;
    let all = of_server(data_directory);
    let Some(postmaster) = postmaster(data_directory) else {
        kill_all(data_directory);
        return;
    };
    signal(&[postmaster], Signal::QUIT);
    signal(&all, Signal::CONT); // a stopped one would never hear the first, nor its children what it tells them
    while !of_server(data_directory).is_empty() {
        if Instant::now() > deadline {
            kill_all(data_directory);
            return;
        }
        std::thread::sleep(POLL_INTERVAL);
        reap(&all);
    }
    reap(&all);
}

/// Removes the System V segment of a server that was killed: only its next start would, and there may be none.
pub fn remove_shared_memory(data_directory: &Path) {
    let Ok(text) = std::fs::read_to_string(data_directory.join("postmaster.pid")) else { return };
    let Some(identifier) = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) else {
        return;
    };
    // Best effort: it is a few bytes, and the machine's limit on such segments is in the thousands.
    let _ = std::process::Command::new("ipcrm").args(["-m", identifier]).output();
}

fn signal(pids: &[Pid], signal: Signal) {
    for pid in pids {
        // One that is already gone is what we want.
        let _ = rustix::process::kill_process(*pid, signal);
    }
}

/// Takes the exit status of those that are our children.
fn reap(pids: &[Pid]) {
    for pid in pids {
        let _ = rustix::process::waitpid(Some(*pid), WaitOptions::NOHANG);
    }
}

/// True also for a zombie: what the next postmaster sees.
fn exists(pid: Pid) -> bool {
    rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
}
