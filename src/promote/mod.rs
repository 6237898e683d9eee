//! Facts about the nodes and their votes → a plan, or a refusal with its reason; pure.
//!
//! The planner knows nothing of links and servers: it is told what was seen, and says what follows from it. It is asked
//! twice: of facts alone, which may end it before anybody is disturbed, and of votes, whose positions stand still. The
//! daemon gathers the facts and carries the plan out. What is kept of it on disk ([`kept`]) is the one part that is not pure.

mod certificate;
mod facts;
pub mod kept;
mod obstacle;
pub mod past;
mod plan;
mod stake;
mod verdict;

pub use certificate::{Certificate, Course, Fenced, Salvaged};
pub use facts::{Contact, Facts, Heard, Part, Replay, Reported, Said, Seen, Server, Stage, Waited, Wish};
pub use obstacle::{Kind, Refusal};
pub use plan::{Fence, Plan, Salvage, best, plan};
pub use stake::{Known, Stake};
pub use verdict::{Verdict, Window, verdict};

#[cfg(test)]
mod tests;
