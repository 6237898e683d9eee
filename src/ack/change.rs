//! When a changed policy takes effect, and what becomes of one when a member goes for good.

use std::collections::BTreeMap;

use crate::policy::{Kept, PolicyError, Resolved};

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

/// What is left of the policies without a member: `*` and `all` of the one that was asked for last then mean the others.
/// One that was written with its name is for a person to change first, and so is one that would wait for more than there
/// are.
///
/// By the rule of [`to`], `any 2 (*)` of fewer takes effect at once, for the one before would have let go all that it lets
/// go; `all` of fewer waits for fewer, so it pends until all who stay have stored it. Neither rule is about what was let
/// go already, which fewer of those who stay may have than the shrunk policy promises: the caller waits until they
/// have it ([`super::Tracker::is_met`]).
pub fn without(kept: &Kept, name: &str, primary: &str) -> Result<Kept, PolicyError> {
    let Some(latest) = kept.pending.as_ref().or(kept.effective.as_ref()) else { return Ok(kept.clone()) };
    if latest.policy.names(name) {
        return Err(PolicyError::Named { policy: latest.policy.clone(), name: name.to_owned() });
    }
    let mut shrunk = latest.clone();
    shrunk.names.retain(|known| known != name);
    let (needed, others) = (shrunk.needed(primary), shrunk.others(primary).len());
    if needed > others {
        return Err(PolicyError::TooFew { policy: shrunk.policy, needed, others });
    }
    if shrunk.names == latest.names {
        return Ok(kept.clone());
    }
    shrunk.serial = kept.serial() + 1;
    Ok(match to(&shrunk, kept, primary) {
        Change::AtOnce => Kept { effective: Some(shrunk), pending: None },
        Change::WithQuorum => Kept { effective: kept.effective.clone(), pending: Some(shrunk) },
    })
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
    /// Who has stored the serial that is pending, by the highest that each said it has stored. Who was forgotten is
    /// not asked: with fewer left than the old policy waited for, all of them are a quorum, for nobody else can be
    /// promoted.
    pub fn of(
        effective: &Resolved,
        pending: &Resolved,
        primary: &str,
        stored: &BTreeMap<String, u64>,
        is_forgotten: impl Fn(&str) -> bool,
    ) -> Quorum {
        let has = |name: &&str| stored.get(*name).is_some_and(|serial| *serial >= pending.serial);
        let others = effective.others(primary).into_iter().filter(|name| !is_forgotten(name));
        let (have, lack): (Vec<&str>, Vec<&str>) = others.partition(has);
        let needed = effective.needed(primary).min(have.len() + lack.len());
        let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        Quorum { stored_by: owned(have), lacking: owned(lack), needed }
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
            Quorum::of(&old, &new, "db1", &stored, |_| false)
        };
        // Neither an older serial, nor whoever the old policy does not name, nor the primary itself.
        let without = quorum(&[("db2", 5), ("db3", 4), ("db9", 5), ("db1", 5)]);
        assert_eq!((without.stored_by.len(), without.lacking.len(), without.needed), (1, 2, 2));
        assert!(!without.is_there());
        assert!(quorum(&[("db2", 5), ("db4", 6)]).is_there());
    }

    #[test]
    fn who_is_forgotten_has_no_part_in_a_quorum() {
        let quorum = |old: &str, stored: &[(&str, u64)], forgotten: &[&str]| {
            let stored = stored.iter().map(|(name, serial)| ((*name).to_owned(), *serial)).collect();
            let is_forgotten = |name: &str| forgotten.contains(&name);
            Quorum::of(&policy(4, old), &policy(5, "async"), "db1", &stored, is_forgotten).is_there()
        };
        assert!(!quorum("any 1 (*)", &[("db2", 5)], &["db2"]), "db3 and db4 may not know of it");
        assert!(quorum("any 1 (*)", &[("db3", 5)], &["db2"]));
        assert!(quorum("any 2 (db2, db3)", &[("db3", 5)], &["db2"]), "everybody who is left");
        assert!(!quorum("any 2 (db2, db3)", &[], &["db2"]));
        assert!(quorum("any 1 (db2)", &[], &["db2"]), "nobody is left");
    }

    #[test]
    fn a_policy_goes_on_without_whom_it_does_not_name() {
        let kept = |effective: &str, pending: Option<&str>| Kept {
            effective: Some(policy(4, effective)),
            pending: pending.map(|pending| policy(5, pending)),
        };
        let names = |kept: &Option<Resolved>| {
            let policy = kept.as_ref().unwrap();
            format!("{} {}", policy.serial, policy.names.join(" "))
        };
        for (text, expected) in [
            ("any 1 (*)", "5 db1 db3 db4"),
            ("any 2 (*)", "5 db1 db3 db4"),
            ("async", "4 "),
            ("any 1 (db3, db4)", "4 db3 db4"),
        ] {
            let left = without(&kept(text, None), "db2", "db1").unwrap();
            assert_eq!((names(&left.effective), left.pending), (expected.to_owned(), None), "{text}");
        }
        // Of fewer, `all` is less.
        let left = without(&kept("all", None), "db2", "db1").unwrap();
        assert_eq!(
            (names(&left.effective), names(&left.pending)),
            ("4 db1 db2 db3 db4".into(), "5 db1 db3 db4".into())
        );
        for text in ["any 1 (db2, db3)", "first 1 (db3, db2)", "chain (db2, db3)"] {
            let refused = without(&kept(text, None), "db2", "db1").unwrap_err().to_string();
            assert_eq!(refused, format!("commits wait for `{text}`, which names db2"));
        }
        let refused = without(&kept("any 3 (*)", None), "db2", "db1").unwrap_err().to_string();
        assert!(refused.contains("waits for 3, and 2 members"), "{refused}");
        // What is asked for last decides, and the one before goes on as it is.
        let left = without(&kept("any 3 (*)", Some("async")), "db2", "db1").unwrap();
        assert_eq!(left, kept("any 3 (*)", Some("async")));
        let left = without(&kept("any 2 (db2, db3)", Some("any 1 (*)")), "db2", "db1").unwrap();
        assert_eq!(
            (names(&left.effective), names(&left.pending)),
            ("4 db2 db3".into(), "6 db1 db3 db4".into())
        );
        assert!(without(&kept("any 1 (*)", Some("any 1 (db2)")), "db2", "db1").is_err());
        assert_eq!(without(&Kept::default(), "db2", "db1").unwrap(), Kept::default());
    }
}
