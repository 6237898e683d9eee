//! When commits go on unprotected, and when protection is back: a state machine that is told the time.
//!
//! ```text
//! armed ─▶ opening ─▶ exposed ⇄ rearming        opening, closing: the exposure log is being written
//!   ▲                              │
//!   └─────────── closing ◀─────────┘
//! ```
//!
//! What always holds:
//!
//! * Nothing is released unprotected before the opening of its window is durable, nor before somebody has waited for the
//!   stall limit, and the WAL that it waits for has been there for as long. Where nobody waits no window opens.
//! * Protection is back when every level in use has caught up with the highest position that was released unprotected, and
//!   the close is durable. Until then commits beyond that position wait as they do when armed, so that a standby that is
//!   nearly in step gets there under load.

use std::time::{Duration, Instant};

use super::arrivals::Arrivals;
use super::probe::Waited;
use crate::pg::{Level, Levels, Lsn, TimelineId};

/// How long after a failure it is tried again to write the log.
const RETRY: Duration = Duration::from_secs(1);
/// The part of the limit after which it matters who waits, and the longest that may be.
const PATIENCE: u32 = 4;
const PATIENCE_MAX: Duration = Duration::from_secs(1);

/// What is known at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The moment.
    pub now: Instant,
    /// The timeline of the positions.
    pub timeline: Option<TimelineId>,
    /// What the primary itself has fsynced: all that could be released.
    pub durable: Lsn,
    /// What the policy releases.
    pub protected: Levels<Lsn>,
    /// How long commits wait; `None` for ever.
    pub limit: Option<Duration>,
    /// Where somebody has waited for the limit.
    pub waited: Waited,
    /// Whether `remote_apply` is what transactions ask for that say nothing else.
    pub apply_is_default: bool,
}

/// What is to be written to the exposure log; the outcome is told with [`Stall::written`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    /// A window opens.
    Open(Opening),
    /// It closes.
    Close {
        /// No commit beyond was released in it; invalid when none was at all.
        to: Lsn,
    },
}

/// A window that opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opening {
    /// Commits up to here are protected at every level in use.
    pub from: Lsn,
    /// Whether `remote_apply` is among these.
    pub apply_is_used: bool,
    /// The first level that stalled.
    pub stalled: Level,
    /// Below this somebody has waited for that.
    pub wanted: Lsn,
}

/// The machine.
#[derive(Debug)]
pub struct Stall {
    arrivals: Arrivals,
    /// What the arrivals are about.
    subject: (Option<Duration>, Option<TimelineId>),
    phase: Phase,
    /// The log could not be written, and is not tried again before this.
    retry_at: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Armed,
    Opening(Window),
    /// Beyond `highest` commits wait.
    Rearming(Window),
    /// Nobody is waited for.
    Exposed(Window),
    Closing(Window),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Window {
    /// The highest position released unprotected; invalid before the first.
    highest: Lsn,
    apply_is_used: bool,
}

impl Stall {
    /// Armed; or, where the log has an open window, as it was when the node ended: `end` is the end of the WAL found now,
    /// and all of it may have been released.
    pub fn new(open: Option<bool>, end: Lsn) -> Stall {
        let phase = match open {
            None => Phase::Armed,
            Some(apply_is_used) => Phase::Rearming(Window { highest: end, apply_is_used }),
        };
        Stall { arrivals: Arrivals::new(Duration::MAX), subject: (None, None), phase, retry_at: None }
    }

    /// Takes the facts in; gives what is released, and what is to be written before it can go on.
    pub fn step(&mut self, facts: &Facts) -> (Levels<Lsn>, Option<Write>) {
        let subject = (facts.limit, facts.timeline);
        if self.subject != subject {
            self.subject = subject;
            self.arrivals = Arrivals::new(facts.limit.unwrap_or(Duration::MAX));
        }
        self.arrivals.note(facts.now, facts.durable);
        let write = self.advance(facts);
        (self.released(facts), write)
    }

    fn released(&self, facts: &Facts) -> Levels<Lsn> {
        match self.phase {
            Phase::Armed | Phase::Opening(_) => facts.protected,
            Phase::Rearming(window) | Phase::Exposed(window) | Phase::Closing(window) => {
                facts.protected.max(Levels::all(window.highest))
            }
        }
    }

