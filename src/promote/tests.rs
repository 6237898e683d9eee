//! Situations, and what follows from them: the table is in `situations.txt`, which says how to read it.

use std::time::Duration;

use super::*;
use crate::clock::{Time, WallTime};
use crate::pg::Lsn;
use crate::policy::StallLimit;

/// Where a primary writes that answers.
const WRITES_AT: Lsn = Lsn(9999);

fn number<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

/// An LSN, of epoch 1 unless it says.
fn position(text: &str) -> (u64, Lsn) {
    let (epoch, lsn) = text.split_once('/').unwrap_or(("1", text));
    (number(epoch), Lsn(number(lsn)))
}

fn member(text: &str, stage: Stage) -> Seen {
    let (node, how) = text.split_once(':').unwrap();
    let here = if stage == Stage::Votes { Contact::Voted } else { Contact::Answered };
    let refused = Contact::Refused { why: "db1 answers it, and writes".into() };
    let (what, at) = how.split_once('@').map_or((how, None), |(what, at)| (what, Some(position(at))));
    let writing = Part::Primary(Server::Writing { lsn: at.map_or(WRITES_AT, |(_, lsn)| lsn) });
    let (part, contact, position) = match what {
        "silent" => (Part::Primary(Server::Unsure), Contact::Silent, None),
        "writing" => (writing, Contact::Answered, at),
        "refused" => (writing, refused, at),
        "unsure" => (Part::Primary(Server::Unsure), Contact::Answered, at),
        "voted" => (Part::Primary(Server::Unsure), Contact::Voted, at),
        "down" => (Part::Primary(Server::Down), Contact::Answered, at),
        "stopped" => (Part::Primary(Server::Down), Contact::Voted, at),
        "left" => (Part::Superseded, here, at),
        "?" => (Part::Standby, Contact::Silent, None),
        standby => match (standby.strip_suffix('?'), standby.strip_suffix('!')) {
            (Some(last), _) => (Part::Standby, Contact::Silent, Some(position(last))),
            (_, Some(at)) => (Part::Standby, refused, Some(position(at))),
            _ => (Part::Standby, here, Some(position(standby))),
        },
    };
    Seen { node: node.into(), part, contact, priority: 100, position, said: Said::default() }
}

/// What the first two columns say.
pub fn situation(who: &str, what: &str) -> (Facts, Wish) {
    let stage = if what.split(' ').any(|word| word == "votes") { Stage::Votes } else { Stage::Facts };
    let mut facts = Facts {
        node: "db2".into(),
        members: who.split_whitespace().map(|text| member(text, stage)).collect(),
        committed_epoch: 1,
        highest_epoch: 1,
        is_promoted: false,
        replay: Replay::Free,
        log_end: Lsn(0),
        last_heard: Some(heard(1000)),
        ended_cleanly: false,
        waited: None,
        earlier: None,
        can_fence: false,
        stage,
    };
    let mut wish = Wish::default();
    let mut words: Vec<&str> = what.split_whitespace().collect();
    // The rest changes it.
    words.sort_by_key(|word| !word.starts_with("wait="));
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "votes" => {}
            "fence" => facts.can_fence = true,
            "force" => wish.force = true,
            "max-loss" => wish.max_loss_bytes = Some(number(value)),
            "switchover" => wish.switchover = true,
            "paused" => facts.replay = Replay::Paused,
            "delayed" => facts.replay = Replay::Delayed { seconds: 60 },
            "by-hand" => facts.is_promoted = true,
            "heard" => facts.last_heard = Some(heard(number(value))),
            "unheard" => facts.last_heard = None,
            "committed" => facts.committed_epoch = number(value),
            "highest" => facts.highest_epoch = number(value),
            "wait" => facts.waited = Some(waited(value)),
            "limit" => {
                facts.waited.as_mut().unwrap().stall_limit = StallLimit(Some(Duration::from_secs(2)));
            }
            "outdated" => facts.waited.as_mut().unwrap().is_outdated = true,
            "unreported" => facts.waited.as_mut().unwrap().reported = None,
            "unarmed" => reported(&mut facts).is_armed = false,
            "released" => reported(&mut facts).released_lsn = Lsn(number(value)),
            "store" => facts.log_end = Lsn(number(value)),
            "clean" => facts.ended_cleanly = true,
            "earlier" => facts.earlier = Some(earlier(value)),
            other => panic!("{other:?} means nothing"),
        }
    }
    (facts, wish)
}

fn waited(text: &str) -> Waited {
    let (needed, seats) = text.split_once(':').unwrap();
    let seats = seats.split(',').map(str::to_owned).collect();
    Waited {
        policy: format!("any {needed} (*)"),
        seats,
        needed: number(needed),
        stall_limit: StallLimit(None),
        reported: Some(Reported { is_armed: true, released_lsn: Lsn(0), at: at(5) }),
        is_outdated: false,
    }
}

fn reported(facts: &mut Facts) -> &mut Reported {
    facts.waited.as_mut().unwrap().reported.as_mut().unwrap()
}

fn heard(lsn: u64) -> Heard {
    Heard { lsn: Lsn(lsn), at: at(3), seconds: 7 }
}

/// So many seconds past some minute.
pub fn at(second: i64) -> Time {
    WallTime { unix_micros: (1_800_000_000 + second) * 1_000_000 }.into()
}

