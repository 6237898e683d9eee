//! As whom PostgreSQL's programs run: never as root, because they refuse it.

use std::ffi::OsStr;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::fault::WithFault;

/// The account that Debian's packages, and most others, make for the server.
const POSTGRES: &str = "postgres";

/// The user that runs PostgreSQL's programs and owns their files: whoever we are, or `postgres` when we are root.
#[derive(Clone, Debug)]
pub struct Account(Option<Switch>);

/// Another user to become.
#[derive(Clone, Debug)]
struct Switch {
    name: String,
    uid: u32,
    gid: u32,
    home: PathBuf,
}

impl Account {
    /// The account for this process's PostgreSQL programs. Reads `/etc/passwd` when we are root.
    pub fn for_postgres() -> anyhow::Result<Account> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Account(None));
        }
        let passwd = std::fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
        let switch = passwd.lines().find_map(|line| Switch::parse(line, POSTGRES));
        let switch = switch
            .with_context(|| format!("find the user `{POSTGRES}` in /etc/passwd"))
            .hint("PostgreSQL does not run as root: install its packages, or run this as another user.")?;
        Ok(Account(Some(switch)))
    }

    /// A command that will run as this account, outside the caller's folder, and without the caller's `PG…`
    /// variables, which would point it at another server.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir("/").env("LC_ALL", "C");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
            command.env_remove(name);
        }
        if let Some(to) = &self.0 {
            // A uid set by root also drops root's supplementary groups.
            command.uid(to.uid).gid(to.gid);
            command.env("HOME", &to.home).env("USER", &to.name).env("LOGNAME", &to.name);
        }
        command
    }

    /// Makes a folder, and whatever is missing above it, that this account owns and nobody else reads.
    pub fn create_folder(&self, path: &Path) -> anyhow::Result<()> {
        if path.is_dir() {
            return self.own(path);
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.is_dir()) {
            self.create_folder(parent)?;
        }
        let made = std::fs::DirBuilder::new().mode(0o700).create(path);
        made.with_context(|| format!("create folder {}", path.display()))?;
        self.own(path)
    }

    /// Gives a file or folder to this account.
    pub fn own(&self, path: &Path) -> anyhow::Result<()> {
        let Some(to) = &self.0 else { return Ok(()) };
        std::os::unix::fs::chown(path, Some(to.uid), Some(to.gid))
            .with_context(|| format!("give {} to {}", path.display(), to.name))
    }
}

impl Switch {
    /// Reads one line of passwd(5) if it is about `name`.
    fn parse(line: &str, name: &str) -> Option<Switch> {
        let fields: Vec<&str> = line.split(':').collect();
        let [found, _, uid, gid, _, home, _] = fields[..] else { return None };
        (found == name).then_some(())?;
        Some(Switch {
            name: name.to_owned(),
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: home.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwd_lines() {
        let line = "postgres:x:101:104:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash";
        let found = Switch::parse(line, "postgres").unwrap();
        assert_eq!((found.uid, found.gid, found.home), (101, 104, "/var/lib/postgresql".into()));
        assert!(Switch::parse(line, "postgre").is_none());
        assert!(Switch::parse("# postgres", "postgres").is_none());
    }

    #[test]
    fn commands_do_not_run_as_root() {
        let output = Account::for_postgres().unwrap().command("id").arg("-u").output().unwrap();
        assert!(output.status.success());
        assert_ne!(output.stdout, b"0\n");
    }
}
