//! Link → PGDATA: parallel write, verify, fsync, standby settings.

pub mod standby;
pub mod tablespace;
pub mod target;
pub mod wal;
