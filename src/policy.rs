//! What a commit waits for: the acknowledgement policy, as a person writes it and as it was set.
//!
//! A [`Policy`] is a text. A [`Resolved`] one has a serial and the names that it meant when it was set, the primary of
//! that time among them: whoever is the primary later is left out of what it means then, so one policy makes sense on
//! every node and after every promotion.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::fmt::friendly::SpanParser;
use serde::{Deserialize, Serialize};

/// The longest list of names: more members than that nobody runs, and it bounds what a peer can make us keep.
const NAMES_MAX: usize = 1000;
/// The shortest stall limit: below it a hiccup of the network would end protection.
const STALL_LIMIT_MIN: Duration = Duration::from_millis(10);
/// The longest name of a node.
const NAME_BYTES_MAX: usize = 63;

/// Whom a commit waits for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Policy {
    /// Nobody.
    Async,
    /// Any so many of them.
    Any {
        /// How many.
        count: usize,
        /// Of whom.
        of: Members,
    },
    /// The first so many of the list that are connected and in step.
    First {
        /// How many.
        count: usize,
        /// In this order.
        of: Vec<String>,
    },
    /// Every member.
    All,
    /// The last of a chain, through whom ever it gets there.
    Chain {
        /// From the one that follows the primary to the tail.
        through: Vec<String>,
    },
}

/// Members by name, or all of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Members {
    /// `*`: those that are known when the policy is set.
    Known,
    /// These.
    Named(Vec<String>),
}

/// A text that is no policy, or a policy that can't be set.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PolicyError {
    /// Not one of the forms.
    #[error("`{0}` is no acknowledgement policy: write it like \"any 1 (*)\" or \"all\"")]
    Form(String),
    /// Not a duration that commits can wait for.
    #[error("`{0}` is no stall limit: write it like 2s or 500ms, 10ms at least, or \"never\"")]
    StallLimit(String),
    /// `first` without an order.
    #[error("`first` needs names in their order instead of *")]
    Order,
    /// A name that no node can have.
    #[error("`{0}` cannot be a node's name")]
    Name(String),
    /// A name that is there twice.
    #[error("{0} is named twice")]
    Twice(String),
    /// More names than anybody has.
    #[error("{0} names are more than the {NAMES_MAX} that a policy may have")]
    Many(usize),
    /// More than there are.
    #[error("`{policy}` waits for {needed}, and {}", there(*others))]
    TooFew {
        /// The policy.
        policy: Policy,
        /// How many it waits for.
        needed: usize,
        /// How many there are beside the primary.
        others: usize,
    },
    /// It would go on without somebody that it names.
    #[error("commits wait for `{policy}`, which names {name}")]
    Named {
        /// The policy.
        policy: Policy,
        /// Who is named.
        name: String,
    },
    /// Names that no member has.
    #[error("no member is called {}", .0.join(" or "))]
    Unknown(Vec<String>),
}

fn there(others: usize) -> String {
    match others {
        0 => "no member beside the primary counts".to_owned(),
        1 => "1 member beside the primary counts".to_owned(),
        _ => format!("{others} members beside the primary count"),
    }
}

