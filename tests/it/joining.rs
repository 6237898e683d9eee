//! Joining: what is looked at before anything is made, and who may run it.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::harness::{Finished, Node, Test, everything_below};

/// Takes the configuration of a running server out of its data directory, as Debian has it from the beginning.
fn move_configuration(node: &Node, to: &Path) {
    for file in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::rename(node.cluster.data_directory().join(file), to.join(file)).unwrap();
    }
}

#[tokio::test]
async fn a_configuration_that_is_elsewhere_is_missed_before_the_copy() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let etc = test.folder().join("etc");
    test.account.create_folder(&etc).unwrap();
    move_configuration(&db1, &etc);
    let bundle = db1.invite("db2").await;
    let mut db2 = Node::empty(&test, "db2");
    let before = everything_below(db2.folder());
    let texts = [
        "a copy of db1 would have no postgresql.conf",
        "hint: Name this host's own folder with postgresql.conf and pg_hba.conf: --config-directory DIR",
    ];
    db2.joins_in_vain(&bundle, &[]).await.failed(3, &texts);
    db2.joins_in_vain(&bundle, &["--config-directory", "/nonexistent"])
        .await
        .failed(2, &["read /nonexistent/postgresql.conf", "hint: --config-directory takes"]);
    assert_eq!(everything_below(db2.folder()), before);
    assert!(db1.status().await.unwrap().members.iter().all(|member| member.name == "db1"));

    let conf = etc.join("postgresql.conf");
    // As a package wrote it, for a data directory of its own.
    let files = format!(
        "hba_file = '{0}/pg_hba.conf'\nident_file = '{0}/pg_ident.conf'\ndata_directory = '/nowhere'\n",
        etc.display()
    );
    fs::write(&conf, fs::read_to_string(&conf).unwrap() + &files).unwrap();
    db2.join(&bundle, &["--config-directory", etc.to_str().unwrap()]);
    db2.follows(&db1).await;
    assert_eq!(db2.cluster.value("SHOW config_file").await.unwrap(), conf.display().to_string());
}

#[tokio::test]
async fn an_address_that_is_taken_is_refused_and_another_one_for_once_is_said() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let bundle = db1.invite("db2").await;
    let mut db2 = Node::empty(&test, "db2");
    let before = everything_below(db2.folder());
    let taken = TcpListener::bind(db2.listen()).unwrap();
    let texts = [&format!("listen on {}", db2.listen()), "hint: Another process has it"];
    db2.joins_in_vain(&bundle, &[]).await.failed(3, &texts);
    assert_eq!(everything_below(db2.folder()), before);
    drop(taken);
    db2.join(&bundle, &[]);
    db2.follows(&db1).await;
    db2.sidecar.terminate().await;
    db2.sidecar.expect_log("holds for this run alone");
    db2.sidecar.set("WALSHIP_MAX_RATE", "50MiB");
    db2.join(&bundle, &[]);
    db2.sidecar.wait_log("walship.toml is there already and stays as it is").await;
    db2.follows(&db1).await;
}

#[tokio::test]
async fn a_bundle_that_only_root_can_read_is_handed_to_the_owner() {
    if !rustix::process::geteuid().is_root() {
        return; // nobody else can hand anything over
    }
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let bundle = db1.invite("db2").await;
    let roots = tempfile::tempdir().unwrap();
    let hidden = roots.path().join("db2.join");
    fs::copy(&bundle, &hidden).unwrap();
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600)).unwrap();
    let mut db2 = Node::empty(&test, "db2");
    let mut command = Command::new(env!("CARGO_BIN_EXE_walship"));
    command.args(db2.join_arguments(&hidden));
    db2.sidecar.start_command(command);
    db2.follows(&db1).await;
    let owner = fs::metadata(db2.folder()).unwrap().uid();
    for made in [db2.config_file(), db2.store().join("tls/node.key"), db2.cluster.data_directory()] {
        assert_eq!(fs::metadata(&made).unwrap().uid(), owner, "{}", made.display());
    }
}

#[tokio::test]
async fn what_is_refused_to_root_leaves_no_folder() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    let as_root = async |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_walship"));
        command.args(arguments).current_dir(db2.folder());
        Finished::run(command).await
    };
    let (copy, standby) = (test.folder().join("copy"), db2.listen().to_string());
    let arguments = ["basebackup", "--from", &standby, "-D", copy.to_str().unwrap()];
    as_root(&arguments)
        .await
        .failed(3, &["db2 at 127.0.0.1", "is a standby, and only the primary is copied"]);
    assert!(!copy.exists());
    let bundle = db2.folder().join("db2.join");
    fs::copy(db1.folder().join("db2.join"), &bundle).unwrap();
    let new = test.folder().join("new");
    let place = |name: &str| new.join(name).to_str().unwrap().to_owned();
    let (data, store, config) = (place("data"), place("store"), place("walship.toml"));
    let arguments = [
        "standby",
        "--join",
        "db2.join",
        "-D",
        &data,
        "--store",
        &store,
        "--config",
        &config,
        "--listen",
        "127.0.0.1:0",
    ];
    as_root(&arguments).await.failed(3, &["the invitation of db2 was used before", "hint: "]);
    assert!(!new.exists());
}
