//! What becomes of the nodes' disks.

use std::path::{Path, PathBuf};

use super::Stage;
use crate::harness::{Disk, Finished};
use crate::scenes::scene::Part;

/// Of a disk that is going to be filled.
const BYTES: u64 = 32 << 20;

impl Stage {
    pub(super) async fn wipe(&mut self, name: &str) {
        self.kill(name, Part::Both).await;
        let node = self.node_mut(name);
        node.sidecar.set("WALSHIP_UPSTREAM", "");
        for folder in [node.store(), node.cluster.data_directory()] {
            std::fs::remove_dir_all(folder).unwrap();
        }
        std::fs::remove_file(node.config_file()).unwrap();
    }

    pub(super) async fn snapshot(&mut self, name: &str) {
        self.freeze(name, Part::Both);
        let (node, to) = (self.node(name), self.snapshot_of(name));
        std::fs::create_dir(&to).unwrap();
        for folder in [node.store(), node.cluster.data_directory()] {
            copy(&folder, &to).await;
        }
        self.thaw(name);
    }

    pub(super) async fn restore(&mut self, name: &str) {
        self.kill(name, Part::Both).await;
        let (node, from) = (self.node(name), self.snapshot_of(name));
        for folder in [node.store(), node.cluster.data_directory()] {
            std::fs::remove_dir_all(&folder).unwrap();
            copy(&from.join(folder.file_name().unwrap()), node.folder()).await;
        }
    }

    fn snapshot_of(&self, name: &str) -> PathBuf {
        self.test.folder().join(format!("{name}.snapshot"))
    }

    /// A small one below the store that a node is going to have.
    pub(super) fn mount(&mut self, name: &str) {
        let store = self.test.folder().join(name).join("store");
        self.disks.insert(name.to_owned(), Disk::mount(&store, BYTES, &self.test.account));
    }

    pub(super) fn fill(&self, name: &str) {
        self.disks[name].fill();
    }

    pub(super) fn room(&self, name: &str) {
        self.disks[name].free();
    }
}

/// Copies a folder into another, with owners and times.
async fn copy(from: &Path, to: &Path) {
    let mut cp = std::process::Command::new("cp");
    cp.arg("-a").arg(from).arg(to);
    Finished::run(cp).await.succeeded();
}
