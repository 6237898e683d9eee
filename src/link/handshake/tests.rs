//! Every mismatch is found at the end that can find it, and reported at both.

use super::*;
use crate::clock::WallTime;
use crate::link::message::{Branch, Route};
use crate::pg::{Lsn, TimelineId};

fn timeline(number: u32, switch_lsn: u64, node: Option<&str>) -> TimelineIdentity {
    TimelineIdentity {
        timeline: TimelineId(number),
        parent: (number > 1).then(|| TimelineId(number - 1)),
        switch_lsn: Lsn(switch_lsn),
        branch: node.map(|node| Branch { epoch: u64::from(number), node: node.to_owned() }),
    }
}

fn primary() -> Hello {
    Hello {
        protocol: PROTOCOL,
        purpose: Purpose::Stream,
        version: "0.1.0".into(),
        node: "db1".into(),
        role: Role::Primary,
        system_identifier: Some(77),
        store_uuid: Some("a".into()),
        former_store_uuids: Vec::new(),
        promised_epoch: 2,
        committed_epoch: 2,
        timelines: vec![timeline(1, 0, None), timeline(2, 0x5000098, Some("db1"))],
        positions: None,
        postgres_version: Some(150018),
        segment_size: Some(16 << 20),
        advertise: Some("db1:7432".into()),
        route: Route::of_primary("db1"),
        kept: None,
    }
}

fn standby() -> Hello {
    let route = Route::alone("db2");
    Hello { node: "db2".into(), role: Role::Standby, advertise: None, route, ..primary() }
}

fn certificate(name: &str, kind: Kind) -> Identity {
    Identity { name: name.into(), kind, serial: 1, expires: WallTime { unix_micros: 0 } }
}

/// What the primary finds wrong with a dialling standby that was changed.
fn found_by_the_source(change: impl FnOnce(&mut Hello)) -> Result<(), Code> {
    let mut theirs = standby();
    change(&mut theirs);
    let node = certificate("db2", Kind::Node);
    check(&primary(), &theirs, Some(&node), Side::Accepting).map_err(|mismatch| mismatch.code())
}

/// What a dialling standby finds wrong with a source that was changed.
fn found_by_the_target(change: impl FnOnce(&mut Hello)) -> Result<(), Code> {
    let mut theirs = primary();
    change(&mut theirs);
    let node = certificate("db1", Kind::Node);
    check(&standby(), &theirs, Some(&node), Side::Dialling).map_err(|mismatch| mismatch.code())
}

#[test]
fn each_mismatch_has_its_own_code() {
    assert_eq!(found_by_the_source(|_| {}), Ok(()));
    assert_eq!(found_by_the_target(|_| {}), Ok(()));
    type Change = fn(&mut Hello);
    let at_both_ends: [(Code, Change); 7] = [
        (Code::Protocol, |hello| hello.protocol = PROTOCOL + 1),
        (Code::Name, |hello| hello.node = "db3".into()),
        (Code::Purpose, |hello| hello.purpose = Purpose::Unknown),
        (Code::SystemIdentifier, |hello| hello.system_identifier = Some(78)),
        (Code::SegmentSize, |hello| hello.segment_size = Some(1 << 20)),
        (Code::PostgresMajor, |hello| hello.postgres_version = Some(160004)),
        (Code::TimelineIdentity, |hello| hello.timelines[1] = timeline(2, 0x5000098, Some("db3"))),
    ];
    for (code, change) in at_both_ends {
        assert_eq!(found_by_the_source(change), Err(code));
        assert_eq!(found_by_the_target(change), Err(code));
    }
    assert_eq!(
        found_by_the_target(|hello| hello.purpose = Purpose::Ask),
        Err(Code::Purpose),
        "not what was asked"
    );
}

#[test]
fn who_knows_of_a_later_promotion_takes_nothing_from_who_does_not() {
    assert_eq!(found_by_the_source(|standby| standby.committed_epoch = 3), Err(Code::Epoch));
    assert_eq!(found_by_the_source(|standby| standby.promised_epoch = 3), Err(Code::Epoch));
    assert_eq!(found_by_the_target(|primary| primary.committed_epoch = 1), Err(Code::Epoch));
    let behind = |standby: &mut Hello| (standby.promised_epoch, standby.committed_epoch) = (1, 1);
    assert_eq!(found_by_the_source(behind), Ok(()), "it is about to learn of it");
    assert_eq!(found_by_the_target(|primary| primary.promised_epoch = 9), Ok(()));
}

