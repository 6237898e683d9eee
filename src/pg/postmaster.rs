//! Whether a PostgreSQL runs, by what it leaves in its data directory. Blocks.

use std::io;
use std::path::Path;

/// Whether a postmaster runs on this data directory: by its pid file, and whether that process lives. So does a
/// backend that somebody runs alone, which writes its number with a minus.
pub fn is_running(data_directory: &Path) -> io::Result<bool> {
    let path = data_directory.join("postmaster.pid");
    let content = match std::fs::read_to_string(path) {
        Ok(content) => content,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    let pid: i32 = content.lines().next().and_then(|line| line.trim().parse().ok()).unwrap_or(0);
    let Some(pid) = pid.checked_abs().and_then(rustix::process::Pid::from_raw) else { return Ok(false) };
    match rustix::process::test_kill_process(pid) {
        Ok(()) => Ok(!is_zombie(pid) && !is_elsewhere(pid, data_directory)),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        // Somebody else's process: then it is not the postmaster, which runs as our user.
        Err(rustix::io::Errno::PERM) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn is_zombie(pid: rustix::process::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

/// A postmaster works in its data directory. A process that is known to work in another folder only got the number of
/// one that is gone, as happens after the host was restarted.
fn is_elsewhere(pid: rustix::process::Pid, data_directory: &Path) -> bool {
    let folder = std::fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero()));
    folder.ok().zip(data_directory.canonicalize().ok()).is_some_and(|(folder, own)| folder != own)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said with a process that works in `folder`, while it runs and when it has ended.
    fn with_process_in(folder: &Path, data_directory: &Path, sign: i64) -> (bool, bool) {
        let mut process = std::process::Command::new("sleep").arg("60").current_dir(folder).spawn().unwrap();
        let number = sign * i64::from(process.id());
        std::fs::write(data_directory.join("postmaster.pid"), format!("{number}\n/data\n")).unwrap();
        let while_it_runs = is_running(data_directory).unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        (while_it_runs, is_running(data_directory).unwrap())
    }

    #[test]
    fn a_pid_file_tells_of_a_process_that_lives() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_running(folder.path()).unwrap());
        // A backend that runs alone has a minus.
        for sign in [1, -1] {
            assert_eq!(with_process_in(folder.path(), folder.path(), sign), (true, false), "{sign}");
        }
        for number in [0, 2_000_000_000] {
            std::fs::write(folder.path().join("postmaster.pid"), format!("{number}\n/data\n")).unwrap();
            assert!(!is_running(folder.path()).unwrap(), "{number}");
        }
    }

    #[test]
    fn a_number_that_was_given_to_another_process_is_no_server() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(with_process_in(other.path(), folder.path(), 1), (false, false));
    }
}
