//! The harness itself: what it must notice, it notices.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::harness::{Finished, Node, Sidecar, Test, eventually, last_words};

/// What dropping a sidecar says, if it fails the test.
fn verdict(sidecar: Sidecar) -> Option<String> {
    let failed = catch_unwind(AssertUnwindSafe(|| drop(sidecar))).err()?;
    Some(failed.downcast_ref::<String>().unwrap().clone())
}

fn with_log(test: &Test, text: &str) -> Sidecar {
    std::fs::write(test.folder().join("walship.log"), text).unwrap();
    Sidecar::new("db1", test.folder(), &test.account)
}

#[test]
fn an_unannounced_warning_fails_a_test_and_an_announced_one_does_not() {
    let test = Test::new();
    let warning = "2026-11-23T05:47:07.1Z  WARN walship::ship: a peer is slow\n";
    let said = verdict(with_log(&test, warning)).unwrap();
    assert!(
        said.contains("db1: it logged what this test had not announced") && said.contains("slow"),
        "{said}"
    );
    let sidecar = with_log(&test, warning);
    sidecar.expect_log("a peer is slow");
    assert_eq!(verdict(sidecar), None);
    assert_eq!(verdict(with_log(&test, &warning.replace("WARN", "INFO"))), None);
}

/// A program in the sidecar's place that logs what it was told in `SAY`, and ends when told to.
fn start(sidecar: &mut Sidecar, test: &Test, end: &str) {
    let mut command = test.account.command("sh");
    let script = "echo \"2026-11-23T05:47:07.1Z  INFO sh: $SAY\" >&2; trap 'exit 7' TERM; ";
    command.args(["-c", &format!("{script}{end}")]);
    sidecar.start_command(command);
}

const RUN: &str = "while true; do sleep 0.02; done";

#[tokio::test]
async fn a_sidecar_is_heard_stopped_killed_and_started_again() {
    let test = Test::new();
    let mut sidecar = Sidecar::new("db1", test.folder(), &test.account);
    sidecar.set("SAY", "hello");
    start(&mut sidecar, &test, RUN);
    sidecar.wait_log("hello").await;
    assert!(sidecar.is_running());
    assert_eq!(sidecar.terminate().await.code(), Some(7));
    sidecar.set("SAY", "again");
    start(&mut sidecar, &test, RUN);
    sidecar.wait_log("again").await;
    sidecar.kill().await;
    assert!(!sidecar.is_running());
    assert_eq!(sidecar.log().entries().len(), 2);
    start(&mut sidecar, &test, RUN);
    assert_eq!(verdict(sidecar), None, "one that runs to the end of a test is ended with it");
}

#[tokio::test]
async fn a_sidecar_that_ends_by_itself_fails_a_test() {
    let test = Test::new();
    let mut sidecar = Sidecar::new("db1", test.folder(), &test.account);
    start(&mut sidecar, &test, "exit 3");
    eventually("it has ended", async || {
        anyhow::ensure!(!sidecar.is_running(), "it runs");
        Ok(())
    })
    .await;
    let said = verdict(sidecar).unwrap();
    assert!(said.contains("it ended by itself (exit status: 3)"), "{said}");
    let mut sidecar = Sidecar::new("db1", test.folder(), &test.account);
    start(&mut sidecar, &test, "exit 3");
    assert_eq!(sidecar.ended().await.code(), Some(3));
    assert_eq!(verdict(sidecar), None);
}

#[tokio::test]
async fn a_command_is_judged_by_its_code_and_its_words() {
    let test = Test::new();
    let run = async || {
        let mut command = test.account.command("sh");
        command.args(["-c", "echo out; echo wrong >&2; exit 2"]);
        Finished::run(command).await
    };
    run().await.failed(2, &["wrong"]);
    let (code, words) = (run().await, run().await);
    assert!(catch_unwind(|| code.succeeded()).is_err());
    assert!(catch_unwind(|| words.failed(2, &["right"])).is_err());
}

#[tokio::test]
async fn a_node_has_a_configuration_and_runs_walship() {
    let test = Test::new();
    let node = Node::empty(&test, "db1");
    node.write_config(&[node.listen()], "");
    let config = std::fs::read_to_string(node.config_file()).unwrap();
    assert!(toml::from_str::<toml::Table>(&config).is_ok(), "{config}");
    node.walship(&["--version"]).await.succeeded();
}

#[test]
fn ports_differ_and_chance_repeats() {
    let test = Test::new();
    assert_ne!(test.port(), test.port());
    let choices = || -> Vec<u64> {
        let mut random = test.random();
        (0..10).map(|_| random.below(1000) + random.pick(&[0, 1])).collect()
    };
    assert_eq!(choices(), choices());
}

#[test]
fn why_a_test_failed_is_kept_to_be_said_last() {
    let _test = Test::new();
    assert_eq!(last_words(), "");
    let reason = 7;
    assert!(catch_unwind(|| panic!("for reason {reason}")).is_err());
    let said = last_words();
    assert!(said.contains("tests/it/harness_itself.rs:") && said.ends_with(": for reason 7"), "{said}");
    let elsewhere = std::thread::spawn(last_words);
    assert_eq!(elsewhere.join().unwrap(), "", "each thread has its own");
}
