//! From the members' positions and the policy to what PostgreSQL is told: pure, no clock and no I/O.
//!
//! Each level of `synchronous_commit` is computed by itself. What always holds:
//!
//! * A position counts for the store that reported it and on the primary's timeline, and for nothing else.
//! * What was released is never taken back.
//! * Of a chain the tail counts, and nobody else. A member on the way reports where it is itself, and passes on what the
//!   tail said beside that. To a commit this is the same as a member that reports only what has reached the tail, and
//!   nothing without a path to it: what the tail has not said is not released, whoever is between or has restarted. It
//!   is more in three ways: the head knows what each member lacks, and keeps the WAL for every one of them; elections see
//!   true positions; and a tail that connects further up past a dead member goes on counting by its own word.
//! * With a stall limit commits go on unprotected past it, in windows that the exposure log has before they begin.
//! * A weaker policy takes effect only when a quorum of the one before has stored it, so that whoever is asked at an
//!   election by the old one has heard of the new one.

mod arrivals;
pub mod change;
pub mod probe;
mod release;
pub mod stall;
mod track;

pub use change::Change;
pub use release::released;
pub use stall::Stall;
pub use track::{Part, Seat, Standing, Tracker};
