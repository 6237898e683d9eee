//! Situations, and what follows from them.

use super::*;
use crate::pg::Lsn;

fn standby(node: &str, epoch: u64, lsn: u64, contact: Contact) -> Seen {
    Seen { node: node.into(), part: Part::Standby, contact, priority: 100, position: Some((epoch, Lsn(lsn))) }
}

fn primary(server: Server, lsn: Option<u64>, contact: Contact) -> Seen {
    let position = lsn.map(|lsn| (1, Lsn(lsn)));
    Seen { node: "db1".into(), part: Part::Primary(server), contact, priority: 100, position }
}

/// db1 is lost, db2 is to be promoted, db3 is there, too.
fn facts() -> Facts {
    Facts {
        node: "db2".into(),
        members: vec![
            primary(Server::Unsure, None, Contact::Silent),
            standby("db2", 1, 1000, Contact::Answered),
            standby("db3", 1, 1000, Contact::Answered),
        ],
        committed_epoch: 1,
        highest_epoch: 1,
        is_promoted: false,
        replay: Replay::Free,
        last_heard: Some((Lsn(1000), 7)),
        waited: None,
        can_fence: false,
        stage: Stage::Facts,
    }
}

#[test]
fn a_lost_primary_is_replaced_by_one_that_has_a_majority() {
    let plan = plan(&facts(), &Wish::default()).unwrap();
    assert_eq!((plan.epoch, plan.fence, plan.salvage), (2, Fence::Nobody, None));
    assert!(plan.stake.to_string().contains("no WAL beyond 0/3E8 is known"), "{}", plan.stake);
}
