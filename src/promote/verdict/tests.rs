//! What is said of each situation, and what never is.

use super::super::tests::{at, situation};
use super::super::{Stake, plan};
use super::*;

/// Forced, so that a plan comes of each.
fn said(who: &str, what: &str, stopped_at: Option<Time>) -> Verdict {
    let (facts, wish) = situation(who, &format!("votes force {what}"));
    let stake = plan(&facts, &wish).unwrap().stake;
    verdict(&stake, facts.primary().map(|(primary, _)| primary.node.as_str()), stopped_at)
}

#[test]
fn each_verdict_says_what_is_known_and_what_is_not() {
    let lost = "db1:silent db2:1000 db3:900";
    let stopped = Some(at(9));
    let cases = [
        (
            "db1:stopped@1000 db2:1000 db3:900",
            "clean",
            stopped,
            "nothing is lost: db1 ended with a shutdown checkpoint, and all of its WAL is here, up to 0/3E8",
        ),
        (
            "db1:stopped@1000 db2:1000 db3:900",
            "",
            stopped,
            "nothing is lost that db1 had on disk: its log is here to the last whole record, up to 0/3E8",
        ),
        (
            lost,
            "wait=1:db2,db3",
            None,
            "0 acknowledged bytes lost: commits waited for any 1 (*) without a limit, db1 last reported itself armed at \
             2027-01-15T08:00:05Z, and all that it acknowledged is here, up to 0/3E8; this covers commits at `on` or \
             `remote_apply` that were not cancelled, and no policy that was forced on db1 since",
        ),
        (
            lost,
            "wait=1:db2,db3 limit heard=900",
            stopped,
            "none up to 0/3E8, reported armed at 2027-01-15T08:00:05Z; unknown after: db1 was last heard at \
             2027-01-15T08:00:03Z, then at 0/384; what it acknowledged from 2027-01-15T08:00:05Z until 2027-01-15T08:00:09Z, \
             when it stood still",
        ),
        (
            lost,
            "",
            stopped,
            "none up to 0/3E8, all that there was by its last word, of 2027-01-15T08:00:03Z; unknown after: db1 was last heard at \
             2027-01-15T08:00:03Z, then at 0/3E8; what it acknowledged from 2027-01-15T08:00:03Z until 2027-01-15T08:00:09Z, \
             when it stood still",
        ),
        (
            lost,
            "",
            Some(at(-3600)),
            "none up to 0/3E8, all that there was by its last word, of 2027-01-15T08:00:03Z; unknown after: db1 was last heard at \
             2027-01-15T08:00:03Z, then at 0/3E8; what it acknowledged from 2027-01-15T08:00:03Z until it stood still, which was at \
             2027-01-15T07:00:00Z by the clock of the promoted node: the two clocks differ",
        ),
        (
            lost,
            "unheard",
            None,
            "none up to 0/3E8; unknown after: db1 was not heard since walship started here; what it acknowledged at any time \
             until it is stopped: nothing made sure that db1 is",
        ),
        (
            lost,
            "heard=1300",
            None,
            "lost: WAL from 0/3E8 to at least 0/514 (300 bytes); none up to 0/3E8; unknown after 0/514: db1 was last heard at \
             2027-01-15T08:00:03Z, then at 0/514; what it acknowledged at any time until it is stopped: nothing made sure that \
             db1 is",
        ),
        (
            "db2:1000",
            "committed=2 highest=2",
            None,
            "lost: all that was written since the promotion of epoch 2; how much that is, is unknown",
        ),
    ];
    for (who, what, stopped_at, text) in cases {
        assert_eq!(said(who, what, stopped_at).text, text, "{who} | {what}");
    }
}

