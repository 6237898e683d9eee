//! A node's life in the words of its operator: init, primary, invite, standby, run, status.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use walship::demo::{ClusterOptions, Proxy, StopMode, digest};
use walship::pg::Lsn;
use walship::pg::control::ControlFile;
use walship::report::{Role, Status, json};

use super::{Finished, Node, PATIENCE, Test, eventually};

impl Test {
    /// A new primary with its sidecar, of the usual kind.
    pub async fn primary(&self, name: &str) -> Node {
        let mut node = Node::new(self, name, ClusterOptions::default()).await;
        node.init().await;
        node.start_primary().await;
        node
    }

    /// A new primary that others reach only through a proxy.
    pub async fn primary_behind_a_link(&self, name: &str) -> (Node, Proxy) {
        let mut node = Node::new(self, name, ClusterOptions::default()).await;
        let link = Proxy::start(node.listen()).await.unwrap();
        node.advertise = link.address();
        node.init().await;
        node.start_primary().await;
        (node, link)
    }

    /// A standby that has joined `primary` and follows it.
    pub async fn standby(&self, name: &str, primary: &Node) -> Node {
        let bundle = primary.invite(name).await;
        let mut node = Node::empty(self, name);
        node.join(&bundle, &[]);
        node.follows(primary).await;
        node
    }
}

impl Node {
    /// Runs `walship init`.
    pub async fn init(&self) {
        self.init_with(&[]).await;
    }

    /// Runs `walship init` with more flags.
    pub async fn init_with(&self, more: &[&str]) {
        let place: Vec<String> = self.place().collect();
        let own = ["init", "--name", self.name()].into_iter().chain(place.iter().map(String::as_str));
        let arguments: Vec<&str> = own.chain(more.iter().copied()).collect();
        self.walship(&arguments).await.succeeded();
    }

    /// Where this node has its things, as `init` and `standby` take it.
    fn place(&self) -> impl Iterator<Item = String> {
        let path = |path: &Path| text(path).to_owned();
        let flags = [
            ("-D", path(&self.cluster.data_directory())),
            ("--store", path(&self.store())),
            ("--listen", self.listen().to_string()),
            ("--advertise", self.advertise.to_string()),
            ("--conninfo", self.cluster.conninfo()),
            ("--bin-directory", path(self.cluster.binaries().folder())),
            ("--config", path(&self.config_file())),
        ];
        flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value])
    }

    /// Runs `walship primary` and waits until the WAL is captured.
    pub async fn start_primary(&mut self) {
        self.sidecar.start(&["primary"]);
        self.captures().await;
    }

    /// Starts the sidecar again in the role that it has, and waits until it answers.
    pub async fn run(&mut self) {
        self.sidecar.start(&["run"]);
        eventually("the sidecar answers", async || self.status().await.map(drop)).await;
    }

    /// The same with other failure points than before: none for an empty text.
    pub async fn runs_with(&mut self, failpoints: &str) {
        self.sidecar.set("WALSHIP_FAILPOINTS", failpoints);
        self.run().await;
    }

    /// Makes a join bundle; where it is.
    pub async fn invite(&self, name: &str) -> PathBuf {
        self.invite_to(name, self).await
    }

    /// Makes a join bundle for a standby of another node; only where `init` ran there is a key to sign it with.
    pub async fn invite_to(&self, name: &str, primary: &Node) -> PathBuf {
        let bundle = self.folder().join(format!("{name}.join"));
        let address = primary.advertise.to_string();
        self.walship(&["invite", name, "-o", text(&bundle), "--address", &address]).await.succeeded();
        bundle
    }

    /// What `walship standby` is told in this node's place.
    pub fn join_arguments(&self, bundle: &Path) -> Vec<String> {
        let (port, socket) = (self.cluster.port().to_string(), self.cluster.socket_folder());
        let own = ["standby", "--join", text(bundle), "-p", &port, "-k", text(&socket)];
        own.into_iter().map(str::to_owned).chain(self.place()).collect()
    }

    /// Starts `walship standby --join`.
    pub fn join(&mut self, bundle: &Path, more: &[&str]) {
        let mut arguments = self.join_arguments(bundle);
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        self.sidecar.start(&arguments);
    }

    /// Runs `walship standby --join` to its end, for one that is refused.
    pub async fn joins_in_vain(&self, bundle: &Path, more: &[&str]) -> Finished {
        let arguments = self.join_arguments(bundle);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        self.walship(&arguments).await
    }

    /// What `walship status` knows here.
    pub async fn status(&self) -> anyhow::Result<Status> {
        let finished = self.walship(&["status", "--format", "json"]).await;
        Ok(json::decode(finished.exits(0)?.stdout.as_bytes())?)
    }

    /// Waits until the sidecar's store has all that its PostgreSQL has written so far.
    pub async fn captures(&self) {
        eventually("the sidecar captures the WAL", async || {
            let status = self.status().await?;
            let written: Lsn = self.cluster.value("SELECT pg_current_wal_flush_lsn()").await?.parse()?;
            ensure!(status.node.role == Role::Primary, "it is a {:?}", status.node.role);
            ensure!(status.store.durable >= written, "it has {} of {written}", status.store.durable);
            Ok(())
        })
        .await;
    }

    /// Waits until the node has heard of all these members.
    pub async fn knows(&self, names: &[&str]) {
        eventually(&format!("{} knows {names:?}", self.name()), async || {
            let members = self.status().await?.members;
            let known = |name: &&str| members.iter().any(|member| member.name == *name);
            ensure!(names.iter().all(known), "only {members:?}");
            Ok(())
        })
        .await;
    }

    /// Waits until this standby shows all that the primary has written so far, row for row.
    pub async fn follows(&self, primary: &Node) {
        let written = primary.cluster.value("SELECT pg_current_wal_flush_lsn()").await.unwrap();
        let replayed = format!("SELECT pg_is_in_recovery() AND pg_last_wal_replay_lsn() >= '{written}'");
        eventually(&format!("{} has replayed {written}", self.name()), async || {
            ensure!(self.cluster.value(&replayed).await? == "t", "not yet");
            Ok(())
        })
        .await;
    }

    /// Waits until this standby has all rows of a primary that nobody writes to any more; how many.
    pub async fn equals(&self, primary: &Node) -> u64 {
        self.follows(primary).await;
        digest::compare(&primary.cluster.conninfo(), &self.cluster.conninfo()).await.unwrap()
    }

    /// Waits until it says that it has a role.
    pub async fn is(&self, role: Role) {
        eventually(&format!("{} is a {role:?}", self.name()), async || {
            let now = self.status().await?.node.role;
            ensure!(now == role, "{now:?}");
            Ok(())
        })
        .await;
    }

    /// The process id of its postmaster: another one after any restart.
    pub fn postmaster(&self) -> String {
        let text = std::fs::read_to_string(self.cluster.data_directory().join("postmaster.pid")).unwrap();
        text.lines().next().unwrap().to_owned()
    }

    /// What its control file says.
    pub fn control(&self) -> ControlFile {
        ControlFile::read(&self.cluster.data_directory()).unwrap()
    }

    /// The host is gone: both processes, at once.
    pub async fn dies(&mut self) {
        self.sidecar.kill().await;
        self.cluster.kill().await.unwrap();
    }

    /// Stops its PostgreSQL as an operator does.
    pub async fn stops(&self) {
        tokio::time::timeout(PATIENCE, self.cluster.stop(StopMode::Fast)).await.unwrap().unwrap();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
