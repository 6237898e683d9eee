//! Random worlds: what is true of the nodes, what of that is seen, and whether the plan holds in truth.

use std::time::Duration;

use proptest::prelude::*;

use super::super::*;
use super::best;
use crate::clock::{Time, WallTime};
use crate::pg::Lsn;
use crate::policy::StallLimit;

/// How a node is met; a silent one may lack so much by what is known of it.
#[derive(Clone, Copy, Debug)]
enum Met {
    Here,
    Refuses,
    SilentAndKnown(u64),
    SilentAndUnknown,
}

/// A standby as it is in truth.
#[derive(Clone, Debug)]
struct Standby {
    at: (u64, u64),
    met: Met,
    priority: u32,
    is_seat: bool,
}

/// The primary in truth: of epoch 1, and its log ends so far beyond the furthest of that.
#[derive(Clone, Debug)]
struct Primary {
    ahead: u64,
    server: Server,
    met: Met,
}

/// All that is true.
#[derive(Clone, Debug)]
struct World {
    primary: Option<Primary>,
    /// The first is the node that is to be promoted.
    standbys: Vec<Standby>,
    left_behind: Option<Met>,
    needed: usize,
    for_ever: bool,
    is_armed: bool,
    waits: bool,
    /// In truth a weaker policy is in effect, which the promoted node was not told of.
    is_outdated: bool,
    released_lacks: u64,
    heard_lacks: Option<u64>,
    committed_epoch: u64,
    highest_epoch: u64,
    is_promoted: bool,
    replay: Replay,
    can_fence: bool,
    stage: Stage,
}

fn met() -> impl Strategy<Value = Met> {
    prop_oneof![
        4 => Just(Met::Here),
        1 => Just(Met::Refuses),
        2 => (0u64..9).prop_map(Met::SilentAndKnown),
        1 => Just(Met::SilentAndUnknown),
    ]
}

fn standby() -> impl Strategy<Value = Standby> {
    let epoch = prop_oneof![1 => Just(0u64), 8 => Just(1), 1 => Just(2)];
    let all = ((epoch, 0u64..12), met(), 0u32..4, prop::bool::weighted(0.8));
    all.prop_map(|(at, met, priority, is_seat)| Standby { at, met, priority, is_seat })
}

fn primary() -> impl Strategy<Value = Primary> {
    let writing = Server::Writing { lsn: Lsn(0) };
    let server = prop_oneof![3 => Just(Server::Down), 1 => Just(Server::Unsure), 1 => Just(writing)];
    (0u64..4, server, met()).prop_map(|(ahead, server, met)| Primary { ahead, server, met })
}

fn replay() -> impl Strategy<Value = Replay> {
    prop_oneof![8 => Just(Replay::Free), 1 => Just(Replay::Paused), 1 => Just(Replay::Delayed { seconds: 9 })]
}

prop_compose! {
    fn world()(
        primary in prop::option::weighted(0.9, primary()),
        standbys in prop::collection::vec(standby(), 1..6),
        left_behind in prop::option::weighted(0.1, met()),
        needed in 1usize..5,
        (for_ever, is_armed, waits, is_outdated) in (
            prop::bool::weighted(0.8), prop::bool::weighted(0.8), prop::bool::weighted(0.7), prop::bool::weighted(0.2),
        ),
        released_lacks in 0u64..9,
        heard_lacks in prop::option::of(0u64..9),
        (committed_epoch, highest_epoch) in (prop_oneof![8 => Just(1u64), 1 => Just(2)], 0u64..6),
        is_promoted in prop::bool::weighted(0.1),
        replay in replay(),
        (can_fence, votes) in any::<(bool, bool)>(),
    ) -> World {
        let stage = if votes { Stage::Votes } else { Stage::Facts };
        World {
            primary, standbys, left_behind, needed, for_ever, is_armed, waits, is_outdated,
            released_lacks, heard_lacks, committed_epoch,
            highest_epoch, is_promoted, replay, can_fence, stage,
        }
    }
}

fn wish() -> impl Strategy<Value = Wish> {
    let limit = prop::option::of(prop_oneof![Just(0u64), 1u64..9]);
    let all = (any::<bool>(), limit, prop::bool::weighted(0.1));
    all.prop_map(|(force, max_loss_bytes, switchover)| Wish { force, max_loss_bytes, switchover })
}

fn name(number: usize) -> String {
    format!("db{number}")
}

impl World {
    /// Where the primary's log ends in truth: nobody has more of its epoch.
    fn end(&self) -> u64 {
        let of_its_epoch = self.standbys.iter().filter(|standby| standby.at.0 == 1);
        let furthest = of_its_epoch.map(|standby| standby.at.1).max().unwrap_or_default();
        furthest + self.primary.as_ref().map_or(0, |primary| primary.ahead)
    }

