//! When a changed policy takes effect.

use std::collections::BTreeMap;

use crate::policy::{Kept, Resolved};

/// What a change of the policy comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It is as strict as the one before, or there was none: at once.
    AtOnce,
    /// It is weaker: when a quorum of the one before has stored it.
    WithQuorum,
}

/// What changing to a policy takes, given what there is.
pub fn to(policy: &Resolved, kept: &Kept, primary: &str) -> Change {
    match &kept.effective {
        Some(before) if !policy.is_as_strict_as(before, primary) => Change::WithQuorum,
        _ => Change::AtOnce,
    }
}

/// Those of the old policy's members that have stored what is pending, and how many it takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Quorum {
    /// Who has it.
    pub stored_by: Vec<String>,
    /// Who has not.
    pub lacking: Vec<String>,
    /// How many it takes.
    pub needed: usize,
}

impl Quorum {
    /// Who has stored the serial that is pending, by the highest that each said it has stored.
    pub fn of(
        effective: &Resolved,
        pending: &Resolved,
        primary: &str,
        stored: &BTreeMap<String, u64>,
    ) -> Quorum {
        let has = |name: &&str| stored.get(*name).is_some_and(|serial| *serial >= pending.serial);
        let (have, lack): (Vec<&str>, Vec<&str>) = effective.others(primary).into_iter().partition(has);
        let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        Quorum { stored_by: owned(have), lacking: owned(lack), needed: effective.needed(primary) }
    }

    /// Whether it is there.
    pub fn is_there(&self) -> bool {
        self.stored_by.len() >= self.needed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::StallLimit;

    fn policy(serial: u64, text: &str) -> Resolved {
        let known = ["db1", "db2", "db3", "db4"].map(str::to_owned);
        Resolved::new(serial, text.parse().unwrap(), StallLimit(None), &known)
    }

    #[test]
    fn a_weaker_policy_needs_a_quorum_of_the_old_one() {
        let kept = Kept { effective: Some(policy(4, "any 2 (*)")), pending: None };
        assert_eq!(to(&policy(5, "all"), &kept, "db1"), Change::AtOnce);
        assert_eq!(to(&policy(5, "any 1 (*)"), &kept, "db1"), Change::WithQuorum);
        assert_eq!(to(&policy(1, "any 1 (*)"), &Kept::default(), "db1"), Change::AtOnce);

        let (old, new) = (policy(4, "any 2 (*)"), policy(5, "async"));
        let quorum = |stored: &[(&str, u64)]| {
            let stored = stored.iter().map(|(name, serial)| ((*name).to_owned(), *serial)).collect();
            Quorum::of(&old, &new, "db1", &stored)
        };
        // Neither an older serial, nor whoever the old policy does not name, nor the primary itself.
        let without = quorum(&[("db2", 5), ("db3", 4), ("db9", 5), ("db1", 5)]);
        assert_eq!((without.stored_by.len(), without.lacking.len(), without.needed), (1, 2, 2));
        assert!(!without.is_there());
        assert!(quorum(&[("db2", 5), ("db4", 6)]).is_there());
    }
}
