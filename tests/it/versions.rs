//! A PostgreSQL of a version that walship does not know, older or newer: refused everywhere, and nothing is begun.
//!
//! It is a real server behind a socket that changes the version in its answers.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use walship::demo::{Cluster, ClusterOptions};

use crate::harness::{Node, Test};

/// A socket in a folder of its own, behind which the server is of another version.
async fn disguised(test: &Test, cluster: &Cluster, number: i32) -> PathBuf {
    let real = cluster.value("SHOW server_version_num").await.unwrap().parse::<i32>().unwrap();
    let folder = test.folder().join(number.to_string());
    test.account.create_folder(&folder).unwrap();
    let socket = folder.join(".s.PGSQL.5432");
    let listener = UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o777)).unwrap();
    let server = cluster.socket_folder().join(".s.PGSQL.5432");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = UnixStream::connect(&server).await.unwrap();
            tokio::spawn(pass(client, server, real.to_be_bytes(), number.to_be_bytes()));
        }
    });
    folder
}

/// Passes bytes both ways; those that are the version, as a number in an answer, become another one.
async fn pass(client: UnixStream, server: UnixStream, real: [u8; 4], shown: [u8; 4]) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(drop) };
    let down = async {
        let mut bytes = vec![0; 64 << 10];
        loop {
            let count = from_server.read(&mut bytes).await?;
            let answer = &mut bytes[..count];
            if let Some(at) = answer.windows(4).position(|window| window == real) {
                answer[at..at + 4].copy_from_slice(&shown);
            }
            to_client.write_all(answer).await?;
            if count == 0 {
                return std::io::Result::Ok(());
            }
        }
    };
    // Whichever ends first, the other has nothing left to say.
    tokio::select! {
        _ = up => {}
        _ = down => {}
    }
}

/// What the data directory says of itself.
fn set_version(node: &Node, text: &str) {
    std::fs::write(node.cluster.data_directory().join("PG_VERSION"), text).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn one_that_is_too_old_or_too_new_is_refused_by_all_who_meet_it() {
    let test = Test::new();
    let node = Node::new(&test, "db1", ClusterOptions::default()).await;
    let real = std::fs::read_to_string(node.cluster.data_directory().join("PG_VERSION")).unwrap();
    for (number, version, hint) in
        [(130_023, "13.23", "hint: Upgrade PostgreSQL"), (190_001, "19.1", "hint: Look for a newer walship")]
    {
        let folder = disguised(&test, &node.cluster, number).await;
        let conninfo = format!("host={} user=postgres dbname=postgres", folder.display());
        let says = format!("is version {version}; walship works with 14 to 18");
        let data = node.cluster.data_directory();
        let copy = test.folder().join(format!("copy-{number}"));
        let copying = ["basebackup", "-D", text(&copy), "--pgdata", text(&data), "--conninfo", &conninfo];
        test.walship(&copying).await.failed(3, &[&says, hint]);
        assert!(!copy.exists(), "nothing is begun");
        let lag = test.walship(&["lag", "--dsn", &conninfo]).await.exited_with(3).stdout;
        assert!(lag.starts_with("WALSHIP UNKNOWN - ") && lag.contains(&says), "{lag}");

        node.write_config(&[], "");
        let major = version.split('.').next().unwrap();
        set_version(&node, &format!("{major}\n"));
        let says = format!("is version {major}; walship works with 14 to 18");
        for command in [&["primary"][..], &["init", "--name", "db1", "-D", text(&data)]] {
            node.walship(command).await.failed(3, &[&says, hint]);
        }
        let check = node.walship(&["check"]).await.exited_with(2).stdout;
        assert!(check.contains(&says) && check.contains(hint.strip_prefix("hint: ").unwrap()), "{check}");
        assert!(!node.store().join("walship.state").exists(), "nothing is begun");
        set_version(&node, &real);
    }
}

#[tokio::test]
async fn a_server_that_became_another_one_stops_capture_for_good() {
    let test = Test::new();
    let mut node = Node::new(&test, "db1", ClusterOptions::default()).await;
    node.init().await;
    let folder = disguised(&test, &node.cluster, 190_001).await;
    let conninfo = format!("host={} user=postgres dbname=postgres", folder.display());
    node.sidecar.set("WALSHIP_CONNINFO", &conninfo);
    node.sidecar.expect_log("capture has stopped");
    node.sidecar.start(&["primary"]);
    node.sidecar.wait_log("is version 19.1; walship works with 14 to 18").await;
    let table = node.walship(&["status"]).await.succeeded();
    assert!(table.contains("critical: capture has stopped") && table.contains("version 19.1"), "{table}");
    let lag = node.walship(&["lag"]).await.exited_with(2).stdout;
    assert!(lag.contains("version 19.1"), "{lag}");
}