    fn advance(&mut self, facts: &Facts) -> Option<Write> {
        let may_write = self.retry_at.is_none_or(|at| at <= facts.now);
        match &mut self.phase {
            Phase::Armed => {
                let opening = self.opening(facts).filter(|_| may_write)?;
                let apply_is_used = opening.apply_is_used;
                self.phase = Phase::Opening(Window { highest: Lsn::INVALID, apply_is_used });
                return Some(Write::Open(opening));
            }
            Phase::Rearming(window) | Phase::Exposed(window) => {
                let mut window = *window;
                if self.is_to_go_on(facts, window) {
                    window.highest = window.highest.max(facts.durable);
                    self.phase = Phase::Exposed(window);
                    return None;
                }
                self.phase = Phase::Rearming(window);
                if may_write && has_caught_up(facts, window) {
                    self.phase = Phase::Closing(window);
                    return Some(Write::Close { to: window.highest });
                }
            }
            Phase::Opening(_) | Phase::Closing(_) => {}
        }
        None
    }

    fn opening(&self, facts: &Facts) -> Option<Opening> {
        let (stalled, wanted) = self.first_stalled(facts, true)?;
        let apply_is_used = facts.apply_is_default || facts.protected.apply < facts.waited.apply;
        let from = used(apply_is_used).map(|level| *facts.protected.get(level)).min()?;
        Some(Opening { from, apply_is_used, stalled, wanted })
    }

    /// Whether commits go on unprotected in a window that is open. Once they do nobody waits any more, and they do until all
    /// that is older than the limit is protected.
    fn is_to_go_on(&self, facts: &Facts, window: Window) -> bool {
        let lags = used(window.apply_is_used)
            .any(|level| facts.limit.is_some() && *facts.protected.get(level) < self.arrivals.aged());
        match self.phase {
            Phase::Exposed(_) => lags,
            _ => self.first_stalled(facts, window.apply_is_used).is_some(),
        }
    }

    /// The first level at which somebody has waited for the limit, for WAL that has been there for as long: below which
    /// position.
    fn first_stalled(&self, facts: &Facts, with_apply: bool) -> Option<(Level, Lsn)> {
        facts.limit?;
        let wanted = |level| {
            let waited = if level == Level::Apply { facts.waited.apply } else { facts.waited.any };
            waited.min(self.arrivals.aged())
        };
        used(with_apply)
            .map(|level| (level, wanted(level)))
            .find(|(level, wanted)| facts.protected.get(*level) < wanted)
    }

    /// The log was written, or could not be.
    pub fn written(&mut self, done: bool, now: Instant) {
        self.retry_at = (!done).then_some(now + RETRY);
        self.phase = match (self.phase, done) {
            (Phase::Opening(window), true) => Phase::Exposed(window),
            (Phase::Closing(window), false) => Phase::Rearming(window),
            (Phase::Opening(_), false) | (Phase::Closing(_), true) => Phase::Armed,
            (other, _) => other,
        };
    }

    /// From when on it matters who waits; `None` while nothing makes it.
    pub fn asks_from(&self, facts: &Facts) -> Option<Instant> {
        let limit = facts.limit?;
        let due = self.next_aged(facts)?;
        let patience = (limit / PATIENCE).min(PATIENCE_MAX);
        Some(due.checked_sub(limit - patience).unwrap_or(facts.now))
    }

    /// When to take another step although nothing happened.
    pub fn wake_at(&self, facts: &Facts) -> Option<Instant> {
        // What is due already waits for something else: a look, or the retry.
        let later = |at: &Instant| *at > facts.now;
        let due = [self.next_aged(facts), self.asks_from(facts), self.retry_at];
        due.into_iter().flatten().filter(later).min()
    }

    /// From when on some level lacks WAL that has been there for the limit. While a window is being opened or closed, or
    /// nobody is waited for, only news change anything.
    fn next_aged(&self, facts: &Facts) -> Option<Instant> {
        facts.limit?;
        if !matches!(self.phase, Phase::Armed | Phase::Rearming(_)) {
            return None;
        }
        let aged = |level: Level| self.arrivals.aged_at(*facts.protected.get(level), facts.now);
        Level::ALL.into_iter().filter_map(aged).min()
    }
}

/// The levels that count.
fn used(apply_is_used: bool) -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(move |level| apply_is_used || *level != Level::Apply)
}

