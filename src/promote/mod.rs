//! Facts about the nodes and their votes → a plan, or a refusal with its reason; pure.
//!
//! The planner knows nothing of links and servers: it is told what was seen, and says what follows from it. It is asked
//! twice: of facts alone, which may end it before anybody is disturbed, and of votes, whose positions stand still. The
//! daemon gathers the facts and carries the plan out.

mod facts;
mod obstacle;
mod plan;
mod stake;

pub use facts::{Contact, Facts, Part, Replay, Seen, Server, Stage, Waited, Wish};
pub use obstacle::{Kind, Refusal};
pub use plan::{Fence, Plan, Salvage, best, plan};
pub use stake::Stake;

#[cfg(test)]
mod tests;
