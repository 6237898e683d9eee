//! PostgreSQL's other programs, which a folder with a server need not hold. What is not run for lack of one is said.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use walship::demo::{Binaries, Cluster};

/// The last major version with the control file and the backup manifest of its predecessors: up to here a tool of one
/// version reads what another one wrote.
const LAST_WITH_COMMON_FORMATS: u32 = 16;

/// How a tool of PostgreSQL gets on with other versions than its own.
#[derive(Clone, Copy, Debug)]
enum Reads {
    /// It is a client, and talks to servers that are not newer than itself.
    OlderServers,
    /// It reads files.
    CommonFormats,
}

/// A client such as `pg_receivewal`, that talks to this cluster's version; none, said aloud, where there is none.
pub fn client(cluster: &Cluster, name: &str) -> Option<Command> {
    tool(cluster, name, Reads::OlderServers).map(|(command, _)| command)
}

/// A program such as `pg_checksums`, that reads this cluster's files; none, said aloud, where there is none.
pub fn reader(cluster: &Cluster, name: &str) -> Option<Command> {
    tool(cluster, name, Reads::CommonFormats).map(|(command, _)| command)
}

/// Has PostgreSQL's own tool verify a copy, its WAL included. WAL needs a tool of the very version: with another one
/// the files alone are verified, and with none nothing is, which is said.
pub async fn verify_backup(cluster: &Cluster, copy: &Path, arguments: &[&str]) {
    let Some((mut verify, is_own)) = tool(cluster, "pg_verifybackup", Reads::CommonFormats) else { return };
    if !is_own && !arguments.contains(&"--no-parse-wal") {
        not_run(cluster.binaries(), "pg_verifybackup's check of WAL: the tool is of another version");
        verify.arg("--no-parse-wal");
    }
    verify.args(arguments).arg(copy);
    cluster.run(verify).await.unwrap();
}

/// Says that something was not run, and why: past the capture of what tests print, so that it is seen.
pub fn not_run(binaries: &Binaries, what: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("test");
    let (major, folder) = (binaries.major(), binaries.folder().display());
    let line = format!("NOT RUN in {test} on PostgreSQL {major} ({folder}): {what}\n");
    // In one write, or lines of tests that run at once would mix. A closed standard error has no reader to miss it.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// True when the version is at least `major`; otherwise says that `what` was not run.
pub fn has_version(binaries: &Binaries, major: u32, what: &str) -> bool {
    let has = binaries.major() >= major;
    if !has {
        not_run(binaries, &format!("{what}: it came with {major}"));
    }
    has
}

/// A tool as the cluster's account, and whether it is of the cluster's own version: from beside its server, else from
/// what Debian installed.
fn tool(cluster: &Cluster, name: &str, reads: Reads) -> Option<(Command, bool)> {
    let own = cluster.binaries();
    let fits = |found: &Binaries| match reads {
        Reads::OlderServers => found.major() >= own.major(),
        Reads::CommonFormats => found.major().max(own.major()) <= LAST_WITH_COMMON_FORMATS,
    };
    let others =
        Binaries::of_debian().into_iter().filter(|found| found.major() == own.major() || fits(found));
    let found = std::iter::once(own.clone()).chain(others).find(|found| found.program(name).is_file());
    match found {
        Some(found) => Some((cluster.account().command(found.program(name)), found.major() == own.major())),
        None => {
            not_run(own, &format!("{name}: there is none of a version that fits"));
            None
        }
    }
}