fn has_caught_up(facts: &Facts, window: Window) -> bool {
    used(window.apply_is_used).all(|level| *facts.protected.get(level) >= window.highest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: Duration = Duration::from_millis(320);

    /// A primary and those whom it waits for, as a test moves them.
    struct Model {
        stall: Stall,
        facts: Facts,
        released: Levels<Lsn>,
        write: Option<Write>,
    }

    impl Model {
        fn new() -> Model {
            let facts = Facts {
                now: Instant::now(),
                timeline: Some(TimelineId(1)),
                durable: Lsn(100),
                protected: Levels::all(Lsn(100)),
                limit: Some(LIMIT),
                waited: Waited { any: Lsn(u64::MAX), apply: Lsn::INVALID },
                apply_is_default: false,
            };
            let stall = Stall::new(None, facts.durable);
            let mut model = Model { stall, facts, released: Levels::default(), write: None };
            model.step();
            model
        }

        fn step(&mut self) {
            let (released, write) = self.stall.step(&self.facts);
            self.released = released;
            self.write = self.write.or(write);
        }

        fn is_exposed(&self) -> bool {
            !matches!(self.stall.phase, Phase::Armed | Phase::Opening(_))
        }

        fn wait(&mut self, millis: u64) {
            self.facts.now += Duration::from_millis(millis);
            self.step();
        }

        fn writes(&mut self, done: bool) -> Option<Write> {
            let write = self.write.take();
            if write.is_some() {
                self.stall.written(done, self.facts.now);
                self.step();
            }
            write
        }
    }

    #[test]
    fn a_window_from_its_opening_to_its_close() {
        let mut model = Model::new();
        model.facts.durable = Lsn(150);
        model.facts.protected = Levels { write: Lsn(140), flush: Lsn(120), apply: Lsn(110) };
        model.wait(0);
        assert_eq!(model.stall.wake_at(&model.facts), Some(model.facts.now + LIMIT / 4), "to see who waits");
        model.wait(80);
        assert_eq!(model.stall.asks_from(&model.facts), Some(model.facts.now));
        model.wait(239);
        assert_eq!((model.released, model.write), (model.facts.protected, None));
        model.wait(1);
        let opening =
            Opening { from: Lsn(120), apply_is_used: false, stalled: Level::Write, wanted: Lsn(150) };
        assert_eq!(model.write, Some(Write::Open(opening)));
        assert_eq!(model.released, model.facts.protected, "not before that is durable");
        model.facts.waited = Waited::default(); // nobody looks meanwhile
        model.writes(true);
        assert_eq!(model.released, Levels::all(Lsn(150)));
        model.facts.durable = Lsn(170);
        model.wait(1);
        assert_eq!(model.released, Levels::all(Lsn(170)), "without any wait");

        // Nearly in step: what comes now is protected again, and what went before must be caught up with.
        model.facts.protected = Levels::all(Lsn(165));
        model.wait(1);
        model.facts.durable = Lsn(200);
        model.wait(1);
        assert_eq!((model.released, model.write), (Levels::all(Lsn(170)), None));
        model.facts.protected = Levels { write: Lsn(180), flush: Lsn(172), apply: Lsn(150) };
        model.wait(1);
        assert_eq!(model.write, Some(Write::Close { to: Lsn(170) }));
        assert!(model.is_exposed(), "until that is durable");
        assert_eq!(model.released, Levels { write: Lsn(180), flush: Lsn(172), apply: Lsn(170) });
        model.writes(true);
        assert!(!model.is_exposed());
    }

    #[test]
    fn a_window_that_was_not_needed_after_all_lets_nothing_go() {
        let mut model = Model::new();
        model.facts.durable = Lsn(150);
        model.wait(0);
        model.wait(320);
        assert!(matches!(model.write, Some(Write::Open(_))));
        model.facts.protected = Levels::all(Lsn(150));
        model.facts.durable = Lsn(160);
        model.writes(true);
        assert_eq!(model.released, Levels::all(Lsn(150)));
        assert_eq!(model.write, Some(Write::Close { to: Lsn::INVALID }));
    }

    #[test]
    fn what_stalls_again_before_the_close_goes_on_in_the_same_window() {
        let mut model = Model::new();
        model.facts.durable = Lsn(200);
        model.wait(0);
        model.wait(320);
        model.writes(true);
        model.facts.durable = Lsn(210);
        model.wait(1);
        assert_eq!(model.released, Levels::all(Lsn(210)));
        model.facts.protected = Levels::all(Lsn(205));
        model.facts.durable = Lsn(220);
        model.wait(1);
        assert_eq!(model.released, Levels::all(Lsn(210)), "nearly in step");
        model.wait(319);
        assert_eq!(model.released, Levels::all(Lsn(210)));
        model.wait(1);
        assert_eq!((model.released, model.write), (Levels::all(Lsn(220)), None));
    }

    #[test]
    fn a_log_that_cannot_be_written_releases_nothing() {
        let mut model = Model::new();
        model.facts.durable = Lsn(150);
        model.wait(0);
        model.wait(320);
        for _ in 0..3 {
            assert!(matches!(model.writes(false), Some(Write::Open(_))));
            assert_eq!((model.released, model.write), (Levels::all(Lsn(100)), None));
            assert_eq!(model.stall.wake_at(&model.facts), Some(model.facts.now + RETRY));
            model.wait(1000);
        }
        model.writes(true);
        assert_eq!(model.released, Levels::all(Lsn(150)));
        model.facts.protected = Levels::all(Lsn(150));
        model.wait(1);
        assert_eq!(model.writes(false), Some(Write::Close { to: Lsn(150) }));
        assert!(model.is_exposed());
        model.wait(1000);
        assert!(matches!(model.writes(true), Some(Write::Close { .. })));
        assert!(!model.is_exposed());
    }

    #[test]
    fn where_nobody_waits_nothing_opens_and_the_clock_is_that_of_who_waits() {
        let mut model = Model::new();
        model.facts.waited = Waited::default();
        model.facts.durable = Lsn(150);
        model.wait(0);
        model.wait(10_000);
        assert_eq!(model.write, None, "WAL that nobody waits for");
        assert!(model.stall.asks_from(&model.facts).is_some_and(|at| at <= model.facts.now));
        // Somebody has waited for long, and has got it.
        model.facts.waited.any = Lsn(100);
        model.wait(1);
        assert_eq!(model.write, None);
        model.facts.waited.any = Lsn(101);
        model.wait(1);
        let opening =
            Opening { from: Lsn(100), apply_is_used: false, stalled: Level::Write, wanted: Lsn(101) };
        assert_eq!(model.write, Some(Write::Open(opening)));
    }

    #[test]
    fn apply_counts_where_somebody_waits_for_it() {
        let mut model = Model::new();
        model.facts.durable = Lsn(150);
        model.facts.protected = Levels { write: Lsn(150), flush: Lsn(150), apply: Lsn(100) };
        model.wait(0);
        model.wait(1000);
        assert_eq!(model.write, None, "nobody waits for it");
        model.facts.waited.apply = Lsn(150);
        model.wait(1);
        let opening =
            Opening { from: Lsn(100), apply_is_used: true, stalled: Level::Apply, wanted: Lsn(150) };
        assert_eq!(model.writes(true), Some(Write::Open(opening)));
        // Nobody waits any more, as nobody has to; it must catch up all the same.
        model.facts.waited.apply = Lsn::INVALID;
        model.wait(1);
        assert_eq!((model.released, model.write), (Levels::all(Lsn(150)), None));
        model.facts.protected.apply = Lsn(150);
        model.wait(1);
        assert_eq!(model.write, Some(Write::Close { to: Lsn(150) }));
    }

    #[test]
    fn a_window_found_open_runs_to_the_end_found_and_nothing_beyond_goes_out_before_the_limit() {
        let mut model = Model::new();
        model.stall = Stall::new(Some(false), Lsn(150));
        model.facts.durable = Lsn(150);
        model.facts.protected = Levels::default();
        model.step();
        model.facts.durable = Lsn(160);
        model.wait(319);
        assert_eq!(model.released, Levels::all(Lsn(150)));
        model.wait(320);
        assert_eq!(model.released, Levels::all(Lsn(160)));
        // Without a limit nothing more goes out, and it closes as usual.
        model.facts.limit = None;
        model.facts.durable = Lsn(170);
        model.wait(1);
        assert_eq!(model.released, Levels::all(Lsn(160)));
        model.facts.protected = Levels::all(Lsn(160));
        model.wait(1);
        assert_eq!(model.write, Some(Write::Close { to: Lsn(160) }));
    }

    #[derive(Clone, Debug)]
    enum Event {
        Wait(u64),
        WakeUp,
        Primary(u64),
        Standby { level: usize, bytes: u64 },
        CatchUp,
        Written(bool),
        Waited { any: bool, apply: bool },
    }

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            3 => (0u64..200).prop_map(Event::Wait),
            3 => Just(Event::WakeUp),
            3 => (1u64..50).prop_map(Event::Primary),
            3 => (0usize..3, 1u64..60).prop_map(|(level, bytes)| Event::Standby { level, bytes }),
            1 => Just(Event::CatchUp),
            3 => prop::bool::weighted(0.8).prop_map(Event::Written),
            2 => (any::<bool>(), any::<bool>()).prop_map(|(any, apply)| Event::Waited { any, apply }),
        ]
    }

    proptest! {
        #[test]
        fn the_log_covers_what_is_released_never_before_the_limit_and_always_after_it(
            events in prop::collection::vec(events(), 1..300),
            apply_is_default: bool,
        ) {
            let mut model = Model::new();
            model.facts.apply_is_default = apply_is_default;
            // When WAL came, and what was ever reported; the window that is durably open, and what went out in it.
            let mut arrivals = vec![(model.facts.now, model.facts.durable)];
            let (mut reported, mut window, mut highest) = (model.released, None, Lsn::INVALID);
            for event in events {
                match event {
                    Event::Wait(millis) => model.facts.now += Duration::from_millis(millis),
                    Event::WakeUp => {
                        model.facts.now = model.stall.wake_at(&model.facts).unwrap_or(model.facts.now);
                    }
                    Event::Primary(bytes) => {
                        model.facts.durable = model.facts.durable + bytes;
                        arrivals.push((model.facts.now, model.facts.durable));
                    }
                    Event::Standby { level, bytes } => {
                        let mut at = model.facts.protected;
                        let position = [&mut at.write, &mut at.flush, &mut at.apply].into_iter().nth(level).unwrap();
                        *position = (*position + bytes).min(model.facts.durable);
                        model.facts.protected = at;
                    }
                    Event::Waited { any, apply } => {
                        let below = |waits| if waits { model.facts.durable } else { Lsn::INVALID };
                        model.facts.waited = Waited { any: below(any), apply: below(apply) };
                    }
                    Event::CatchUp => model.facts.protected = Levels::all(model.facts.durable),
                    Event::Written(done) => {
                        if let Some(write) = model.write.take() {
                            match (write, done) {
                                (Write::Open(opening), true) => window = Some(opening),
                                (Write::Close { to }, true) => {
                                    let opening = window.take().unwrap();
                                    prop_assert!(to >= highest);
                                    for level in used(opening.apply_is_used) {
                                        prop_assert!(*model.facts.protected.get(level) >= highest);
                                    }
                                    highest = Lsn::INVALID;
                                }
                                (_, false) => {}
                            }
                            model.stall.written(done, model.facts.now);
                        }
                    }
                }
                let was_open = matches!(model.write, Some(Write::Open(_)));
                model.step();
                let Facts { now, durable, protected, waited, .. } = model.facts;
                if let (Some(Write::Open(opening)), false) = (model.write, was_open) {
                    let waited = if opening.stalled == Level::Apply { waited.apply } else { waited.any };
                    prop_assert!(*protected.get(opening.stalled) < waited, "nobody waits");
                }
                for level in Level::ALL {
                    let (released, before) = (*model.released.get(level), *reported.get(level));
                    prop_assert!(released <= durable.max(before));
                    if released > *protected.get(level) && released > before {
                        let opening = window.expect("no window is open, and something goes out unprotected");
                        let old = arrivals.iter().rfind(|(at, _)| now - *at >= LIMIT).map_or(Lsn(0), |(_, lsn)| *lsn);
                        let lacks = used(opening.apply_is_used).any(|level| *protected.get(level) < old);
                        prop_assert!(lacks, "before the limit");
                        highest = highest.max(released);
                    }
                }
                reported = reported.max(model.released);
                let grace = LIMIT + LIMIT / 16;
                let overdue = arrivals.iter().rfind(|(at, _)| now - *at >= grace).map_or(Lsn(0), |(_, lsn)| *lsn);
                if protected.flush < overdue.min(waited.any) && model.write.is_none() && model.stall.retry_at.is_none() {
                    prop_assert!(model.released == Levels::all(durable).max(protected), "after the limit");
                }
            }
        }
    }
}