impl PolicyError {
    /// What to do about it, in a full sentence.
    pub fn hint(&self) -> &'static str {
        match self {
            PolicyError::TooFew { .. } => "Wait for fewer, or let more standbys join first.",
            PolicyError::Named { .. } => "Set another policy first: `walship sync POLICY`.",
            PolicyError::StallLimit(_) => "Write it like 2s, 500ms or never.",
            PolicyError::Unknown(_) => {
                "`walship status` lists the members; a standby is one once it has joined."
            }
            _ => {
                "Write it like \"async\", \"any 1 (*)\", \"any 2 (db2, db3, db4)\", \"first 1 (db2, db3)\", \"all\" or \
                 \"chain (db2, db3)\"."
            }
        }
    }
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Policy, PolicyError> {
        let form = || PolicyError::Form(text.to_owned());
        let (words, list) = match text.trim().split_once('(') {
            None => (text.trim(), None),
            Some((words, rest)) => (words.trim(), Some(rest.strip_suffix(')').ok_or_else(form)?.trim())),
        };
        let words: Vec<String> = words.split_whitespace().map(str::to_ascii_lowercase).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let count = |digits: &str| {
            let plain = digits.len() < 10 && digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse::<usize>().ok().filter(|count| plain && *count > 0).ok_or_else(form)
        };
        match (&words[..], list) {
            (["async"], None) => Ok(Policy::Async),
            (["all"], None) => Ok(Policy::All),
            (["any", digits], Some("*")) => Ok(Policy::Any { count: count(digits)?, of: Members::Known }),
            (["any", digits], Some(list)) => {
                Ok(Policy::Any { count: count(digits)?, of: Members::Named(names(list)?) })
            }
            (["first", _], Some("*")) => Err(PolicyError::Order),
            (["first", digits], Some(list)) => Ok(Policy::First { count: count(digits)?, of: names(list)? }),
            (["chain"], Some(list)) => Ok(Policy::Chain { through: names(list)? }),
            _ => Err(form()),
        }
    }
}

impl Policy {
    /// Whether a person wrote this name, rather than meaning it with `*` or `all`.
    pub fn names(&self, name: &str) -> bool {
        match self {
            Policy::Async | Policy::All | Policy::Any { of: Members::Known, .. } => false,
            Policy::Any { of: Members::Named(names), .. }
            | Policy::First { of: names, .. }
            | Policy::Chain { through: names } => names.iter().any(|known| known == name),
        }
    }
}

fn names(list: &str) -> Result<Vec<String>, PolicyError> {
    let mut names: Vec<String> = Vec::new();
    for name in list.split(',').map(str::trim) {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
            return Err(PolicyError::Name(name.to_owned()));
        }
        if names.iter().any(|known| known == name) {
            return Err(PolicyError::Twice(name.to_owned()));
        }
        names.push(name.to_owned());
    }
    if names.len() > NAMES_MAX { Err(PolicyError::Many(names.len())) } else { Ok(names) }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::Async => f.write_str("async"),
            Policy::Any { count, of: Members::Known } => write!(f, "any {count} (*)"),
            Policy::Any { count, of: Members::Named(names) } => {
                write!(f, "any {count} ({})", names.join(", "))
            }
            Policy::First { count, of } => write!(f, "first {count} ({})", of.join(", ")),
            Policy::All => f.write_str("all"),
            Policy::Chain { through } => write!(f, "chain ({})", through.join(", ")),
        }
    }
}

impl TryFrom<String> for Policy {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<Policy, PolicyError> {
        text.parse()
    }
}

impl From<Policy> for String {
    fn from(policy: Policy) -> String {
        policy.to_string()
    }
}

/// How long a commit waits for others before it goes on unprotected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StallLimit(
    /// `None` for never.
    pub Option<Duration>,
);

impl FromStr for StallLimit {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<StallLimit, PolicyError> {
        if text.trim().eq_ignore_ascii_case("never") {
            return Ok(StallLimit(None));
        }
        let limit = SpanParser::new().parse_unsigned_duration(text.trim()).ok();
        let limit = limit.filter(|limit| *limit >= STALL_LIMIT_MIN && limit.subsec_nanos() % 1_000_000 == 0);
        limit.map(|limit| StallLimit(Some(limit))).ok_or_else(|| PolicyError::StallLimit(text.to_owned()))
    }
}

impl fmt::Display for StallLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("never"),
            Some(limit) if limit.subsec_millis() == 0 => write!(f, "{}s", limit.as_secs()),
            Some(limit) => write!(f, "{}ms", limit.as_millis()),
        }
    }
}

impl TryFrom<String> for StallLimit {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<StallLimit, PolicyError> {
        text.parse()
    }
}

impl From<StallLimit> for String {
    fn from(limit: StallLimit) -> String {
        limit.to_string()
    }
}

