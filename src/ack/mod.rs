//! From the members' positions and the policy to what PostgreSQL is told: pure, no clock and no I/O.
//!
//! Each level of `synchronous_commit` is computed by itself. What always holds:
//!
//! * A position counts for the store that reported it and on the primary's timeline, and for nothing else.
//! * What was released is never taken back.
//! * A weaker policy takes effect only when a quorum of the one before has stored it, so that whoever is asked at an
//!   election by the old one has heard of the new one.

pub mod change;
mod release;
mod track;

pub use change::Change;
pub use release::released;
pub use track::{Part, Seat, Standing, Tracker};
