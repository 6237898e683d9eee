//! The exposure log for people.

use std::fmt::Write;

use crate::report::commits::listed;
use crate::report::units;
use crate::store::{Exposure, Exposures};

/// Window by window, the newest last.
pub fn exposures(log: &Exposures) -> String {
    let mut text = String::new();
    if log.forgotten.windows > 0 {
        let _ = writeln!(text, "{} older ones are no longer kept\n", log.forgotten.windows); // a String takes all
    }
    for window in &log.windows {
        let _ = write!(text, "{}", one(window));
    }
    if text.is_empty() { "no commit went on unprotected\n".to_owned() } else { text }
}

fn one(window: &Exposure) -> String {
    let Exposure { number, policy, reason, timeline, from_lsn, opened_at, .. } = window;
    let opened = opened_at.rfc3339();
    let what = match &window.closed {
        None => format!("open since {opened}: WAL from {from_lsn} on"),
        Some(closed) => {
            let seconds = std::time::Duration::from_secs_f64(closed.at.seconds_since(*opened_at));
            format!(
                "{opened}, for {}: WAL from {from_lsn} to {} ({})",
                units::duration(seconds),
                closed.to_lsn,
                units::size(closed.bytes)
            )
        }
    };
    let end = window.closed.as_ref().map_or_else(String::new, |closed| format!("; {}", closed.reason));
    format!(
        "{number}  {what} of timeline {timeline}\n   policy {policy}: {reason}{end}\n   missing: {}\n",
        listed(&window.missing)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::WallTime;
    use crate::pg::{Lsn, TimelineId};

    #[test]
    fn an_open_window_and_a_closed_one() {
        let mut log = Exposures::default();
        assert_eq!(exposures(&log), "no commit went on unprotected\n");
        let at = |seconds: i64| WallTime { unix_micros: (1_800_000_000 + seconds) * 1_000_000 };
        let window = Exposure {
            number: 0,
            policy: "any 1 (*)".to_owned(),
            reason: "a commit waited for 2s, and too few had fsynced it".to_owned(),
            missing: vec!["db2 (not connected)".to_owned()],
            timeline: TimelineId(3),
            from_lsn: Lsn(0x3000000),
            opened_at: at(0),
            apply_is_used: false,
            closed: None,
        };
        log.add(window.clone());
        log.close(Lsn(0x3000000 + 4096), at(75), "all have caught up");
        log.add(window);
        let expected = "\
1  2027-01-15T08:00:00Z, for 1m15s: WAL from 0/3000000 to 0/3001000 (4.0 KiB) of timeline 3
   policy any 1 (*): a commit waited for 2s, and too few had fsynced it; all have caught up
   missing: db2 (not connected)
2  open since 2027-01-15T08:00:00Z: WAL from 0/3000000 on of timeline 3
   policy any 1 (*): a commit waited for 2s, and too few had fsynced it
   missing: db2 (not connected)
";
        assert_eq!(exposures(&log), expected);
    }
}
