//! Every message survives the wire, and nothing else passes for one.

use std::os::unix::ffi::OsStringExt;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::*;
use crate::clock::WallTime;
use crate::link::frame::{self, Step};
use crate::link::{PROTOCOL, message};
use crate::pg::{Lsn, TimelineId};
use crate::policy::{Policy, Resolved, StallLimit};

fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL,
        purpose: Purpose::Files { backup: 7 },
        version: "0.1.0".into(),
        node: "db1".into(),
        role: Role::Primary,
        system_identifier: Some(7_711_238_045_745_010_420),
        store_uuid: Some("5d1c".into()),
        former_store_uuids: vec!["4c0b".into()],
        promised_epoch: 3,
        committed_epoch: 2,
        timelines: vec![TimelineIdentity {
            timeline: TimelineId(2),
            parent: Some(TimelineId(1)),
            switch_lsn: Lsn(0x5000098),
            branch: Some(Branch { epoch: 2, node: "db1".into() }),
        }],
        positions: None,
        postgres_version: Some(150018),
        segment_size: Some(16 << 20),
        advertise: Some("db1.example:7432".into()),
        route: Route::of_primary("db1"),
        kept: Some(StoreStart { timeline: TimelineId(1), start_lsn: Lsn(1 << 24) }),
    }
}

