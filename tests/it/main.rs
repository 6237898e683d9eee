//! The integration tests: one binary, real PostgreSQL. What belongs in which module:

/// The pieces that everything stands on: starting, stopping, killing and asking a server.
mod cluster;
