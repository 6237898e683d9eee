//! PGDATA → link: start, plan, parallel read, page checks, stop.

pub mod pace;
pub mod plan;