/// A policy as it was set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Resolved {
    /// Its number; a later change has a higher one.
    pub serial: u64,
    /// What was written.
    pub policy: Policy,
    /// Whom it meant, in the order written: for `*` and `all` every member, the primary of that time included.
    pub names: Vec<String>,
    /// Past this a commit goes on unprotected.
    pub stall_limit: StallLimit,
}

/// What a node keeps of policies.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Kept {
    /// The one in effect; `None` on a node that was never told.
    pub effective: Option<Resolved>,
    /// A weaker one that takes effect once a quorum of the one before has stored it.
    pub pending: Option<Resolved>,
}

impl Kept {
    /// The highest serial in it; zero for none.
    pub fn serial(&self) -> u64 {
        let serial = |policy: &Option<Resolved>| policy.as_ref().map_or(0, |policy| policy.serial);
        serial(&self.effective).max(serial(&self.pending))
    }
}

impl Resolved {
    /// A policy over the members that are `known`, the primary among them.
    pub fn new(serial: u64, policy: Policy, stall_limit: StallLimit, known: &[String]) -> Resolved {
        let names = match &policy {
            Policy::Async => Vec::new(),
            Policy::All | Policy::Any { of: Members::Known, .. } => known.to_vec(),
            Policy::Any { of: Members::Named(names), .. }
            | Policy::First { of: names, .. }
            | Policy::Chain { through: names } => names.clone(),
        };
        Resolved { serial, policy, names, stall_limit }
    }

    /// Whether it can be set: it names members, and as many as it waits for.
    pub fn check(&self, primary: &str, known: &[String]) -> Result<(), PolicyError> {
        let unknown: Vec<String> = self.names.iter().filter(|name| !known.contains(name)).cloned().collect();
        if !unknown.is_empty() {
            return Err(PolicyError::Unknown(unknown));
        }
        let (needed, others) = (self.needed(primary), self.others(primary).len());
        if needed > others {
            return Err(PolicyError::TooFew { policy: self.policy.clone(), needed, others });
        }
        Ok(())
    }

    /// Whose positions count while `primary` is the primary: all named others; of a chain the tail alone.
    pub fn others(&self, primary: &str) -> Vec<&str> {
        let mut others: Vec<&str> =
            self.names.iter().map(String::as_str).filter(|name| *name != primary).collect();
        if let Policy::Chain { .. } = self.policy {
            others.drain(..others.len().saturating_sub(1));
        }
        others
    }

    /// How many of the others must have a commit. It may be more than there are: then nothing is released.
    pub fn needed(&self, primary: &str) -> usize {
        match &self.policy {
            Policy::Async => 0,
            Policy::Any { count, .. } | Policy::First { count, .. } => *count,
            Policy::All => self.others(primary).len().max(1),
            Policy::Chain { .. } => 1,
        }
    }

    /// Whether nothing can be acknowledged under it, for it waits for more than there are.
    pub fn is_out_of_reach(&self, primary: &str) -> bool {
        self.needed(primary) > self.others(primary).len()
    }

