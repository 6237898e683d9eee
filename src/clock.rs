//! The only reader of wall time.
//!
//! Durations inside one process come from [`std::time::Instant`]; this is for what is shown, stored or compared
//! between hosts.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// By how many seconds the clock of a process is wrong, in debug builds only; read once.
pub const OFFSET_VARIABLE: &str = "WALSHIP_CLOCK_OFFSET_SECONDS";

/// Seconds from 1970 to 2000, PostgreSQL's epoch.
const POSTGRES_EPOCH_SECONDS: i64 = 946_684_800;

/// A moment in wall time, in microseconds since 1970 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct WallTime {
    /// Microseconds since 1970-01-01 00:00 UTC.
    pub unix_micros: i64,
}

impl WallTime {
    /// Now, by this host's clock.
    pub fn now() -> WallTime {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let micros = i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
        WallTime { unix_micros: micros.saturating_add(offset_micros()) }
    }

    /// Seconds since 1970, rounded down.
    pub fn unix_seconds(self) -> i64 {
        self.unix_micros.div_euclid(1_000_000)
    }

    /// PostgreSQL's `TimestampTz`: microseconds since 2000-01-01 UTC, as in the replication protocol; saturates.
    pub fn postgres_micros(self) -> i64 {
        self.unix_micros.saturating_sub(POSTGRES_EPOCH_SECONDS * 1_000_000)
    }

    /// The reverse of [`WallTime::postgres_micros`]; saturates on foreign nonsense.
    pub fn from_postgres_micros(micros: i64) -> WallTime {
        WallTime { unix_micros: micros.saturating_add(POSTGRES_EPOCH_SECONDS * 1_000_000) }
    }

    /// Seconds from `earlier` to here; zero when a clock was set back in between.
    pub fn seconds_since(self, earlier: WallTime) -> f64 {
        (self.unix_micros.saturating_sub(earlier.unix_micros)).max(0) as f64 / 1e6
    }

    /// RFC 3339 in UTC with seconds, such as `2026-11-23T05:47:07Z`.
    pub fn rfc3339(self) -> String {
        jiff::Timestamp::from_second(self.unix_seconds())
            .map_or_else(|_| "unknown".to_owned(), |t| t.to_string())
    }
}

/// What a test has the clock be wrong by.
fn offset_micros() -> i64 {
    if !cfg!(debug_assertions) {
        return 0;
    }
    static OFFSET: OnceLock<i64> = OnceLock::new();
    *OFFSET.get_or_init(|| {
        let text = std::env::var(OFFSET_VARIABLE).unwrap_or_default();
        let seconds = if text.is_empty() { Ok(0) } else { text.parse::<i64>() };
        if seconds.is_err() {
            tracing::error!("{OFFSET_VARIABLE}: `{text}` is no number of seconds");
        }
        seconds.unwrap_or(0).saturating_mul(1_000_000)
    })
}

/// A moment as programs and people read it: RFC 3339 in UTC, to the microsecond.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Time(jiff::Timestamp);

impl From<WallTime> for Time {
    fn from(time: WallTime) -> Time {
        let limit = if time.unix_micros < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX };
        Time(jiff::Timestamp::from_microsecond(time.unix_micros).unwrap_or(limit))
    }
}

impl From<Time> for WallTime {
    fn from(time: Time) -> WallTime {
        WallTime { unix_micros: time.0.as_microsecond() }
    }
}

/// In whole seconds.
impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&WallTime::from(*self).rfc3339())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_clock_however_wrong_makes_nonsense() {
        let [start, now, end] =
            [i64::MIN, 1_800_000_000_000_000, i64::MAX].map(|unix_micros| WallTime { unix_micros });
        assert_eq!(now.seconds_since(WallTime { unix_micros: now.unix_micros + 1 }), 0.0);
        for (later, earlier) in [(end, start), (start, end), (now, start), (end, now)] {
            assert!(later.seconds_since(earlier) >= 0.0);
            assert_eq!(Time::from(later) >= Time::from(earlier), later >= earlier);
        }
        for time in [start, end] {
            let _ = (time.postgres_micros(), time.rfc3339(), Time::from(time).to_string());
        }
    }

    #[test]
    fn postgresqls_epoch() {
        assert_eq!(WallTime::from_postgres_micros(0).rfc3339(), "2000-01-01T00:00:00Z");
        let now = WallTime::now();
        assert_eq!(WallTime::from_postgres_micros(now.postgres_micros()), now);
    }
}
