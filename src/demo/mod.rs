//! A cluster, a link proxy, a ledger and a story: what `walship demo` and the tests stand on.
//!
//! Everything here treats PostgreSQL and walship as a user would: through their programs, their sockets and SQL.

pub mod account;
pub mod cluster;
pub mod digest;
pub mod latency;
pub mod ledger;
pub mod node;
mod process;
pub mod proxy;
pub mod random;
pub mod stage;
pub mod story;
pub mod summary;
pub mod told;
pub mod wait;
pub mod wire;

pub use crate::pg::Binaries;
pub use account::Account;
pub use cluster::{Cluster, ClusterOptions, StopMode};
pub use ledger::{Ledger, Workload, WorkloadOptions};
pub use proxy::Proxy;
pub use random::Random;
pub use wire::{Direction, Wire};
