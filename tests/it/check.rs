//! `walship check` on a real server: what is good, and that what it prints mends what is not.

use std::path::Path;

use walship::clock::WallTime;
use walship::demo::{Cluster, ClusterOptions};
use walship::pg::Conninfo;
use walship::report::check::gather::{self, Subject};
use walship::report::check::remedy::Remedy;
use walship::report::check::{Facts, Finding, Sidecar, evaluate, worst};
use walship::report::table;
use walship::report::threshold::Level;
use walship::tls::{Authority, Files, Kind};

use crate::harness::{Test, eventually};

/// A store with certificates, beside the cluster.
fn subject(test: &Test, cluster: &Cluster, role: &str) -> Subject {
    let store = test.folder().join("store");
    if !store.exists() {
        let now = WallTime::now();
        let authority = Authority::create("test", now).unwrap();
        let issued = authority.issue("db1", Kind::Node, now).unwrap();
        let files = Files::in_folder(&store.join("tls"));
        walship::durable::create_folder(&store.join("tls")).unwrap();
        walship::durable::write(&files.ca, authority.certificate_pem().as_bytes()).unwrap();
        walship::durable::write(&files.certificate, issued.certificate.as_bytes()).unwrap();
        walship::durable::write(&files.key, issued.key.as_bytes()).unwrap();
    }
    Subject {
        conninfo: Conninfo::parse(&cluster.conninfo_as(role)).unwrap(),
        data_directory: cluster.data_directory(),
        control_socket: store.join("control.sock"),
        store,
        listen: "127.0.0.1:0".to_owned(),
        slot_name: "walship".to_owned(),
        account: gather::account(&cluster.data_directory()).unwrap(),
        binaries: Ok(cluster.binaries().clone()),
    }
}

async fn look(subject: &Subject) -> (Facts, Vec<Finding>) {
    let facts = gather::facts(subject, Sidecar::Down).await.unwrap();
    let findings = evaluate(&facts);
    (facts, findings)
}

fn level(findings: &[Finding], what: &str) -> Level {
    findings
        .iter()
        .find(|finding| finding.what == what)
        .unwrap_or_else(|| panic!("{what}: {findings:#?}"))
        .level
}

async fn assert_all_good(subject: &Subject) {
    let (facts, findings) = look(subject).await;
    assert_eq!(worst(&findings), Level::Ok, "{}", table::check(&facts, &findings));
}

#[tokio::test]
async fn a_superuser_on_a_good_server_needs_nothing() {
    let test = Test::new();
    let cluster = test.cluster("db1", ClusterOptions::default()).await;
    assert_all_good(&subject(&test, &cluster, "postgres")).await;
}

#[tokio::test]
async fn the_printed_sql_mends_roles_and_settings() {
    let test = Test::new();
    let mut options = ClusterOptions::default()
        .set("wal_level", "minimal")
        .set("max_wal_senders", "0")
        .set("full_page_writes", "off")
        .set("wal_receiver_status_interval", "0");
    options.data_checksums = false;
    let cluster = test.cluster("db1", options).await;
    cluster.sql("CREATE ROLE plain LOGIN").await.unwrap();

    for role in ["plain", "of nobody yet"] {
        let subject = subject(&test, &cluster, "postgres");
        let conninfo = cluster.conninfo_as(&format!("'{role}'"));
        let subject = Subject { conninfo: Conninfo::parse(&conninfo).unwrap(), ..subject };
        // One round where the role exists; where it does not, settings show only once it does.
        for round in 1.. {
            let (facts, findings) = look(&subject).await;
            if worst(&findings) == Level::Ok {
                break;
            }
            assert!(round <= 2, "{}", table::check(&facts, &findings));
            let remedy = Remedy::of(&findings);
            for sql in remedy.sql.iter().chain(&remedy.settings) {
                cluster.sql(sql).await.unwrap();
            }
            if remedy.restart {
                cluster.restart().await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn the_printed_commands_mend_pg_hba() {
    let test = Test::new();
    let cluster = test.cluster("db1", ClusterOptions::default()).await;
    cluster.sql("CREATE ROLE walship SUPERUSER LOGIN").await.unwrap();
    let hba = cluster.data_directory().join("pg_hba.conf");
    std::fs::write(&hba, "local all postgres trust\n").unwrap();
    cluster.sql("SELECT pg_reload_conf()").await.unwrap();

    // `peer` sees this process, not the account that walship would become.
    let own = gather::account(Path::new("/proc/self")).unwrap();
    let subject = Subject { account: own, ..subject(&test, &cluster, "walship") };
    let refused = eventually("pg_hba.conf refuses", async || {
        let (facts, findings) = look(&subject).await;
        anyhow::ensure!(facts.server.is_err(), "still let in");
        Ok(findings)
    });
    let remedy = Remedy::of(&refused.await);
    assert!(remedy.sql.is_empty() && !remedy.commands.is_empty(), "{remedy:#?}");
    for command in &remedy.commands {
        let mut shell = cluster.account().command("sh");
        shell.args(["-euc", command]);
        cluster.run(shell).await.unwrap();
    }
    eventually("pg_hba.conf lets in", async || {
        let (facts, findings) = look(&subject).await;
        let good = facts.server.is_ok() && level(&findings, "replication connection") == Level::Ok;
        anyhow::ensure!(good, "{}", table::check(&facts, &findings));
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn an_address_in_use_is_ours_or_refused() {
    let test = Test::new();
    let cluster = test.cluster("db1", ClusterOptions::default()).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = listener.local_addr().unwrap().to_string();
    let subject = Subject { listen, ..subject(&test, &cluster, "postgres") };
    assert_eq!(level(&look(&subject).await.1, "address for peers"), Level::Critical);
    let _control = std::os::unix::net::UnixListener::bind(&subject.control_socket).unwrap();
    assert_eq!(level(&look(&subject).await.1, "address for peers"), Level::Ok);

    let inside = Subject { store: cluster.data_directory().join("not/yet"), ..subject };
    let (_, findings) = look(&inside).await;
    let store = findings.iter().find(|finding| finding.what == "store").unwrap();
    assert!(store.level == Level::Critical && store.found.contains("inside"), "{store:#?}");
}