    /// Whether every commit that this one lets go `other` would have let go as well, so that whoever knows no more than
    /// `other` still finds it: it waits for as many, for nobody else, and for as long. What it can't prove is less strict.
    pub fn is_as_strict_as(&self, other: &Resolved, primary: &str) -> bool {
        let limit = |policy: &Resolved| policy.stall_limit.0.unwrap_or(Duration::MAX);
        let (own, theirs) = (self.others(primary), other.others(primary));
        let nobody_else = own.iter().all(|name| theirs.contains(name));
        let as_many = self.needed(primary) >= other.needed(primary);
        other.needed(primary) == 0 || (nobody_else && as_many && limit(self) >= limit(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text_of(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn set(policy: &str, stall_limit: &str) -> Resolved {
        let known = text_of(&["db1", "db2", "db3", "db4"]);
        Resolved::new(1, policy.parse().unwrap(), stall_limit.parse().unwrap(), &known)
    }

    #[test]
    fn texts_and_what_is_said_about_the_others() {
        for text in ["async", "all", "any 1 (*)", "any 2 (a, b-1)", "first 1 (b, a)", "chain (m, t)"] {
            assert_eq!(text.parse::<Policy>().unwrap().to_string(), text);
        }
        let spaced: Policy = "  ANY  2(a,b )".parse().unwrap();
        assert_eq!(spaced.to_string(), "any 2 (a, b)");
        for (text, said) in [
            ("", "`` is no acknowledgement policy"),
            ("sync", "no acknowledgement policy"),
            ("any (a)", "no acknowledgement policy"),
            ("any 0 (a)", "no acknowledgement policy"),
            ("any +1 (a)", "no acknowledgement policy"),
            ("any 99999999999999999999 (a)", "no acknowledgement policy"),
            ("any 1", "no acknowledgement policy"),
            ("any 1 (a", "no acknowledgement policy"),
            ("async (a)", "no acknowledgement policy"),
            ("chain (*)", "`*` cannot be a node's name"),
            ("first 1 (*)", "needs names in their order"),
            ("any 1 ()", "`` cannot be a node's name"),
            ("any 1 (a, A)", "`A` cannot be a node's name"),
            ("any 1 (a, b, a)", "a is named twice"),
        ] {
            let error = text.parse::<Policy>().unwrap_err();
            assert!(error.to_string().contains(said), "{text}: {error}");
            assert!(error.hint().contains("any 1 (*)"), "{text}");
        }
    }

    #[test]
    fn stall_limits() {
        for (text, shown) in
            [("never", "never"), ("2s", "2s"), ("1m 30s", "90s"), ("1500ms", "1500ms"), (" 1h", "3600s")]
        {
            assert_eq!(text.parse::<StallLimit>().unwrap().to_string(), shown);
        }
        for text in ["", "0s", "9ms", "2", "-2s", "10500us", "always"] {
            assert_eq!(text.parse::<StallLimit>(), Err(PolicyError::StallLimit(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn whom_it_means_depends_on_who_is_the_primary() {
        for (policy, on_db1, on_db2) in [
            ("any 1 (*)", "db2 db3 db4, 1", "db1 db3 db4, 1"),
            ("all", "db2 db3 db4, 3", "db1 db3 db4, 3"),
            ("any 2 (db2, db3)", "db2 db3, 2", "db3, 2"),
            ("first 1 (db3, db2)", "db3 db2, 1", "db3, 1"),
            ("chain (db2, db3)", "db3, 1", "db3, 1"),
            ("chain (db3, db2)", "db2, 1", "db3, 1"),
            ("async", ", 0", ", 0"),
        ] {
            let meant = |primary| {
                let policy = set(policy, "never");
                format!("{}, {}", policy.others(primary).join(" "), policy.needed(primary))
            };
            assert_eq!((meant("db1").as_str(), meant("db2").as_str()), (on_db1, on_db2), "{policy}");
        }
    }

    #[test]
    fn what_names_nobody_or_too_few_is_refused_with_the_numbers() {
        let known = text_of(&["db1", "db2", "db3"]);
        let refused = |policy: &str, known: &[String]| {
            Resolved::new(1, policy.parse().unwrap(), StallLimit(None), known)
                .check("db1", known)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            refused("any 3 (*)", &known),
            "`any 3 (*)` waits for 3, and 2 members beside the primary count"
        );
        assert_eq!(
            refused("any 2 (db1, db2)", &known),
            "`any 2 (db1, db2)` waits for 2, and 1 member beside the primary counts"
        );
        assert_eq!(refused("all", &known[..1]), "`all` waits for 1, and no member beside the primary counts");
        assert_eq!(refused("first 1 (db9, db8)", &known), "no member is called db9 or db8");
        assert_eq!(Resolved::new(1, Policy::Async, StallLimit(None), &known).check("db1", &known), Ok(()));
    }

    #[test]
    fn stricter_is_what_can_be_proved() {
        for (new, old, expected) in [
            ("any 1 (*)", "async", true),
            ("async", "async", true),
            ("async", "any 1 (*)", false),
            ("any 2 (*)", "any 1 (*)", true),
            ("any 1 (*)", "any 2 (*)", false),
            ("any 1 (db2)", "any 1 (*)", true),
            ("any 1 (*)", "any 1 (db2)", false),
            ("all", "any 3 (*)", true),
            ("any 2 (*)", "all", false),
            ("first 1 (db3, db2)", "any 1 (db2, db3)", true),
            ("first 1 (db3, db4)", "any 1 (db2, db3)", false),
            ("chain (db2, db3)", "any 1 (db3)", true),
            ("chain (db3, db2)", "any 1 (db3)", false),
        ] {
            assert_eq!(
                set(new, "never").is_as_strict_as(&set(old, "never"), "db1"),
                expected,
                "{new} after {old}"
            );
        }
        for (new, old, expected) in
            [("never", "2s", true), ("3s", "2s", true), ("2s", "3s", false), ("2s", "never", false)]
        {
            let strict = set("any 1 (*)", new).is_as_strict_as(&set("any 1 (*)", old), "db1");
            assert_eq!(strict, expected, "{new} after {old}");
        }
        assert!(set("any 1 (*)", "1s").is_as_strict_as(&set("async", "never"), "db1"), "async has no limit");
    }

    /// Policies whose names match a pattern.
    fn policies(name: &'static str) -> impl Strategy<Value = Policy> {
        let names = move || {
            let set = prop::collection::btree_set(name, 1..5);
            set.prop_map(|set| set.into_iter().collect::<Vec<String>>()).prop_shuffle()
        };
        prop_oneof![
            Just(Policy::Async),
            Just(Policy::All),
            (1usize..9).prop_map(|count| Policy::Any { count, of: Members::Known }),
            (1usize..5, names()).prop_map(|(count, names)| Policy::Any { count, of: Members::Named(names) }),
            (1usize..5, names()).prop_map(|(count, of)| Policy::First { count, of }),
            names().prop_map(|through| Policy::Chain { through }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(policy in policies("[a-z0-9_-]{1,8}"), millis in 10u64..100_000) {
            let limit = StallLimit(Some(Duration::from_millis(millis)));
            prop_assert_eq!(limit.to_string().parse(), Ok(limit));
            prop_assert_eq!(policy.to_string().parse::<Policy>(), Ok(policy.clone()));
            let kept = Resolved::new(7, policy, limit, &text_of(&["db1"]));
            let text = serde_json::to_string(&kept).unwrap();
            prop_assert_eq!(serde_json::from_str::<Resolved>(&text).unwrap(), kept);
        }

        #[test]
        fn no_text_is_too_strange(text in ".{0,40}") {
            if let Ok(policy) = text.parse::<Policy>() {
                prop_assert_eq!(policy.to_string().parse::<Policy>(), Ok(policy));
            }
        }

        /// Whoever knows no more than the old one reads so many positions that it finds what the new one acknowledged.
        #[test]
        fn as_strict_means_that_readers_of_the_old_one_find_it(
            old in policies("[a-d]"),
            new in policies("[a-d]"),
            holders in prop::collection::btree_set(0usize..4, 0..4),
        ) {
            let known = text_of(&["a", "b", "c", "d", "p"]);
            let set = |policy: &Policy| Resolved::new(1, policy.clone(), StallLimit(None), &known);
            let (old, new) = (set(&old), set(&new));
            let count = |policy: &Resolved| {
                let others = policy.others("p");
                holders.iter().filter(|&&index| others.contains(&known[index].as_str())).count()
            };
            // Held by so many as the new one needs, it is held by so many as the old one needed.
            if new.is_as_strict_as(&old, "p") && count(&new) >= new.needed("p") {
                prop_assert!(count(&old) >= old.needed("p"));
            }
        }
    }
}
