//! Who enters the cluster: a node with its first connection, here or to a relay.
//!
//! That binds its certificate to its store, so a join bundle works once without any register of bundles: the
//! certificate's serial is the time of its issue, the same serial with another store is a bundle used twice, and a newer
//! one replaces the node.

use super::members;
use super::node::Node;
use crate::link::message::{Code, Hello, Reject, Relayed, Role};
use crate::pg::{Lsn, TimelineId};
use crate::store::{Member, MemberRole, State};
use crate::tls::Identity;

/// A node that wants to be known.
#[derive(Clone, Debug)]
pub struct Entrant {
    name: String,
    /// `None` for one that is to become a standby and has no store yet.
    store_uuid: Option<String>,
    /// Each was emptied for a new copy.
    former_store_uuids: Vec<String>,
    certificate_serial: u64,
    advertise: String,
    role: MemberRole,
    position: Option<(TimelineId, Lsn)>,
}

impl Entrant {
    /// Who says Hello here; `None` for one that asks for nothing which binds a certificate.
    pub fn greeting(hello: &Hello, identity: &Identity) -> Option<Entrant> {
        let role = match hello.role {
            Role::Primary | Role::Superseded => MemberRole::Primary,
            Role::Standby => MemberRole::Standby,
            Role::Reader => return None,
        };
        if role == MemberRole::Primary && hello.store_uuid.is_none() {
            return None;
        }
        Some(Entrant {
            name: hello.node.clone(),
            store_uuid: hello.store_uuid.clone(),
            former_store_uuids: hello.former_store_uuids.clone(),
            certificate_serial: identity.serial,
            advertise: hello.advertise.clone().unwrap_or_default(),
            role,
            position: hello.positions.map(|positions| (positions.timeline, positions.flushed_lsn)),
        })
    }

    /// Who is told of by a relay.
    pub fn relayed(word: &Relayed) -> Entrant {
        Entrant {
            name: word.node.clone(),
            store_uuid: Some(word.store_uuid.clone()),
            former_store_uuids: word.former_store_uuids.clone(),
            certificate_serial: word.certificate_serial,
            advertise: word.advertise.clone().unwrap_or_default(),
            role: MemberRole::Standby,
            position: word.ack.as_ref().map(|ack| (ack.timeline, ack.flushed_lsn)),
        }
    }

    /// Whether it may come in with this certificate and this store, given who is known and who no longer is.
    pub fn admit(&self, state: &State) -> Result<(), Reject> {
        let reject = |message: String| {
            let hint =
                format!("On the primary run `walship invite {}` and join with the new bundle.", self.name);
            Err(Reject { code: Code::Certificate, message, hint })
        };
        if state.has_forgotten(&self.name, self.certificate_serial) {
            return reject(format!(
                "{} was taken off the list of members with `walship forget`, and needs a new invitation",
                self.name
            ));
        }
        let Some(known) = state.member(&self.name) else { return Ok(()) };
        if self.certificate_serial < known.certificate_serial {
            return reject(format!("the certificate of {} was replaced by a newer invitation", self.name));
        }
        // A store that was emptied for a new copy is the same node's.
        let is_same_store = self.store_uuid.as_ref() == Some(&known.store_uuid)
            || self.former_store_uuids.contains(&known.store_uuid);
        if self.certificate_serial == known.certificate_serial && !is_same_store {
            return reject(format!("the invitation of {} was used before, by another store", self.name));
        }
        Ok(())
    }

    /// Whether the member stands in the list just so.
    pub fn is(&self, known: &Member) -> bool {
        self.store_uuid.as_ref() == Some(&known.store_uuid)
            && self.certificate_serial == known.certificate_serial
            && self.advertise == known.advertise
            && self.role == known.role
    }
}

