//! Thresholds for lag, `64MiB,30s`: how they are written and what they say of a value.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How bad something is, in the words and numbers of monitoring plugins.
///
/// Ordered from good to bad, unknown below warning, as plugins do it: what is known to be wrong is said even when
/// something else is not known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Nobody can say.
    Unknown,
    /// Someone should look at it.
    Warning,
    /// Someone must look at it now.
    Critical,
}

impl Level {
    /// In capitals, as plugins print it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Ok => "OK",
            Level::Unknown => "UNKNOWN",
            Level::Warning => "WARNING",
            Level::Critical => "CRITICAL",
        }
    }

    /// The exit code of `lag` and `check`.
    pub fn code(self) -> u8 {
        match self {
            Level::Ok => 0,
            Level::Warning => 1,
            Level::Critical => 2,
            Level::Unknown => 3,
        }
    }
}

/// A value that may be known in part or not at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Amount<T> {
    /// This much.
    Known(T),
    /// This much or more.
    AtLeast(T),
    /// Nobody can say; never to be taken for zero.
    Unknown,
}

/// More than this is too much; a part that is missing sets no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Threshold {
    /// Behind in bytes.
    pub bytes: Option<u64>,
    /// Behind in time.
    pub time: Option<Duration>,
}

/// The two thresholds of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Beyond is [`Level::Warning`].
    pub warn: Threshold,
    /// Beyond is [`Level::Critical`].
    pub crit: Threshold,
}

/// A threshold that cannot be read, or a pair that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ThresholdError {
    /// Neither a size nor a duration.
    #[error("`{part}` is neither a size such as 64MiB nor a duration such as 30s or 5m{}", similar(.part))]
    BadPart {
        /// The part between commas.
        part: String,
    },
    /// Two sizes, or two durations.
    #[error("`{text}` has two {what}; write one size and one duration, such as 64MiB,30s")]
    Twice {
        /// The whole threshold.
        text: String,
        /// `sizes` or `durations`.
        what: &'static str,
    },
    /// A warning that could never come before its critical.
    #[error("the {what} to warn at is above the critical one, so it would never warn; swap them")]
    Swapped {
        /// `size` or `duration`.
        what: &'static str,
    },
}

/// What was probably meant by a number without a unit, or with half of one.
fn similar(part: &str) -> String {
    let digits: String = part.chars().take_while(|c| c.is_ascii_digit()).collect();
    match part.strip_prefix(&digits) {
        Some("") if !digits.is_empty() => format!("; say `{digits}MiB` or `{digits}s`"),
        Some(prefix @ ("K" | "M" | "G" | "T")) if !digits.is_empty() => format!("; say `{digits}{prefix}iB`"),
        _ => String::new(),
    }
}

impl FromStr for Threshold {
    type Err = ThresholdError;

    fn from_str(text: &str) -> Result<Threshold, ThresholdError> {
        let mut threshold = Threshold::default();
        for part in text.split(',').map(str::trim) {
            let bad = || ThresholdError::BadPart { part: part.to_owned() };
            // Only what ends in `B` is a size: `5m` is five minutes, and `64M` could be either.
            let twice = if part.ends_with('B') {
                let size: bytesize::ByteSize = part.parse().map_err(|_| bad())?;
                threshold.bytes.replace(size.as_u64()).map(|_| "sizes")
            } else {
                let time: jiff::SignedDuration = part.parse().map_err(|_| bad())?;
                let time = Duration::try_from(time).map_err(|_| bad())?;
                threshold.time.replace(time).map(|_| "durations")
            };
            if let Some(what) = twice {
                return Err(ThresholdError::Twice { text: text.to_owned(), what });
            }
        }
        Ok(threshold)
    }
}

impl Limits {
    /// Puts two thresholds together.
    pub fn new(warn: Option<Threshold>, crit: Option<Threshold>) -> Result<Limits, ThresholdError> {
        let limits = Limits { warn: warn.unwrap_or_default(), crit: crit.unwrap_or_default() };
        let above =
            |warn: Option<u128>, crit: Option<u128>| matches!((warn, crit), (Some(w), Some(c)) if w > c);
        if above(limits.warn.bytes.map(u128::from), limits.crit.bytes.map(u128::from)) {
            return Err(ThresholdError::Swapped { what: "size" });
        }
        if above(limits.warn.time.map(|d| d.as_nanos()), limits.crit.time.map(|d| d.as_nanos())) {
            return Err(ThresholdError::Swapped { what: "duration" });
        }
        Ok(limits)
    }

    /// What an amount of bytes means. Not to know it is never fine, with or without a threshold.
    pub fn judge_bytes(&self, bytes: Amount<u64>) -> Level {
        judge(bytes, self.warn.bytes, self.crit.bytes)
    }