    /// The last position that was acknowledged: as soon as it was written, unless commits did wait for others.
    fn acknowledged(&self) -> (u64, u64) {
        if !(self.waits && self.for_ever && self.is_armed) || self.is_outdated {
            return (1, self.end());
        }
        let seats = self.standbys.iter().filter(|standby| standby.is_seat);
        let mut positions: Vec<_> = seats.map(|standby| standby.at).collect();
        positions.sort_unstable_by(|one, other| other.cmp(one));
        positions.get(self.needed - 1).copied().unwrap_or_default()
    }

    /// What was released when the primary reported last.
    fn released(&self) -> Lsn {
        let (epoch, lsn) = self.acknowledged();
        Lsn(if epoch == 1 { lsn.saturating_sub(self.released_lacks) } else { 0 })
    }

    fn at(&self) -> Time {
        WallTime { unix_micros: 7 }.into()
    }

    /// What is seen of a node that is at `at`.
    fn see(&self, met: Met, at: (u64, u64)) -> (Contact, Option<(u64, Lsn)>) {
        let here = if self.stage == Stage::Votes { Contact::Voted } else { Contact::Answered };
        let exact = Some((at.0, Lsn(at.1)));
        match met {
            Met::Here => (here, exact),
            Met::Refuses => (Contact::Refused { why: "db1 answers it".into() }, exact),
            Met::SilentAndKnown(lacks) => (Contact::Silent, Some((at.0, Lsn(at.1.saturating_sub(lacks))))),
            Met::SilentAndUnknown => (Contact::Silent, None),
        }
    }

    fn see_primary(&self, primary: &Primary) -> Seen {
        let (contact, position) = self.see(primary.met, (1, self.end()));
        let server = match (&contact, primary.server) {
            (Contact::Silent, _) => Server::Unsure,
            (_, Server::Writing { .. }) => Server::Writing { lsn: Lsn(self.end()) },
            (_, server) => server,
        };
        let position = position.filter(|_| contact != Contact::Silent);
        Seen {
            node: name(1),
            part: Part::Primary(server),
            contact,
            priority: 0,
            position,
            said: Said::default(),
        }
    }

    fn facts(&self) -> Facts {
        let mut members: Vec<Seen> = self.primary.iter().map(|primary| self.see_primary(primary)).collect();
        for (standby, number) in self.standbys.iter().zip(2..) {
            // Nobody asks the candidate whether it is there.
            let met = if number == 2 { Met::Here } else { standby.met };
            let (contact, position) = self.see(met, standby.at);
            let (node, priority) = (name(number), standby.priority);
            members.push(Seen {
                node,
                part: Part::Standby,
                contact,
                priority,
                position,
                said: Said::default(),
            });
        }
        if let Some(met) = self.left_behind {
            let (contact, position) = self.see(met, (0, 50));
            members.push(Seen {
                node: name(0),
                part: Part::Superseded,
                contact,
                priority: 0,
                position,
                said: Said::default(),
            });
        }
        let seats = self.standbys.iter().zip(2..).filter(|(standby, _)| standby.is_seat);
        let waited = Waited {
            policy: format!("any {}", self.needed),
            seats: seats.map(|(_, number)| name(number)).collect(),
            needed: self.needed,
            stall_limit: StallLimit((!self.for_ever).then_some(Duration::from_secs(2))),
            reported: Some(Reported {
                is_armed: self.is_armed,
                released_lsn: self.released(),
                at: self.at(),
            }),
            is_outdated: self.is_outdated,
        };
        Facts {
            node: name(2),
            members,
            committed_epoch: self.committed_epoch,
            highest_epoch: self.highest_epoch,
            is_promoted: self.is_promoted,
            replay: self.replay,
            log_end: Lsn(0),
            last_heard: self.heard_lacks.map(|lacks| Heard {
                lsn: Lsn(self.end().saturating_sub(lacks)),
                at: self.at(),
                seconds: 3,
            }),
            ended_cleanly: false,
            waited: Some(waited).filter(|_| self.waits),
            earlier: None,
            can_fence: self.can_fence,
            stage: self.stage,
        }
    }
}

/// Who takes part, said anew and not asked of the planner.
fn takes_part(facts: &Facts, member: &Seen) -> bool {
    member.contact == Contact::Voted || facts.stage == Stage::Facts && member.contact == Contact::Answered
}

