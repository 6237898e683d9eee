//! Two primaries of the same content, each with two standbys: by streaming replication, and by walship.

use std::process::Command;

use walship::demo::{Cluster, ClusterOptions, latency};

use crate::harness::{Node, Test, eventually};

/// pgbench's scale: some 300 MB of data each.
const SCALE: &str = "20";

/// What both have, and users have: commits reach the disk. The last of several lines holds.
const SETTINGS: &str =
    "fsync = on\nshared_buffers = '128MB'\nmax_wal_size = '4GB'\ncheckpoint_timeout = '30min'\n";

/// The names by which PostgreSQL's own standbys count.
const NATIVE_STANDBYS: [&str; 2] = ["native2", "native3"];

/// Both clusters, running.
pub struct Pairs {
    /// PostgreSQL's own primary.
    pub native: Cluster,
    /// Its standbys.
    pub native_standbys: [Cluster; 2],
    /// walship's primary.
    pub primary: Node,
    /// walship's standbys.
    pub standbys: [Node; 2],
}

impl Pairs {
    /// Makes, fills and starts all six.
    pub async fn new(test: &Test) -> Pairs {
        let options = || ClusterOptions { wal_segment_mib: 16, ..ClusterOptions::default() };
        let native = test.cluster("native", options()).await;
        let mut primary = Node::new(test, "db1", options()).await;
        for cluster in [&native, &primary.cluster] {
            cluster.append_to("postgresql.conf", SETTINGS).unwrap();
            cluster.restart().await.unwrap();
            cluster.run(pgbench(cluster, &["-i", "-q", "-s", SCALE])).await.unwrap();
            cluster.sql(latency::CREATE_TABLE).await.unwrap();
        }
        let native_standbys = NATIVE_STANDBYS.map(|name| test.empty_cluster(name));
        for (name, standby) in NATIVE_STANDBYS.iter().zip(&native_standbys) {
            native_standby(standby, name, &native).await;
        }
        primary.init().await;
        primary.start_primary().await;
        let standbys = [test.standby("db2", &primary).await, test.standby("db3", &primary).await];
        Pairs { native, native_standbys, primary, standbys }
    }

    /// Has commits wait as PostgreSQL's setting and walship's policy say; where PostgreSQL has no such thing, `None`.
    pub async fn wait_for(&self, names: Option<&str>, policy: &str) {
        if let Some(names) = names {
            self.native
                .sql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'"))
                .await
                .unwrap();
            self.native.sql("SELECT pg_reload_conf()").await.unwrap();
        }
        self.primary.walship(&["sync", policy]).await.succeeded();
        let pending = "SELECT count(*) = 0 FROM pg_stat_replication WHERE replay_lsn < sent_lsn";
        self.native.wait_until(pending, crate::harness::PATIENCE).await.unwrap();
    }

    /// Has walship's second standby follow the first from now on.
    pub async fn form_a_chain(&mut self) {
        let upstream = self.standbys[0].advertise.to_string();
        let last = &mut self.standbys[1];
        last.sidecar.terminate().await;
        last.sidecar.set("WALSHIP_UPSTREAM", &upstream);
        last.run().await;
        eventually("the chain has its links", async || {
            let followed = last.status().await?.upstream;
            anyhow::ensure!(followed.is_some_and(|upstream| upstream.route.len() == 3), "not yet");
            Ok(())
        })
        .await;
    }

    /// What went over the link to walship's first standby so far, in words.
    pub async fn link(&self) -> String {
        let downstreams = self.primary.status().await.unwrap().downstreams;
        let link = downstreams.iter().find(|downstream| downstream.name == "db2").unwrap();
        let (raw, wire) = (link.traffic.raw_bytes as f64, link.traffic.wire_bytes as f64);
        let mib = f64::from(1 << 20);
        format!("{:.1} MiB raw, {:.1} MiB on the wire, {:.1} : 1", raw / mib, wire / mib, raw / wire)
    }
}

/// Makes and starts a standby by PostgreSQL's own means, where there is none.
pub async fn native_standby(standby: &Cluster, name: &str, primary: &Cluster) {
    let mut copy = standby.account().command(standby.binaries().program("pg_basebackup"));
    let upstream = format!("{} application_name={name}", primary.conninfo());
    copy.args(["-R", "-c", "fast", "-d", &upstream, "-D"]).arg(standby.data_directory());
    standby.run(copy).await.unwrap();
    let own = format!("unix_socket_directories = '{}'\n", standby.socket_folder().display());
    standby.append_to("postgresql.conf", &own).unwrap();
    standby.start().await.unwrap();
}

/// A pgbench against a cluster.
pub fn pgbench(cluster: &Cluster, arguments: &[&str]) -> Command {
    let mut pgbench = cluster.account().command(cluster.binaries().program("pgbench"));
    pgbench.arg("-h").arg(cluster.socket_folder()).args([
        "-p",
        &cluster.port().to_string(),
        "-U",
        "postgres",
    ]);
    pgbench.args(arguments).arg("postgres");
    pgbench
}