fn one_of_each() -> Vec<Message> {
    let positions = Positions {
        timeline: TimelineId(2),
        written_lsn: Lsn(5),
        flushed_lsn: Lsn(4),
        replayed_lsn: Lsn(3),
        restartpoint_lsn: Lsn(2),
    };
    let timeline = hello().timelines.remove(0);
    let now = WallTime { unix_micros: 1_795_412_827_000_001 };
    let path = WirePath::new("base/5/16384").unwrap();
    let member = Member {
        name: "db2".into(),
        store_uuid: None,
        certificate_serial: u64::MAX,
        advertise: None,
        role: Role::Standby,
        positions: Some(positions),
        last_seen: Some(now),
        alarms: vec!["the store is full".into()],
        upstream: Some("db1".into()),
    };
    let answer = Answer {
        node: "db2".into(),
        role: Role::Standby,
        store_uuid: Some("u".into()),
        promised_epoch: 1,
        promise: Some(Promise { epoch: 2, candidate: "db3".into() }),
        committed_epoch: 1,
        policy_serial: 3,
        priority: 100,
        timeline: Some(timeline.clone()),
        positions: Some(positions),
        postgres: PostgresAnswer::Up { in_recovery: true, lsn: Lsn(3) },
        is_being_promoted: true,
        holds_configuration: Some(true),
    };
    let policy = Resolved::new(7, Policy::All, StallLimit(None), &["db1".to_owned(), "db2".to_owned()]);
    let frame = OpenFrame { start_lsn: Lsn(1 << 20), bytes: 99, sha256: Digest([0xAB; 32]) };
    let heartbeat = Heartbeat { server_flush_lsn: Lsn(9), server_time: now, sent_lsn: Lsn(8) };
    let feedback = StandbyFeedback { xmin: 731, xmin_epoch: 1, catalog_xmin: 0, catalog_xmin_epoch: 0 };
    let started = BackupStarted {
        backup: 7,
        start_lsn: Lsn(1),
        timeline: TimelineId(1),
        system_identifier: u64::MAX,
        segment_size: 1 << 20,
        postgres_major: 15,
        catalog_version: 202209061,
        data_checksums: true,
        tablespaces: vec![Tablespace { oid: 16390, path: "/srv/ts".into() }],
        total_bytes: 10,
        files: 2,
        folders: 1,
        standby_settings: [("max_connections".to_owned(), "100".to_owned())].into(),
    };
    let start = BackupStart {
        label: "walship".into(),
        fast_checkpoint: true,
        max_rate_bytes_per_second: None,
        compression: Some(1),
    };
    let end = FileEnd {
        size: 8192,
        sha256: Digest([1; 32]),
        modified_unix_seconds: -1,
        bad_pages: 1,
        first_bad_page: Some(0),
    };
    let stopped = BackupStopped {
        stop_lsn: Lsn(2),
        timeline: TimelineId(1),
        backup_label: "START WAL LOCATION: 0/2000028\n".into(),
        tablespace_map: String::new(),
        system_identifier: 1,
        files: 9,
        bytes: 10,
    };
    let forgotten = Forgotten { name: "db9".into(), certificate_serial: u64::MAX, at: now };
    let ack = Ack {
        timeline: TimelineId(3),
        written_lsn: Lsn(4),
        flushed_lsn: Lsn(3),
        replayed_lsn: Lsn(2),
        restartpoint_lsn: Lsn(1),
        policy_serial: 7,
        is_copying: true,
    };
    vec![
        Message::Hello(Box::new(hello())),
        Message::Reject(Reject { code: Code::Epoch, message: "old".into(), hint: "Look.".into() }),
        Message::Members(MemberList {
            members: vec![member],
            protection: Some(Protection { is_armed: true, released_lsn: Lsn(7), at: now }),
            forgotten: vec![forgotten],
        }),
        Message::Ask,
        Message::Answer(Box::new(answer.clone())),
        Message::VoteRequest(VoteRequest {
            epoch: 3,
            candidate: "db2".into(),
            address: "db2.example:7432".into(),
            why: Why::Switchover,
        }),
        Message::Vote(Box::new(Vote {
            refusal: Some("db1 writes".into()),
            rival: Some("db3".into()),
            is_stopped: true,
            ended_cleanly: true,
            answer,
        })),
        Message::Withdrawal(Withdrawal { epoch: 3, candidate: "db2".into() }),
        Message::Order(Order::Promote { force: true, max_loss_bytes: Some(0), fence_command: None }),
        Message::Told(Told::Failed { message: "no".into(), hint: None, outcome: Some("refused".into()) }),
        Message::Told(Told::Done { line: "done".into(), json: Some("{}\n".into()) }),
        Message::WantCertificate(Branch { epoch: 3, node: "db2".into() }),
        Message::KeptCertificate(KeptCertificate { text: Some("{}\n".into()) }),
        Message::Resume(Resume { timeline: TimelineId(1), lsn: Lsn(8192), frame: Some(frame) }),
        Message::Timeline(Timeline { identity: timeline, history: "1\t0/5000098\tx\n".into() }),
        Message::Wal(wal(Bytes::from_static(b"zstd"))),
        Message::Ack(ack),
        Message::Relayed(RelayedList(vec![Relayed {
            node: "db4".into(),
            upstream: "db3".into(),
            store_uuid: "x".into(),
            former_store_uuids: vec!["w".into()],
            certificate_serial: u64::MAX,
            advertise: None,
            is_connected: true,
            since: now,
            silent_millis: 7,
            ack: Some(ack),
        }])),
        Message::Policy(Box::new(Kept { effective: Some(policy), pending: None })),
        Message::Heartbeat(heartbeat),
        Message::Feedback(feedback),
        Message::Samples(vec![Sample { lsn: Lsn(9), time: now, after_gap: false }]),
        Message::Standing(Standing { route: Route::alone("db2"), committed_epoch: 2 }),
        Message::BackupStart(start),
        Message::BackupPhase(BackupPhase { phase: Phase::Checkpoint, done_bytes: 0, total_bytes: 0 }),
        Message::BackupStarted(Box::new(started)),
        Message::Listing(vec![
            Listed { path: path.clone(), size: Some(u64::MAX) },
            Listed { path, size: None },
        ]),
        Message::WantFile(WantFile { index: 7, continues: true, digests: vec![0xCD; 64].into() }),
        Message::WantFile(WantFile { index: u32::MAX, continues: false, digests: Bytes::new() }),
        Message::FileBegin(FileBegin { index: 3, size: 8192 }),
        Message::FileChunk(FileChunk {
            offset: 1 << 40,
            compressed: true,
            data: Bytes::from_static(b"zstd"),
        }),
        Message::FileEnd(end),
        Message::FileEnd(FileEnd { bad_pages: 0, first_bad_page: None, ..end }),
        Message::FileGone(FileGone { index: 4 }),
        Message::NoMoreFiles,
        Message::BackupStop,
        Message::BackupStopped(Box::new(stopped)),
        Message::ControlFile(ControlFileContent(vec![7; 8192].into())),
    ]
}

fn wal(data: Bytes) -> Wal {
    Wal { timeline: TimelineId(2), start_lsn: Lsn(100), end_lsn: Lsn(8192), opens_frame: true, data }
}

fn over_the_wire(message: Message) -> Message {
    let frame = message.encode().unwrap();
    let bytes = [frame.head().unwrap(), frame.body].concat();
    match frame::take(&mut BytesMut::from(&bytes[..])).unwrap() {
        Step::Frame(frame) => Message::decode(frame).unwrap(),
        Step::Need(bytes) => panic!("incomplete: {bytes}"),
    }
}

