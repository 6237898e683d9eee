//! The vocabulary of the tests: a test has clusters, nodes and a folder; a node is a cluster with its sidecar.
//!
//! Everything ends with the test: processes when their handles are dropped, the folder when the test passed. A sidecar
//! that logged a warning or an error that the test had not announced fails it.

#![allow(dead_code, reason = "a vocabulary holds more than what is said today")]

mod command;
mod content;
mod disk;
mod last_words;
mod life;
mod log;
mod node;
mod sidecar;
mod test;
pub mod tools;

pub use command::Finished;
pub use content::everything_below;
pub use disk::{Disk, ran_with_own_mounts};
pub use last_words::last_words;
pub use log::Log;
pub use node::Node;
pub use sidecar::Sidecar;
pub use test::Test;

use std::time::Duration;

/// How long a test waits for what takes milliseconds on a quiet machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How a standby is promoted when the primary is down for sure: with a fence command that only says so.
pub const PROMOTE: [&str; 3] = ["promote", "--fence-command", "true"];

/// Waits until `condition` is `Ok`, and fails the test with its last error when [`PATIENCE`] ends.
pub async fn eventually<T>(what: &str, condition: impl AsyncFnMut() -> anyhow::Result<T>) -> T {
    match walship::demo::wait::until(what, PATIENCE, condition).await {
        Ok(value) => value,
        Err(error) => panic!("{error:#}"),
    }
}
