//! A file system of a test's own, so small that it can be filled.
//!
//! It is a tmpfs, so what a program sees on a full one comes from the kernel. Who is not root may mount one in a user
//! and mount namespace, which a process of many threads cannot enter; so the test runs itself again in one. Root does
//! the same: mounts are then gone with the process, however it ends.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use walship::demo::Account;

/// Set where the test runs for the second time.
const INSIDE: &str = "WALSHIP_TEST_OWN_MOUNTS";

/// Runs the calling test again where it may mount; true when that was done and there is nothing left to do here. Where
/// namespaces are forbidden, as in some containers, it says so and the test is left out.
pub fn ran_with_own_mounts() -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return false;
    }
    let thread = std::thread::current();
    let test = thread.name().expect("a test's thread has its name");
    if !unshare().arg("true").output().is_ok_and(|output| output.status.success()) {
        // Past the harness' capture, which would hide it.
        let _ = writeln!(std::io::stderr(), "test {test} is left out: no mount namespace can be made here");
        return true;
    }
    let mut again = unshare();
    again.arg(std::env::current_exe().unwrap()).args([test, "--exact", "--nocapture"]).env(INSIDE, "1");
    let output = again.output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && said.contains("1 passed"), "in a mount namespace:\n{said}");
    true
}

fn unshare() -> Command {
    let mut unshare = Command::new("unshare");
    unshare.arg("--mount");
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--map-current-user", "--keep-caps"]);
    }
    unshare
}

/// A small file system, unmounted when it is dropped.
#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// Mounts one on a new folder, which belongs to the account.
    pub fn mount(folder: &Path, bytes: u64, account: &Account) -> Disk {
        account.create_folder(folder).unwrap();
        let options = CString::new(format!("size={bytes},mode=0700")).unwrap();
        mount("walship-test", folder, "tmpfs", MountFlags::empty(), Some(options.as_c_str())).unwrap();
        account.own(folder).unwrap();
        Disk { folder: folder.to_owned() }
    }

    /// Gives it another size.
    pub fn resize(&self, bytes: u64) {
        let options = CString::new(format!("size={bytes}")).unwrap();
        mount_remount(&self.folder, MountFlags::empty(), options.as_c_str()).unwrap();
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut file = OpenOptions::new().create(true).append(true).open(self.ballast()).unwrap();
        let page = [0; 4096];
        loop {
            match file.write(&page) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return,
                Err(error) => panic!("fill {}: {error}", self.folder.display()),
            }
        }
    }

    /// Gives back what [`Disk::fill`] took.
    pub fn free(&self) {
        File::create(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What is still open there keeps it until the process ends.
        let unmounted = unmount(&self.folder, UnmountFlags::DETACH);
        if !std::thread::panicking() {
            unmounted.unwrap();
        }
    }
}
