//! When to tell PostgreSQL how far we are, and what: pure rules over positions and time.
//!
//! * A new position is told at once: commits may be waiting for it, and so is a server that is being stopped.
//! * A request for a reply is answered at once when there is something new, otherwise at most every 100 ms: a server
//!   that is being stopped asks again as soon as it is answered (pg-facts, rule 4).
//! * Once a second we ask for a sign of life, which also tells how far the server is while it is idle.
//! * Never more is reported than came over this very connection (pg-facts, rule 5 and G.3), and nothing is taken back.
//! * When the WAL ends in a shutdown checkpoint, all that is durable here is reported, whatever is released: the server's
//!   clients are gone and nobody waits for a commit any more, but the server waits for us (rule 4).

use std::time::{Duration, Instant};

use crate::pg::{Level, Levels, Lsn};

/// Least time between two replies that say the same.
const REPEAT_INTERVAL: Duration = Duration::from_millis(100);

/// How often we ask.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// What was said when.
#[derive(Debug)]
pub(super) struct StatusClock {
    /// What was reported last; `None` before the first report.
    reported: Option<Levels<Lsn>>,
    sent_at: Instant,
    reply_owed: bool,
}

impl StatusClock {
    pub fn new(now: Instant) -> StatusClock {
        StatusClock { reported: None, sent_at: now, reply_owed: false }
    }

    /// What is to be said, given what is released, what was received on this connection, and, when that ends in a
    /// shutdown checkpoint, what of it is durable.
    pub fn positions(&self, released: Levels<Lsn>, received: Lsn, shutdown: Option<Lsn>) -> Levels<Lsn> {
        let released = released.max(Levels::all(shutdown.unwrap_or(Lsn::INVALID)));
        released.min(Levels::all(received)).max(self.reported.unwrap_or_default())
    }

    /// The server asked for a reply.
    pub fn asked(&mut self) {
        self.reply_owed = true;
    }

    /// When the next status is due, given what it would say.
    pub fn due_at(&self, positions: Levels<Lsn>, now: Instant) -> Instant {
        match self.reported {
            Some(reported)
                if Level::ALL.iter().all(|level| positions.get(*level) <= reported.get(*level)) =>
            {
                self.sent_at + if self.reply_owed { REPEAT_INTERVAL } else { ASK_INTERVAL }
            }
            _ => now,
        }
    }

    /// A status is being sent; true when it should ask for a sign of life, as it does when nothing else was to say.
    pub fn send(&mut self, positions: Levels<Lsn>, now: Instant) -> bool {
        let asks = self.reported.is_none() || now.duration_since(self.sent_at) >= ASK_INTERVAL;
        self.reported = Some(positions);
        self.sent_at = now;
        self.reply_owed = false;
        asks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(write: u64, flush: u64, apply: u64) -> Levels<Lsn> {
        Levels { write: Lsn(write), flush: Lsn(flush), apply: Lsn(apply) }
    }

    #[test]
    fn news_leave_at_once_and_repetitions_do_not_spin() {
        let start = Instant::now();
        let mut clock = StatusClock::new(start);
        assert_eq!(clock.due_at(at(10, 10, 9), start), start, "the first one");
        assert!(clock.send(at(10, 10, 9), start));

        clock.asked();
        for news in [at(11, 10, 9), at(10, 11, 9), at(10, 10, 10)] {
            assert_eq!(clock.due_at(news, start), start, "news");
        }
        assert_eq!(clock.due_at(at(10, 10, 9), start), start + 100 * MS, "nothing new");
        assert!(!clock.send(at(10, 10, 9), start + 100 * MS));
        assert_eq!(
            clock.due_at(at(10, 10, 9), start),
            start + 1100 * MS,
            "answered, so only the question is left"
        );
        assert!(clock.send(at(10, 10, 9), start + 1100 * MS));
    }

    #[test]
    fn nothing_is_reported_that_did_not_come_over_this_connection_and_nothing_taken_back() {
        let start = Instant::now();
        let mut clock = StatusClock::new(start);
        assert_eq!(clock.positions(at(50, 40, 10), Lsn(20), None), at(20, 20, 10));
        assert_eq!(clock.positions(at(50, 40, 10), Lsn(60), None), at(50, 40, 10));
        clock.send(at(50, 40, 10), start);
        assert_eq!(clock.positions(at(45, 45, 0), Lsn(60), None), at(50, 45, 10));
    }

    #[test]
    fn at_a_shutdown_nobody_is_waited_for() {
        let clock = StatusClock::new(Instant::now());
        assert_eq!(clock.positions(at(0, 0, 0), Lsn(60), Some(Lsn(60))), at(60, 60, 60));
        assert_eq!(
            clock.positions(at(50, 40, 10), Lsn(60), Some(Lsn(45))),
            at(50, 45, 45),
            "as far as it is durable"
        );
        assert_eq!(clock.positions(at(70, 70, 70), Lsn(60), Some(Lsn(60))), at(60, 60, 60));
    }
}