#[test]
fn nobody_follows_those_who_follow_it_at_any_distance() {
    let chain = |names: &[&str], from_primary| Route {
        nodes: names.iter().map(|name| (*name).to_owned()).collect(),
        from_primary,
    };
    let follows = |route: Route, purpose| {
        let theirs = Hello { route, purpose, ..primary() };
        let ours = Hello { purpose, ..standby() };
        let found = check(&ours, &theirs, None, Side::Dialling);
        let asked = Hello { node: "db2".into(), role: Role::Standby, ..ours };
        assert_eq!(check(&theirs, &asked, None, Side::Accepting).is_ok(), found.is_ok());
        found
    };
    let around = chain(&["db1", "db3", "db2"], true);
    let error = follows(around.clone(), Purpose::Stream).unwrap_err();
    assert_eq!(error.code(), Code::Route);
    let text = "db2 cannot follow db1, whose own WAL comes through it: db1 <- db3 <- db2";
    assert_eq!(error.to_string(), text);
    assert_eq!(follows(around, Purpose::Wal), Ok(()), "a copy makes no circle");
    assert_eq!(follows(chain(&["db1", "db3"], false), Purpose::Stream), Ok(()));
    let longest = chain(&["n"; Route::NODES_MAX], true);
    assert_eq!(follows(longest, Purpose::Stream).unwrap_err().code(), Code::Route);
}

#[test]
fn what_is_not_known_is_not_compared() {
    let blank = |hello: &mut Hello| {
        hello.system_identifier = None;
        hello.segment_size = None;
        hello.postgres_version = None;
        hello.timelines.clear();
    };
    assert_eq!(found_by_the_source(blank), Ok(()));
    assert_eq!(found_by_the_target(blank), Ok(()));
    assert_eq!(found_by_the_source(|hello| hello.postgres_version = Some(150001)), Ok(()), "same major");
    assert_eq!(found_by_the_source(|hello| hello.timelines.push(timeline(3, 9 << 24, None))), Ok(()));
}

#[test]
fn a_reader_may_copy_and_ask_but_never_follow_or_serve() {
    let reader = certificate("r", Kind::Reader);
    let asks = |purpose, role| {
        let theirs = Hello { node: "r".into(), role, purpose, ..standby() };
        check(&primary(), &theirs, Some(&reader), Side::Accepting).map_err(|mismatch| mismatch.code())
    };
    for purpose in [Purpose::Backup, Purpose::Files { backup: 1 }, Purpose::Wal, Purpose::Ask] {
        assert_eq!(asks(purpose, Role::Reader), Ok(()));
        assert_eq!(asks(purpose, Role::Standby), Err(Code::Role), "it is none");
    }
    assert_eq!(asks(Purpose::Stream, Role::Reader), Err(Code::Role));
    assert_eq!(
        found_by_the_source(|hello| hello.role = Role::Reader),
        Err(Code::Role),
        "with any certificate"
    );
    assert_eq!(
        found_by_the_target(|hello| hello.role = Role::Reader),
        Err(Code::Role),
        "a reader that serves"
    );
}

#[test]
fn a_question_or_a_new_copy_is_not_refused_for_a_different_past() {
    let diverged = |purpose| {
        found_by_the_source(|hello| {
            hello.purpose = purpose;
            hello.timelines[1] = timeline(2, 0x6000000, Some("db2"));
        })
    };
    assert_eq!(diverged(Purpose::Ask), Ok(()));
    assert_eq!(diverged(Purpose::Backup), Ok(()));
    assert_eq!(diverged(Purpose::Wal), Err(Code::TimelineIdentity));
    let stale = |hello: &mut Hello| (hello.purpose, hello.committed_epoch) = (Purpose::Ask, 9);
    assert_eq!(found_by_the_source(stale), Ok(()));
}

#[test]
fn a_node_does_not_follow_itself_but_may_copy_itself() {
    let own = certificate("db1", Kind::Node);
    let dial = |purpose| {
        let theirs = Hello { purpose, ..primary() };
        check(&primary(), &theirs, Some(&own), Side::Accepting).map_err(|mismatch| mismatch.code())
    };
    assert_eq!(dial(Purpose::Stream), Err(Code::Duplicate));
    assert_eq!(dial(Purpose::Backup), Ok(()));
}

#[test]
fn texts_name_both_nodes() {
    let theirs = Hello { timelines: vec![timeline(2, 0x6000000, Some("db2"))], ..standby() };
    let mismatch = check(&primary(), &theirs, None, Side::Accepting).unwrap_err();
    assert_eq!(
        mismatch.to_string(),
        "timeline 2 of db1 is not timeline 2 of db2: branched from timeline 1 at 0/5000098 by db1 in epoch 2, \
         branched from timeline 1 at 0/6000000 by db2 in epoch 2"
    );
    assert!(mismatch.hint().ends_with('.'));
}

