//! What happens next: drawn from what the cluster looks like, and from nothing else.
//!
//! Faults are likely while all is well, and rare once two things are wrong; repairs the other way around. So it stays
//! most of the time at the edge of what a cluster bears, and goes past it now and then.

use walship::demo::Random;
use walship::report::Role;

use super::world::{Life, Seen, World};
use crate::scenes::Part;

/// Commands that run at once.
const COMMANDS_MAX: usize = 2;

/// How likely faults and repairs are with no, one, two and more ills.
const FAULTS: [u64; 3] = [8, 4, 1];
const REPAIRS: [u64; 3] = [1, 4, 12];

/// What happens to a node, to links, or on the part of an operator; nodes go by their number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    Kill(usize, Part),
    Freeze(usize, Part),
    Thaw(usize),
    /// Both, in order, as its host does when it shuts down.
    Stop(usize),
    /// What is down of it, as its host does when it boots.
    Start(usize),
    Cut(usize, usize),
    /// What the first says does not reach the second.
    CutOneWay(usize, usize),
    /// From all others.
    Isolate(usize),
    /// All links.
    Heal,
    Promote(usize),
    /// With a fence command that switches a node off.
    PromoteFenced(usize),
    PromoteElect(usize),
    /// Run there, to that one.
    Switchover(usize, Option<usize>),
    Rejoin(usize),
}

/// Draws one.
pub fn draw(random: &mut Random, world: &World) -> Event {
    let choices = choices(world);
    let all: u64 = choices.iter().map(|(weight, _)| weight).sum();
    let mut left = random.below(all);
    for (weight, event) in &choices {
        if left < *weight {
            return *event;
        }
        left -= weight;
    }
    unreachable!("{left} is left of {all}")
}

/// All that may happen, each with its weight.
fn choices(world: &World) -> Vec<(u64, Event)> {
    let ills = world.ills().min(2);
    let faults = faults(world).into_iter().map(|(weight, event)| (weight * FAULTS[ills], event));
    let repairs = repairs(world).into_iter().map(|(weight, event)| (weight * REPAIRS[ills], event));
    faults.chain(repairs).chain(commands(world)).filter(|(weight, _)| *weight > 0).collect()
}

fn faults(world: &World) -> Vec<(u64, Event)> {
    let mut faults = Vec::new();
    let count = world.nodes.len();
    for (at, node) in world.nodes.iter().enumerate() {
        let parts: &[(Part, u64)] = match (node.sidecar, node.postgres) {
            (Life::Runs, Life::Runs) => &[(Part::Both, 3), (Part::Sidecar, 2), (Part::Postgres, 2)],
            (Life::Runs, _) => &[(Part::Sidecar, 2)],
            (_, Life::Runs) => &[(Part::Postgres, 2)],
            _ => &[],
        };
        // What befalls the primary is of more interest.
        let times = if node.leads() { 2 } else { 1 };
        faults.extend(parts.iter().map(|(part, weight)| (weight * times, Event::Kill(at, *part))));
        faults.extend(parts.iter().map(|(part, weight)| (weight * times, Event::Freeze(at, *part))));
        faults.push((2 * times, Event::Isolate(at)));
        if node.is_well() {
            faults.push((2, Event::Stop(at)));
        }
        for other in (0..count).filter(|other| *other != at) {
            faults.push((1, Event::CutOneWay(at, other)));
            if at < other {
                faults.push((2, Event::Cut(at, other)));
            }
        }
    }
    faults
}

fn repairs(world: &World) -> Vec<(u64, Event)> {
    let mut repairs = Vec::new();
    for (at, node) in world.nodes.iter().enumerate() {
        let is = |life| node.sidecar == life || node.postgres == life;
        if is(Life::Frozen) {
            repairs.push((4, Event::Thaw(at)));
        }
        // PostgreSQL of one that was left behind stays down.
        let is_down =
            node.sidecar == Life::Down || node.postgres == Life::Down && node.role != Some(Role::Superseded);
        if is_down && !world.may_fence {
            repairs.push((4, Event::Start(at)));
        }
    }
    if world.is_cut {
        repairs.push((6, Event::Heal));
    }
    repairs
}