/// Where the log ends that would be promoted.
fn promoted_end(facts: &Facts, plan: &Plan) -> (u64, Lsn) {
    let (epoch, lsn) = facts.own_position();
    (epoch, plan.salvage.as_ref().map_or(lsn, |salvage| salvage.to))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn without_force_nobody_is_promoted_by_a_minority_or_with_too_few_heard(world in world(), wish in wish()) {
        let facts = world.facts();
        let Ok(plan) = plan(&facts, &Wish { force: false, ..wish.clone() }) else { return Ok(()) };
        let voters = facts.members.iter().filter(|member| takes_part(&facts, member)).count();
        let is_lost = |member: &Seen| matches!(member.part, Part::Primary(_)) && !takes_part(&facts, member);
        let is_fenced = facts.can_fence && facts.members.iter().any(is_lost);
        let counted = facts.members.len() - usize::from(is_fenced);
        prop_assert!(2 * voters > counted, "{voters} of {counted}");
        // Were all others to vote for somebody else, an old primary that has come back among them, it would be too few.
        let others = facts.members.len() - voters;
        prop_assert!(2 * others <= facts.members.len(), "{others} of {}", facts.members.len());
        if let Some(waited) = &facts.waited && !wish.switchover && !matches!(plan.stake, Stake::Nothing { .. }) {
            let heard = |seat: &&String| facts.member(seat).is_some_and(|seat| takes_part(&facts, seat));
            let heard = waited.seats.iter().filter(heard).count();
            prop_assert!(heard + waited.needed > waited.seats.len(), "{heard} of {:?}", waited.seats);
        }
        let end = promoted_end(&facts, &plan);
        let standbys = facts.members.iter().filter(|member| member.part == Part::Standby);
        prop_assert!(wish.switchover || standbys.filter_map(|standby| standby.position).all(|at| at <= end));
        let refuses = |member: &Seen| matches!(member.contact, Contact::Refused { .. });
        prop_assert!(!facts.members.iter().any(refuses));
        // Force changes nothing where nothing stands against it.
        prop_assert_eq!(Ok(plan), super::plan(&facts, &Wish { force: true, ..wish }));
    }

    #[test]
    fn what_is_said_to_be_lost_is_true_of_the_world(world in world(), wish in wish()) {
        let facts = world.facts();
        let Ok(plan) = plan(&facts, &wish) else { return Ok(()) };
        if wish.max_loss_bytes == Some(0) {
            prop_assert!(plan.stake.is_nothing());
        }
        // An answer is no promise yet: it is only taken for one, and asked again.
        if facts.stage == Stage::Facts {
            return Ok(());
        }
        let (epoch, end) = promoted_end(&facts, &plan);
        match plan.stake {
            Stake::Nothing { .. } => {
                prop_assert_eq!((epoch, end), (1, Lsn(world.end())));
                prop_assert!(matches!(facts.primary(), Some((_, Server::Down))), "it may go on");
            }
            Stake::NothingAcknowledged { .. } => {
                prop_assert!(world.acknowledged() <= (epoch, end.0), "{:?} is lost", world.acknowledged());
            }
            Stake::AtLeast { from, to, .. } => {
                prop_assert_eq!(from, end);
                prop_assert!(from < to);
                prop_assert!(epoch != 1 || to.0 <= world.end(), "nobody has that");
            }
            Stake::NothingKnown { from, .. } => prop_assert_eq!(from, end),
            Stake::Since { epoch: committed } => prop_assert!(committed > epoch),
        }
    }

    #[test]
    fn the_epoch_is_above_all_and_force_refuses_only_a_loss_beyond_the_limit(world in world(), wish in wish()) {
        let facts = world.facts();
        match plan(&facts, &Wish { force: true, ..wish.clone() }) {
            Ok(plan) => {
                let of_wal = facts.members.iter().filter_map(|member| member.position.map(|(epoch, _)| epoch));
                let known = of_wal.chain([facts.committed_epoch, facts.highest_epoch]);
                prop_assert!(known.max().unwrap() < plan.epoch);
                let source = plan.salvage.as_ref().and_then(|salvage| facts.member(&salvage.node));
                let is_fit = |source: &Seen| takes_part(&facts, source) && source.part != Part::Superseded;
                prop_assert!(source.is_none_or(is_fit));
            }
            Err(refusal) => {
                prop_assert_eq!(refusal.kind, Kind::LossBeyondLimit);
                prop_assert!(wish.max_loss_bytes.is_some());
            }
        }
    }

    #[test]
    fn the_best_is_nobodys_inferior(world in world()) {
        let facts = world.facts();
        let can_be =
            |member: &&Seen| takes_part(&facts, member) && member.part == Part::Standby && member.priority > 0;
        let Some(best) = best(&facts) else {
            prop_assert!(!facts.members.iter().any(|member| can_be(&member)));
            return Ok(());
        };
        prop_assert!(can_be(&best));
        for other in facts.members.iter().filter(can_be).filter(|other| other.node != best.node) {
            let first = best.position.cmp(&other.position).then(best.priority.cmp(&other.priority));
            prop_assert!(first.then(other.node.cmp(&best.node)).is_gt(), "{other:?} is better than {best:?}");
        }
    }
}