    /// What an amount of time means. Only asked when there is a threshold for it: from a bare PostgreSQL, time is
    /// rarely known.
    pub fn judge_time(&self, time: Amount<Duration>) -> Level {
        if self.warn.time.is_none() && self.crit.time.is_none() {
            return Level::Ok;
        }
        judge(time, self.warn.time, self.crit.time)
    }

    /// What it means that nothing was heard for `age` (`None`: never). A dead link is never fine, however little was
    /// missing when it broke.
    pub fn judge_silence(&self, age: Option<Duration>) -> Level {
        let silence = age.map_or(Amount::Unknown, Amount::AtLeast);
        judge(silence, self.warn.time, self.crit.time)
    }
}

fn judge<T: PartialOrd>(amount: Amount<T>, warn: Option<T>, crit: Option<T>) -> Level {
    let (value, otherwise) = match amount {
        Amount::Known(value) => (value, Level::Ok),
        // It may be more, so it is never fine; but what it surely exceeds is said.
        Amount::AtLeast(value) => (value, Level::Unknown),
        Amount::Unknown => return Level::Unknown,
    };
    if crit.is_some_and(|limit| value > limit) {
        Level::Critical
    } else if warn.is_some_and(|limit| value > limit) {
        Level::Warning
    } else {
        otherwise
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn threshold(bytes: Option<u64>, seconds: Option<u64>) -> Threshold {
        Threshold { bytes, time: seconds.map(Duration::from_secs) }
    }

    #[test]
    fn either_part_in_either_order() {
        assert_eq!("64MiB,30s".parse(), Ok(threshold(Some(64 << 20), Some(30))));
        assert_eq!("5m , 1GiB".parse(), Ok(threshold(Some(1 << 30), Some(300))));
        assert_eq!("1h30m".parse(), Ok(threshold(None, Some(5400))));
        assert_eq!("500kB".parse(), Ok(threshold(Some(500_000), None)));
        assert_eq!("0B,0s".parse(), Ok(threshold(Some(0), Some(0))));
    }

    #[test]
    fn errors_say_what_to_write() {
        let said = |text: &str| text.parse::<Threshold>().unwrap_err().to_string();
        assert_eq!(
            said("64"),
            "`64` is neither a size such as 64MiB nor a duration such as 30s or 5m; say `64MiB` or `64s`"
        );
        assert!(said("64M").ends_with("say `64MiB`"), "{}", said("64M"));
        assert!(said("").starts_with("`` is neither"), "{}", said(""));
        assert!(said("1GiB,").starts_with("`` is neither"));
        assert!(said("-5s").starts_with("`-5s` is neither"), "{}", said("-5s"));
        assert!(said("fastB").starts_with("`fastB` is neither"));
        assert!(said("1GiB,2GiB").contains("two sizes"));
        assert!(said("1s,2s").contains("two durations"));
        let warn = Some("1GiB".parse().unwrap());
        let swapped = Limits::new(warn, Some("1MiB".parse().unwrap())).unwrap_err();
        assert_eq!(swapped, ThresholdError::Swapped { what: "size" });
        assert!(Limits::new(warn, Some("5m".parse().unwrap())).is_ok(), "different parts do not compare");
    }

    fn amounts() -> impl Strategy<Value = Amount<u64>> {
        prop_oneof![
            (0u64..100).prop_map(Amount::Known),
            (0u64..100).prop_map(Amount::AtLeast),
            Just(Amount::Unknown)
        ]
    }

    /// No limit at all is the highest one.
    fn limits() -> impl Strategy<Value = Option<u64>> {
        prop_oneof![(0u64..100).prop_map(Some), Just(None)]
    }

    proptest! {
        #[test]
        fn a_higher_threshold_never_gives_a_worse_level(
            amount in amounts(), warn in limits(), crit in limits(), more in 0u64..50, drop_warn: bool,
        ) {
            let raised = if drop_warn { None } else { warn.map(|limit| limit + more) };
            prop_assert!(judge(amount, raised, crit) <= judge(amount, warn, crit));
            prop_assert!(judge(amount, warn, crit.map(|limit| limit + more)) <= judge(amount, warn, crit));
        }

        #[test]
        fn what_is_not_known_is_never_fine(amount in amounts(), warn in limits(), crit in limits()) {
            let level = judge(amount, warn, crit);
            prop_assert_eq!(level == Level::Ok, matches!(amount, Amount::Known(value)
                if warn.is_none_or(|limit| value <= limit) && crit.is_none_or(|limit| value <= limit)));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9a-zA-Z,. -]{0,12}") {
            let _ = text.parse::<Threshold>();
        }
    }
}