fn commands(world: &World) -> Vec<(u64, Event)> {
    let mut commands = Vec::new();
    if world.commands >= COMMANDS_MAX {
        return commands;
    }
    let times = if world.has_primary() { 1 } else { 12 };
    for (at, node) in world.nodes.iter().enumerate().filter(|(_, node)| node.sidecar == Life::Runs) {
        let is = |role| node.role == Some(role);
        if is(Role::Standby) {
            commands.push((2 * times, Event::Promote(at)));
            commands.push((2 * times, Event::PromoteFenced(at)));
            commands.push((times, Event::PromoteElect(at)));
        }
        if world.has_primary() {
            commands.push((2, Event::Switchover(at, None)));
            let targets = world.nodes.iter().enumerate().filter(|(_, node)| is_standby(node));
            commands.extend(targets.map(|(to, _)| (4, Event::Switchover(at, Some(to)))));
        }
        commands.push((if is(Role::Superseded) { 24 } else { 1 }, Event::Rejoin(at)));
    }
    commands
}

fn is_standby(node: &Seen) -> bool {
    node.role == Some(Role::Standby)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(sidecar: Life, postgres: Life, role: Option<Role>) -> Seen {
        Seen { sidecar, postgres, role }
    }

    fn world(nodes: Vec<Seen>) -> World {
        World { nodes, is_cut: false, commands: 0, may_fence: false }
    }

    fn well() -> World {
        let standby = node(Life::Runs, Life::Runs, Some(Role::Standby));
        world(vec![node(Life::Runs, Life::Runs, Some(Role::Primary)), standby, standby])
    }

    fn drawn(world: &World) -> Vec<Event> {
        let mut random = Random::new(7);
        (0..2000).map(|_| draw(&mut random, world)).collect()
    }

    #[test]
    fn the_same_seed_and_world_give_the_same_event() {
        assert_eq!(drawn(&well()), drawn(&well()));
    }

    #[test]
    fn nothing_that_is_down_is_harmed_or_asked_and_nothing_that_is_well_repaired() {
        let mut down = well();
        down.nodes[1] = node(Life::Down, Life::Down, None);
        for event in drawn(&down) {
            let is_possible = match event {
                Event::Kill(at, _) | Event::Freeze(at, _) | Event::Stop(at) | Event::Rejoin(at) => at != 1,
                Event::Promote(at) | Event::PromoteFenced(at) | Event::PromoteElect(at) => at == 2,
                Event::Switchover(at, to) => at != 1 && (to.is_none() || to == Some(2)),
                Event::Start(at) => at == 1,
                Event::Thaw(_) | Event::Heal => false,
                Event::Cut(..) | Event::CutOneWay(..) | Event::Isolate(_) => true,
            };
            assert!(is_possible, "{event:?}");
        }
        assert!(drawn(&down).contains(&Event::Start(1)));
    }

    #[test]
    fn what_may_be_switched_off_is_not_started_and_commands_do_not_pile_up() {
        let mut busy = well();
        busy.nodes[0] = node(Life::Down, Life::Down, None);
        (busy.commands, busy.may_fence) = (COMMANDS_MAX, true);
        for event in drawn(&busy) {
            let is_command = matches!(
                event,
                Event::Promote(_)
                    | Event::PromoteFenced(_)
                    | Event::PromoteElect(_)
                    | Event::Switchover(..)
                    | Event::Rejoin(_)
            );
            assert!(!is_command && event != Event::Start(0), "{event:?}");
        }
    }

    #[test]
    fn the_more_is_wrong_the_likelier_is_a_repair() {
        let share = |world: &World| {
            let is_repair = |event: &&Event| matches!(event, Event::Thaw(_) | Event::Start(_) | Event::Heal);
            drawn(world).iter().filter(is_repair).count()
        };
        let mut one = well();
        one.nodes[1].postgres = Life::Down;
        let mut two = one.clone();
        two.nodes[2].sidecar = Life::Frozen;
        assert!(share(&well()) == 0 && share(&one) > 50 && share(&two) > 2 * share(&one));
    }
}
