//! A PostgreSQL and its sidecar.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use walship::demo::{Cluster, ClusterOptions};

use super::{Finished, Sidecar, Test, command};

/// One node. Its sidecar ends before its PostgreSQL does, so that it has no reason to complain.
#[derive(Debug)]
pub struct Node {
    name: String,
    folder: PathBuf,
    listen: SocketAddr,
    /// Where others are told to find it; a proxy's address, or its own.
    pub advertise: SocketAddr,
    /// The walship beside the PostgreSQL.
    pub sidecar: Sidecar,
    /// The PostgreSQL.
    pub cluster: Cluster,
}

impl Node {
    /// A node with a new, running PostgreSQL.
    pub async fn new(test: &Test, name: &str, options: ClusterOptions) -> Node {
        let cluster = test.cluster(name, options).await;
        Node::around(test, name, cluster)
    }

    /// A node whose PostgreSQL walship is going to make.
    pub fn empty(test: &Test, name: &str) -> Node {
        Node::around(test, name, test.empty_cluster(name))
    }

    fn around(test: &Test, name: &str, cluster: Cluster) -> Node {
        let folder = test.folder().join(name);
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, test.port()));
        let sidecar = Sidecar::new(name, &folder, &test.account);
        Node { name: name.to_owned(), folder, listen, advertise: listen, sidecar, cluster }
    }

    /// The name that its configuration gives it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its sidecar listens.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Its folder: configuration, store, log, data directory.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its store.
    pub fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    /// Its configuration file, which walship finds because it runs in the folder.
    pub fn config_file(&self) -> PathBuf {
        self.folder.join("walship.toml")
    }

    /// Writes a configuration; `more` is appended, so it may set keys of a last section and add sections.
    pub fn write_config(&self, upstream: &[SocketAddr], more: &str) {
        let upstream: Vec<String> = upstream.iter().map(SocketAddr::to_string).collect();
        let text = format!(
            "name = {:?}\nstore = {:?}\nlisten = {:?}\nadvertise = {:?}\nupstream = {upstream:?}\n\
             [postgres]\ndata_directory = {:?}\nconninfo = {:?}\nbin_directory = {:?}\n{more}",
            self.name,
            self.store(),
            self.listen.to_string(),
            self.advertise.to_string(),
            self.cluster.data_directory(),
            self.cluster.conninfo(),
            self.cluster.binaries().folder(),
        );
        std::fs::write(self.config_file(), text).unwrap();
        self.cluster.account().own(&self.config_file()).unwrap();
    }

    /// Runs walship to its end, in the node's folder.
    pub async fn walship(&self, arguments: &[&str]) -> Finished {
        Finished::run(self.command(arguments)).await
    }

    /// The same, to be run by somebody who can't wait here.
    pub fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = command::walship(self.cluster.account());
        command.args(arguments).current_dir(&self.folder);
        command
    }
}
