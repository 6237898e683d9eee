//! When to tell PostgreSQL how far we are, and what: pure rules over positions and time.
//!
//! * A new durable end is told at once: commits may be waiting for it, and so is a server that is being stopped.
//! * A request for a reply is answered at once when there is something new, otherwise at most every 100 ms: a server
//!   that is being stopped asks again as soon as it is answered (pg-facts, rule 4).
//! * Once a second we ask for a sign of life, which also tells how far the server is while it is idle.
//! * Never more is reported as flushed than came over this very connection (pg-facts, rule 5 and G.3).

use std::time::{Duration, Instant};

use crate::pg::Lsn;

/// Least time between two replies that say the same.
const REPEAT_INTERVAL: Duration = Duration::from_millis(100);

/// How often we ask.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// What was said when.
#[derive(Debug)]
pub(super) struct StatusClock {
    /// The position last reported; `None` before the first report.
    reported: Option<Lsn>,
    sent_at: Instant,
    reply_owed: bool,
}

impl StatusClock {
    pub fn new(now: Instant) -> StatusClock {
        StatusClock { reported: None, sent_at: now, reply_owed: false }
    }

    /// The one position that is written, flushed and applied as far as PostgreSQL is told: what is durable here, and
    /// was received on this connection.
    pub fn position(durable: Lsn, received: Lsn) -> Lsn {
        durable.min(received)
    }

    /// The server asked for a reply.
    pub fn asked(&mut self) {
        self.reply_owed = true;
    }

    /// When the next status is due, given what it would say.
    pub fn due_at(&self, position: Lsn, now: Instant) -> Instant {
        match self.reported {
            Some(reported) if position <= reported => {
                self.sent_at + if self.reply_owed { REPEAT_INTERVAL } else { ASK_INTERVAL }
            }
            _ => now,
        }
    }

    /// A status is being sent; true when it should ask for a sign of life, as it does when nothing else was to say.
    pub fn send(&mut self, position: Lsn, now: Instant) -> bool {
        let asks = self.reported.is_none() || now.duration_since(self.sent_at) >= ASK_INTERVAL;
        self.reported = Some(position);
        self.sent_at = now;
        self.reply_owed = false;
        asks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn news_leave_at_once_and_repetitions_do_not_spin() {
        let start = Instant::now();
        let mut clock = StatusClock::new(start);
        assert_eq!(clock.due_at(Lsn(10), start), start, "the first one");
        assert!(clock.send(Lsn(10), start));

        clock.asked();
        assert_eq!(clock.due_at(Lsn(11), start), start, "news");
        assert_eq!(clock.due_at(Lsn(10), start), start + 100 * MS, "nothing new");
        assert!(!clock.send(Lsn(10), start + 100 * MS));
        assert_eq!(clock.due_at(Lsn(10), start), start + 1100 * MS, "answered, so only the question is left");
        assert!(clock.send(Lsn(10), start + 1100 * MS));
    }

    #[test]
    fn nothing_is_flushed_that_did_not_come_over_this_connection() {
        assert_eq!(StatusClock::position(Lsn(50), Lsn(20)), Lsn(20));
        assert_eq!(StatusClock::position(Lsn(20), Lsn(50)), Lsn(20));
    }
}