/// Notes a node that was admitted, durably. Blocks.
pub fn enter(node: &Node, entrant: Entrant) -> anyhow::Result<()> {
    let Entrant { name, store_uuid, certificate_serial, advertise, role, position, .. } = entrant;
    let Some(store_uuid) = store_uuid else { return Ok(()) };
    let (timeline, flushed_lsn) =
        position.map_or((None, Lsn::INVALID), |(timeline, lsn)| (Some(timeline), lsn));
    let mut is_forgotten = false;
    node.store.update_state(|state| {
        // Since it was admitted, perhaps.
        is_forgotten = state.has_forgotten(&name, certificate_serial);
        if is_forgotten {
            return;
        }
        state.forgotten.retain(|gone| gone.name != name);
        let known = state.members.iter().position(|member| member.name == name);
        match known.map(|at| &mut state.members[at]) {
            Some(member) if member.store_uuid == store_uuid => {
                member.advertise = advertise;
                member.role = role;
                member.certificate_serial = certificate_serial;
                if !member.flushed_lsn.is_valid() {
                    (member.timeline, member.flushed_lsn) = (timeline, flushed_lsn);
                }
            }
            found => {
                let fresh = Member {
                    name,
                    store_uuid,
                    advertise,
                    role,
                    certificate_serial,
                    timeline,
                    flushed_lsn,
                    restartpoint_lsn: Lsn::INVALID,
                    last_heard: None,
                    let_go: false,
                };
                match found {
                    Some(member) => *member = fresh,
                    None => state.members.push(fresh),
                }
            }
        }
    })?;
    anyhow::ensure!(!is_forgotten, "it was taken off the list of members just now");
    members::publish(node);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::WallTime;
    use crate::pg::SegmentSize;
    use crate::store::{Forgotten, NewStore, Store};

    #[test]
    fn a_certificate_has_one_store_and_a_later_one_replaces_it() {
        let known = Member {
            name: "db3".into(),
            store_uuid: "x".into(),
            advertise: "db3:7432".into(),
            role: MemberRole::Standby,
            certificate_serial: 5,
            timeline: None,
            flushed_lsn: Lsn(7),
            restartpoint_lsn: Lsn::INVALID,
            last_heard: None,
            let_go: false,
        };
        let entrant = |store_uuid: Option<&str>, certificate_serial| Entrant {
            name: "db3".into(),
            store_uuid: store_uuid.map(str::to_owned),
            former_store_uuids: Vec::new(),
            certificate_serial,
            advertise: "db3:7432".into(),
            role: MemberRole::Standby,
            position: None,
        };
        let folder = tempfile::tempdir().unwrap();
        let segment_size = SegmentSize::new(1 << 20).unwrap();
        let new = NewStore { system_identifier: 7, segment_size };
        let mut state = Store::create(folder.path(), new).unwrap().state();
        assert!(entrant(Some("y"), 1).admit(&state).is_ok());
        state.members.push(known.clone());
        let refused = |store_uuid, serial| entrant(store_uuid, serial).admit(&state).err();
        for (store, serial) in [(Some("x"), 5), (Some("x"), 6), (Some("y"), 6), (None, 6)] {
            assert_eq!(refused(store, serial), None, "{store:?} {serial}");
        }
        for (store, serial, why) in
            [(Some("y"), 5, "used before"), (None, 5, "used before"), (Some("x"), 4, "newer invitation")]
        {
            assert!(refused(store, serial).unwrap().message.contains(why), "{store:?} {serial}");
        }
        let emptied = Entrant { former_store_uuids: vec!["x".into()], ..entrant(Some("y"), 5) };
        assert!(emptied.admit(&state).is_ok());
        assert!(entrant(Some("x"), 5).is(&known) && !entrant(Some("x"), 6).is(&known));

        let at = WallTime { unix_micros: 1 };
        state.forgotten.push(Forgotten { name: "db3".into(), certificate_serial: 5, at });
        state.members.clear();
        for store in [Some("x"), Some("y"), None] {
            let why = entrant(store, 5).admit(&state).unwrap_err();
            assert!(why.message.contains("walship forget") && why.hint.contains("walship invite db3"));
            assert!(entrant(store, 6).admit(&state).is_ok());
        }
    }
}