/// Both ends' view of one handshake.
async fn shake(
    source: Hello,
    target: Hello,
    admit: impl FnOnce(&Hello) -> Result<(), Reject>,
) -> (Result<Hello, LinkError>, Result<Hello, LinkError>) {
    let (one, two) = tokio::io::duplex(1 << 16);
    let serve = async {
        let mut conn = Conn::new(one);
        let hello = answer(&mut conn, &source, None, admit).await?;
        // As a stage would: the next thing it reads may be the peer's refusal.
        match conn.read().await {
            Ok(message) => Err(LinkError::unexpected("Resume", message)),
            Err(_) => Ok(hello),
        }
    };
    let ask = async { greet(&mut Conn::new(two), &target, None).await };
    tokio::join!(serve, ask)
}

#[tokio::test]
async fn two_that_belong_together_know_each_other_afterwards() {
    let (served, asked) = shake(primary(), standby(), |_| Ok(())).await;
    assert_eq!(served.unwrap(), standby());
    assert_eq!(asked.unwrap(), primary());
}

#[tokio::test]
async fn both_ends_report_what_the_accepting_end_found() {
    let other = Hello { system_identifier: Some(1), ..standby() };
    let (served, asked) = shake(primary(), other, |_| Ok(())).await;
    let text = "db1 and db2 are of different database clusters: system identifiers 77 and 1";
    assert_eq!(served.unwrap_err().to_string(), format!("refused the peer: {text}"));
    let asked = asked.unwrap_err();
    assert_eq!(asked.to_string(), format!("the peer refused: {text}"));
    assert!(asked.hint().is_some());
}

#[tokio::test]
async fn both_ends_report_what_the_dialling_end_found() {
    // Whatever the accepting end is, it does not know its own version here, so only the other can compare.
    let other = Hello { role: Role::Reader, ..primary() };
    let (served, asked) = shake(other, standby(), |_| Ok(())).await;
    assert!(matches!(asked.unwrap_err(), LinkError::Mismatch(m) if m.code() == Code::Role));
    assert!(matches!(served.unwrap_err(), LinkError::Rejected(reject) if reject.code == Code::Role));
}

#[tokio::test]
async fn the_accepting_end_has_the_last_word() {
    let reject = Reject { code: Code::NotReady, message: "db1 is starting".into(), hint: String::new() };
    let (served, asked) = shake(primary(), standby(), |_| Err(reject.clone())).await;
    assert!(matches!(served.unwrap_err(), LinkError::Refused(said) if *said == reject));
    let asked = asked.unwrap_err();
    assert!(asked.is_gone(), "to be tried again: {asked}");
    assert!(matches!(asked, LinkError::Rejected(said) if *said == reject));
}

#[tokio::test]
async fn a_newer_protocol_is_refused_at_both_ends_whatever_its_hello_holds() {
    let newer = Hello { protocol: PROTOCOL + 1, ..standby() };
    let (served, asked) = shake(primary(), newer, |_| Ok(())).await;
    assert!(matches!(served.unwrap_err(), LinkError::Mismatch(m) if m.code() == Code::Protocol));
    assert!(matches!(asked.unwrap_err(), LinkError::Rejected(reject) if reject.code == Code::Protocol));
}

#[tokio::test]
async fn who_does_not_say_hello_is_told_so() {
    let (one, two) = tokio::io::duplex(1 << 16);
    let (mut accepting, mut dialling) = (Conn::new(one), Conn::new(two));
    dialling.write(Message::Ask).await.unwrap();
    let ours = primary();
    let (served, told) = tokio::join!(answer(&mut accepting, &ours, None, |_| Ok(())), async {
        let told = dialling.read().await.unwrap();
        dialling.close().await.unwrap();
        told
    });
    assert_eq!(served.unwrap_err().to_string(), "expected Hello from the peer, got Ask");
    assert!(matches!(told, Message::Reject(reject) if reject.code == Code::Violation));
}

#[tokio::test(start_paused = true)]
async fn silence_is_bounded_at_both_ends() {
    let (one, two) = tokio::io::duplex(1 << 16);
    assert!(matches!(
        answer(&mut Conn::new(one), &primary(), None, |_| Ok(())).await,
        Err(LinkError::Silent(HANDSHAKE_WITHIN))
    ));
    drop(two);
    let (_one, two) = tokio::io::duplex(1 << 16);
    assert!(matches!(
        greet(&mut Conn::new(two), &standby(), None).await,
        Err(LinkError::Silent(HANDSHAKE_WITHIN))
    ));
}
