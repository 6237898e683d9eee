//! Not being root: PostgreSQL refuses to run as root, and so does what handles its files.
//!
//! Started as root, a command becomes the owner of the data directory by running itself again as that account, before
//! any thread or runtime exists.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use rustix::fs::{Access, MemfdFlags, access};
use rustix::process::{Gid, Uid};

use crate::config::SEARCH_PATH;
use crate::durable;
use crate::fault::{Fault, WithFault};

/// The account that PostgreSQL's packages make.
const POSTGRES: &str = "postgres";

/// Whether this process may do everything.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// When root, goes on as the owner of `path`, or of the nearest folder above it that exists.
pub fn become_owner_of(path: &Path) -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    become_account(&owner_of(path), None)
}

/// The same with something that only root can read, as the standard input; `more` is added to the arguments and says
/// so.
pub fn become_owner_with(path: &Path, input: &str, more: &[&str]) -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    become_account(&owner_of(path), Some((in_memory(input)?, more)))
}

/// When root, goes on as `postgres`.
pub fn become_postgres() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    become_account(POSTGRES, None)
}

/// The account whose `path` is: by number, or that of PostgreSQL's packages for what is root's.
fn owner_of(path: &Path) -> String {
    match path.ancestors().find_map(|folder| std::fs::metadata(folder).ok()) {
        Some(owner) if owner.uid() != 0 => owner.uid().to_string(),
        _ => POSTGRES.to_owned(),
    }
}

/// A file that is on no disk, to be read from its start.
fn in_memory(content: &str) -> anyhow::Result<File> {
    let file = rustix::fs::memfd_create("walship", MemfdFlags::CLOEXEC).context("make a file in memory")?;
    let mut file = File::from(file);
    file.write_all(content.as_bytes()).and_then(|()| file.rewind()).context("write a file in memory")?;
    Ok(file)
}

/// The numbers of an account, by name or number.
pub fn account(account: &str) -> anyhow::Result<(Uid, Gid)> {
    let one =
        |flag| -> anyhow::Result<u32> { Ok(numbers(flag, account)?.first().copied().unwrap_or_default()) };
    Ok((Uid::from_raw(one("-u")?), Gid::from_raw(one("-g")?)))
}

fn become_account(name: &str, input: Option<(File, &[&str])>) -> anyhow::Result<()> {
    let (uid, gid) = account(name)?;
    let has_own_file = Path::new(SEARCH_PATH[0]).exists();
    let groups: Vec<Gid> = numbers("-G", name)?.into_iter().map(Gid::from_raw).collect();
    // Root has no other thread yet, so the thread is the process. The groups go first: only root may set them.
    rustix::thread::set_thread_groups(&groups).context("take the account's groups")?;
    rustix::thread::set_thread_gid(gid).context("take the account's group")?;
    rustix::thread::set_thread_uid(uid).context("take the account")?;
    // By its own name, which lists of processes then show, unless the account may not go there.
    let own = std::env::current_exe().ok().filter(|path| access(path, Access::EXEC_OK).is_ok());
    let mut again = Command::new(own.unwrap_or_else(|| "/proc/self/exe".into()));
    // From root's home, say, where the account may not even look for a configuration.
    if !has_own_file && std::fs::metadata("./.").is_err() {
        again.current_dir("/");
    }
    again.args(std::env::args_os().skip(1)).arg0("walship");
    if let Some((input, more)) = input {
        again.args(more).stdin(input);
    }
    if let Some((user, home)) = passwd_entry(name) {
        again.env("USER", &user).env("LOGNAME", &user).env("HOME", home);
    }
    Err(again.exec()).with_context(|| format!("run again as {name}"))
}

/// What `id` says, which asks whatever the host asks for accounts.
fn numbers(flag: &str, account: &str) -> anyhow::Result<Vec<u32>> {
    let output = Command::new("id").args([flag, account]).output().context("run id")?;
    if !output.status.success() {
        return Err(Fault::usage(
            format!("PostgreSQL does not run as root, and there is no account `{account}` to become"),
            "Install PostgreSQL's server package, which makes it, or run this as the owner of the data directory.",
        ));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace().map(|number| number.parse().context("understand id")).collect()
}

/// Name and home of an account.
fn passwd_entry(account: &str) -> Option<(String, String)> {
    let output = Command::new("getent").args(["passwd", account]).output().ok()?;
    let line = String::from_utf8(output.stdout).ok()?;
    let fields: Vec<&str> = line.trim().split(':').collect();
    Some(((*fields.first()?).to_owned(), (*fields.get(5)?).to_owned()))
}

/// When root, makes a folder, with what is missing above it, for the account that [`become_owner_of`] becomes: that may
/// not be allowed to.
pub fn make_folder(folder: &Path) -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let missing: Vec<&Path> = folder.ancestors().take_while(|path| !path.exists()).collect();
    let above = folder.ancestors().find_map(|path| std::fs::metadata(path).ok());
    let (uid, gid) = match above.filter(|owner| owner.uid() != 0) {
        Some(owner) => (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid())),
        None => account(POSTGRES)?,
    };
    for new in missing.into_iter().rev() {
        durable::create_folder(new)?;
        std::os::unix::fs::chown(new, Some(uid.as_raw()), Some(gid.as_raw()))
            .with_context(|| format!("give {} to its user", new.display()))
            .hint("Make it by hand, owned by PostgreSQL's account, and run this again.")?;
    }
    Ok(())
}