#[test]
fn every_message_survives_the_wire() {
    for message in one_of_each() {
        assert_eq!(over_the_wire(message.clone()), message);
    }
}

#[test]
fn fields_and_variants_of_a_newer_version_are_tolerated() {
    let decode = |kind, body: &str| {
        Message::decode(Frame { kind, body: Bytes::copy_from_slice(body.as_bytes()), ..Frame::default() })
    };
    let reject = decode(kind::REJECT, r#"{"code":"moon_phase","message":"m","since":1}"#).unwrap();
    let expected = Reject { code: Code::Unknown, message: "m".into(), hint: String::new() };
    assert_eq!(reject, Message::Reject(expected));
    let json = serde_json::to_string(&hello()).unwrap();
    let newer = json.replace(r#""for":"files""#, r#""for":"dance""#);
    assert!(matches!(
        decode(kind::HELLO, &newer).unwrap(),
        Message::Hello(hello) if hello.purpose == Purpose::Unknown
    ));
    let next = format!(r#"{{"protocol":{},"all":"else"}}"#, PROTOCOL + 1);
    let error = decode(kind::HELLO, &next).unwrap_err();
    assert!(matches!(error, LinkError::Protocol { theirs } if theirs == PROTOCOL + 1));
}

#[test]
fn nonsense_in_binary_messages_is_refused() {
    let good = Message::Wal(wal(Bytes::new())).encode().unwrap();
    let body: Bytes = [good.fields, good.body].concat().into();
    let frame = Frame { fields: Bytes::new(), body, ..good };
    assert!(Message::decode(frame.clone()).is_ok());
    for bad in [
        Frame { flags: 0x80, ..frame.clone() },
        Frame { lsn: Lsn(8193), ..frame.clone() },
        Frame { body: frame.body.slice(..11), ..frame.clone() },
    ] {
        assert!(matches!(Message::decode(bad), Err(LinkError::Malformed { message: "Wal", .. })));
    }
}

#[test]
fn digests_come_whole_and_not_too_many() {
    let want = |bytes: usize| WantFile { index: 1, continues: false, digests: vec![0; bytes].into() };
    let decode = |want: WantFile| {
        let frame = Message::WantFile(want).encode().unwrap();
        let body = [frame.fields, frame.body].concat().into();
        Message::decode(Frame {
            fields: Bytes::new(),
            body,
            ..Frame { kind: frame.kind, ..Frame::default() }
        })
    };
    let most = WantFile::DIGESTS_LIMIT * Digest::BYTES;
    assert!(decode(want(most)).is_ok());
    for wrong in [31, 33, most + Digest::BYTES] {
        assert!(
            matches!(decode(want(wrong)), Err(LinkError::Malformed { message: "WantFile", .. })),
            "{wrong}"
        );
    }
}

#[test]
fn a_listed_path_takes_no_more_than_it_says() {
    for name in ["base/5/112", &"\u{1}".repeat(4096), &"\"".repeat(100)] {
        for path in [name.into(), std::ffi::OsString::from_vec([name.as_bytes(), b"\xe9"].concat())] {
            let Ok(path) = WirePath::new(std::path::PathBuf::from(path)) else { continue };
            let listed = Listed { path, size: Some(u64::MAX) };
            let most = listed.bytes_max();
            assert!(Message::Listing(vec![listed; 3]).encode().unwrap().body.len() <= 3 * most);
        }
    }
}

proptest! {
    #[test]
    fn random_bodies_never_panic(kind: u8, flags: u8, lsn: u64, body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Message::decode(Frame { kind, flags, lsn: Lsn(lsn), body: body.into(), ..Frame::default() });
    }

    #[test]
    fn random_json_never_panics(kind in 1u8..0x30, body in r#"[\[\]{}",:a-z0-9_]{0,80}"#) {
        let _ = Message::decode(Frame { kind, body: body.into_bytes().into(), ..Frame::default() });
    }

    #[test]
    fn wal_of_any_content_survives(data in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let wal = Message::Wal(wal(data.into()));
        prop_assert_eq!(over_the_wire(wal.clone()), wal);
    }

    #[test]
    fn digests_round_trip(bytes: [u8; 32]) {
        prop_assert_eq!(message::Digest::parse(&Digest(bytes).to_string()), Some(Digest(bytes)));
    }
}
