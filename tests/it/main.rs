//! The integration tests: one binary, real PostgreSQL. What belongs in which module:

/// The pieces that everything stands on: starting, stopping, killing and asking a server.
mod cluster;
/// The replication protocol, client side: logging in, streaming, and how streams end.
mod replication;
/// The few queries, what they need, and how their errors are sorted.
mod sql;
