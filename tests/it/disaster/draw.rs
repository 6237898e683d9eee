//! What a round draws: whom commits wait for, at which level, and what else goes wrong.

use walship::demo::Random;

/// Whom commits wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    AnyOne,
    AnyTwo,
    FirstOne,
    All,
    /// The second standby follows the first, and is the tail.
    Chain,
}

/// What goes wrong shortly before the primary is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// SIGKILL for a standby's sidecar.
    KillSidecar,
    /// SIGKILL for a standby's sidecar and PostgreSQL.
    KillBoth,
    /// A standby's sidecar stops and says nothing.
    Freeze,
    /// Nobody reaches the primary.
    CutPrimary,
    /// All connections to the primary end once.
    ResetPrimary,
    /// Connections to the primary stay open, and nothing passes.
    StallPrimary,
}

use Fault::{CutPrimary, Freeze, KillBoth, KillSidecar, ResetPrimary, StallPrimary};

/// What a round draws.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Whom commits wait for.
    pub policy: Policy,
    /// At which level.
    pub level: &'static str,
    /// With the standby that it befalls, where it is one's.
    pub fault: Option<(usize, Fault)>,
    /// That standby is still away when another is promoted.
    pub stays_away: bool,
}

impl Policy {
    /// As `walship sync` takes it, for standbys in this order.
    pub fn text(self, names: &[&str]) -> String {
        match self {
            Policy::AnyOne => "any 1 (*)".to_owned(),
            Policy::AnyTwo => "any 2 (*)".to_owned(),
            Policy::FirstOne => format!("first 1 ({})", names.join(", ")),
            Policy::All => "all".to_owned(),
            Policy::Chain => format!("chain ({}, {})", names[0], names[1]),
        }
    }

    /// How many standbys have what is acknowledged, and of how many that count.
    pub fn needed(self, standbys: usize) -> (usize, usize) {
        match self {
            Policy::AnyOne | Policy::FirstOne => (1, standbys),
            Policy::AnyTwo => (2, standbys),
            Policy::All => (standbys, standbys),
            Policy::Chain => (1, 1),
        }
    }
}

impl Draw {
    /// Draws a round for so many standbys, whose order is drawn already.
    pub fn new(random: &mut Random, standbys: usize) -> Draw {
        let mut policies = vec![Policy::AnyOne, Policy::FirstOne, Policy::All, Policy::Chain];
        if standbys > 2 {
            policies.push(Policy::AnyTwo);
        }
        let policy = *random.pick(&policies);
        let level = *random.pick(&["on", "remote_apply"]);
        let faults = [KillSidecar, KillBoth, Freeze, CutPrimary, ResetPrimary, StallPrimary];
        let at = random.below(standbys as u64) as usize;
        let fault = (random.below(3) > 0).then_some((at, *random.pick(&faults)));
        // Whoever may alone have an acknowledged commit is brought back first, as the plan asks for.
        let (needed, of) = policy.needed(standbys);
        let is_spare = needed > 1 || of == 1 && at != 1;
        let is_away = fault.is_some_and(|(_, fault)| [KillSidecar, KillBoth, Freeze].contains(&fault));
        let stays_away = is_away && is_spare && random.below(2) == 0;
        Draw { policy, level, fault, stays_away }
    }
}