/// Each takes away one thing that the strong claim needs; a fence and a majority make up for none of them.
#[test]
fn the_strong_claim_is_made_only_when_nothing_is_missing() {
    let lost = "db1:silent db2:1000 db3:900";
    assert!(said(lost, "fence wait=1:db2,db3", Some(at(9))).text.starts_with("0 acknowledged bytes lost"));
    let cases = [
        ("no policy", lost, ""),
        ("a stall limit", lost, "wait=1:db2,db3 limit"),
        ("not armed", lost, "wait=1:db2,db3 unarmed"),
        ("nothing was reported", lost, "wait=1:db2,db3 unreported"),
        ("a newer policy is known to a voter", lost, "wait=1:db2,db3 outdated"),
        ("more was released than is here", lost, "wait=1:db2,db3 released=1100"),
        ("too few frozen positions", "db1:silent db2:1000 db3:900?", "wait=1:db2,db3"),
        ("one refused", "db1:silent db2:1000 db3:900!", "wait=1:db2,db3"),
        ("one that was never heard", "db1:silent db2:1000 db3:?", "wait=1:db2,db3"),
        ("one of three too few", "db1:silent db2:1000 db3:900 db4:?", "wait=1:db2,db3,db4"),
        ("another has more, and it can't be had", "db1:silent db2:1000 db3:1100", "by-hand wait=1:db2,db3"),
        ("its own PostgreSQL lacks what it acknowledged", lost, "by-hand store=1100 wait=1:db2,db3"),
        ("a later epoch is committed", lost, "wait=1:db2,db3 committed=2 highest=2"),
        ("an earlier attempt claimed less", lost, "wait=1:db2,db3 earlier=none-known"),
        ("the policy named nobody who was asked", lost, "wait=1:db4"),
    ];
    for (why, who, what) in cases {
        for more in ["", " fence", " fence unheard"] {
            let verdict = said(who, &format!("{what}{more}"), Some(at(9)));
            assert!(!verdict.stake.is_nothing(), "{why}: {verdict:?}");
            assert!(
                !verdict.text.contains("0 acknowledged") && !verdict.text.contains("nothing is lost"),
                "{why}"
            );
            let doubts = ["unknown", "lost: "];
            assert!(doubts.iter().any(|doubt| verdict.text.contains(doubt)), "{why}: {}", verdict.text);
        }
    }
}

#[test]
fn the_window_begins_with_the_last_moment_that_is_known_to_be_safe() {
    let lost = "db1:silent db2:1000 db3:900";
    let window = |what: &str, to| said(lost, what, to).window;
    assert_eq!(window("", Some(at(9))), Some(Window { from: Some(at(3)), to: Some(at(9)) }));
    assert_eq!(window("wait=1:db2,db3 limit", None), Some(Window { from: Some(at(5)), to: None }));
    // What was released then is not here: nothing acknowledged since the start may be.
    let lacking = "wait=1:db2,db3 limit released=1100 heard=1100";
    assert_eq!(window(lacking, None), Some(Window { from: None, to: None }));
    // It said itself that commits went on unprotected; what it had was here all the same.
    assert_eq!(window("wait=1:db2,db3 unarmed", None), Some(Window { from: Some(at(3)), to: None }));
    assert_eq!(window("wait=1:db2,db3", None), None);
}

#[test]
fn a_verdict_goes_to_disk_and_back() {
    let whats =
        ["", "unheard", "heard=1300", "wait=1:db2,db3", "wait=1:db2,db3 limit", "committed=2 highest=2"];
    for what in whats {
        let verdict = said("db1:silent db2:1000 db3:900", what, Some(at(9)));
        let text = serde_json::to_string(&verdict).unwrap();
        assert_eq!(serde_json::from_str::<Verdict>(&text).unwrap(), verdict, "{text}");
    }
    let text = serde_json::to_value(said("db1:silent db2:1000", "heard=1300", None)).unwrap();
    assert_eq!((text["claim"].as_str(), text["to"].as_str()), (Some("at_least"), Some("0/514")));
    assert!(!matches!(said("db2:1000", "", None).stake, Stake::Nothing { .. }));
}