fn earlier(text: &str) -> Stake {
    let (end, known) = (Lsn(1000), Known::default());
    match text {
        "none-known" => Stake::NothingKnown { from: end, known },
        "none-acknowledged" => {
            Stake::NothingAcknowledged { end, policy: "any 1 (*)".into(), armed_at: at(5) }
        }
        to => Stake::AtLeast { from: end, to: Lsn(number(to)), known },
    }
}

/// The last column.
fn told(outcome: &Result<Plan, Refusal>) -> String {
    let plan = match outcome {
        Ok(plan) => plan,
        Err(refusal) => return serde_json::to_value(refusal.kind).unwrap().as_str().unwrap().to_owned(),
    };
    let pulls = plan.salvage.as_ref().map(|pulled| format!(", pulls {}@{}", pulled.node, pulled.to.0));
    let stake = match &plan.stake {
        Stake::Nothing { ended_cleanly: true, .. } => "nothing, cleanly".to_owned(),
        Stake::Nothing { .. } => "nothing".to_owned(),
        Stake::NothingAcknowledged { end, .. } => format!("none-acknowledged beyond {}", end.0),
        Stake::NothingKnown { from, known } if known.heard.is_some() => {
            format!("none-known beyond {}", from.0)
        }
        Stake::NothingKnown { from, .. } => format!("unknown beyond {}", from.0),
        Stake::Since { epoch } => format!("lost since e{epoch}"),
        Stake::AtLeast { from, to, .. } => format!("lost {}..{}", from.0, to.0),
    };
    let fence = format!("{:?}", plan.fence).to_lowercase();
    format!("e{} {fence}{}, {stake}", plan.epoch, pulls.unwrap_or_default())
}

#[test]
fn what_follows_from_each_situation() {
    let lines = include_str!("situations.txt").lines().zip(1..);
    let lines = lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
    let (mut wrong, mut count) = (String::new(), 0);
    for (line, number) in lines {
        let [who, what, follows] = line.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
            panic!("line {number} has not three columns: {line}");
        };
        let (facts, wish) = situation(who, what);
        let outcome = told(&plan(&facts, &wish));
        if outcome != follows {
            wrong += &format!("\nline {number}: {who} | {what}\n  is {outcome}\n not {follows}");
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(count >= 80, "{count} situations");
}

#[test]
fn a_refusal_says_why_and_what_accepts_the_consequence_and_force_keeps_the_reason_as_a_warning() {
    let cases = [
        (
            "db1:writing@1500 db2:1000 db3:1000",
            "",
            "two primaries would part the data",
            "at least 0/5DC (500 bytes)",
        ),
        ("db1:unsure db2:1000 db3:1000", "", "whether its PostgreSQL runs is unknown", "no WAL beyond 0/3E8"),
        (
            "db1:silent db2:1000 db3:1200",
            "",
            "db3 is further along, at 0/4B0; db2 is at 0/3E8",
            "or here with --elect",
        ),
        ("db1:silent db2:1000 db3:1200?", "fence", "db3 was last seen further along", "Start walship on db3"),
        (
            "db1:silent db2:1000 db3:2/10",
            "highest=2",
            "db3 is further along, in epoch 2 at 0/A; db2 is in epoch 1 at 0/3E8",
            "or accept with --force that db2 is promoted",
        ),
        (
            "db1:silent db2:1000 db3:1000",
            "committed=2 highest=2",
            "a promotion committed epoch 2, and db2 has no WAL of it",
            "all that was written since the promotion of epoch 2 is not here",
        ),
        (
            "db1:silent db2:1000 db3:900!",
            "votes",
            "db3 refused its vote: db1 answers it",
            "--force asks again",
        ),
        (
            "db1:silent db2:1000",
            "",
            "1 of 2 members answer, and 2 must: db1 may follow another primary",
            "say so with --fence-command",
        ),
        (
            "db1:silent db2:900 db3:900 db4:?",
            "votes fence wait=1:db2,db3,db4",
            "commits waited for any 1 (*), and db4 may alone have some that were acknowledged: 3 of them must answer, and 2 did",
            "Start walship on db4 and run this again",
        ),
        ("db1:silent db2:1000 db3:1000", "paused", "somebody paused the replay", "pg_wal_replay_resume()"),
        ("db1:silent db2:1000 db3:1000", "delayed", "with a delay of 60 s", "recovery_min_apply_delay = 0"),
    ];
    for (who, what, reason, hint) in cases {
        let (facts, wish) = situation(who, what);
        let refusal = plan(&facts, &wish).unwrap_err();
        assert!(refusal.reason.contains(reason), "{}", refusal.reason);
        assert!(refusal.hint.contains(hint), "{}", refusal.hint);
        let forced = plan(&facts, &Wish { force: true, ..wish }).unwrap();
        assert!(forced.warnings.contains(&refusal.reason), "{:?}", forced.warnings);
    }
}

#[test]
fn what_is_not_known_and_what_is_not_fenced_is_among_the_warnings() {
    let (facts, wish) = situation("db1:silent db2:1000 db3:1000 db4:900 db5:?", "votes");
    let warnings = plan(&facts, &wish).unwrap().warnings.join("\n");
    assert!(warnings.contains("db5 does not answer, so how far it is now is not known"), "{warnings}");
    assert!(
        warnings.contains("nothing makes sure that it is down: what it still accepts is lost"),
        "{warnings}"
    );
    assert!(!warnings.contains("db3") && !warnings.contains("db4"), "{warnings}");
    let (facts, wish) = situation("db1:silent db2:1000 db3:1000", "votes fence");
    assert_eq!(plan(&facts, &wish).unwrap().warnings, Vec::<String>::new());
}
