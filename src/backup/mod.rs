//! PGDATA → link: start, plan, parallel read, page checks, stop.
//!
//! A backup is a control connection and any number of file connections. [`serve_control`] begins the backup in
//! PostgreSQL, tells the taker what there is, and ends it; [`serve_files`] sends of the files that are asked for what is
//! not at the taker yet. They share a [`Session`], which lives as long as the control connection: when that ends early,
//! or a file cannot be read, everything of the backup ends, and with its SQL connection PostgreSQL ends it too.
//!
//! Reading, hashing and compressing happen on blocking threads.

mod compare;
mod control;
pub mod file;
pub mod pace;
pub mod plan;
mod session;
mod stream;
mod taker;

pub use control::{Source, serve_control};
pub use session::{Backups, Session};
pub use stream::serve_files;
