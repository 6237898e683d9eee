//! The integration tests: one binary, real PostgreSQL. What belongs in which module:

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

/// The vocabulary that the others are written in.
mod harness;

/// What commits wait for: each policy at each level, and its changes.
mod ack;
/// `walship basebackup`: what it makes, what it says, and how it ends.
mod basebackup;
/// A standby that was promoted by hand; and the slot of a former primary.
mod by_hand;
/// The primary's WAL into the store.
mod capture;
/// Standbys that follow standbys.
mod cascade;
/// A cascade under load while its parts are killed, frozen and cut off.
mod cascade_crash;
/// A standby that was away comes back to much WAL.
mod catching_up;
/// What is kept of a promotion, and what it claims.
mod certificate;
/// Commits that wait for the tail of a chain.
mod chain;
/// A cluster to which anything happens, for a while.
mod chaos;
/// What `walship check` finds, and whether what it prints mends it.
mod check;
/// A PostgreSQL server alone: starting, stopping, killing and asking it.
mod cluster;
/// Base backups: what is copied, verified and refused.
mod copy;
/// SIGKILL of any of a pair's four processes at random moments, under load.
mod crash;
/// Copies that were cut off: what is there already is not sent again, and nothing half-made starts.
mod delta;
/// What `walship demo` shows.
mod demo;
/// The primary is killed and its disk taken away: what was acknowledged is on the one that takes over.
mod disaster;
/// Votes, fences, and the WAL that others have.
mod election;
/// Commits that go on unprotected past the stall limit, and the log of them.
mod exposures;
/// The same, with a sidecar that dies meanwhile.
mod exposures_crash;
/// One sidecar with a hundred receivers.
mod fan_out;
/// The replication protocol, server side: real standbys and tools on the feed.
mod feed;
/// Whole files of WAL out of the store, for PostgreSQL's restore_command.
mod fetch_wal;
/// Members that are gone for good.
mod forget;
/// A disk that is full: said at once, nothing harmed, and it goes on when there is room.
mod full_disk;
/// The harness itself: what it must notice, it notices.
mod harness_itself;
/// HTTP: what each path says, at which moment, and who can't keep it from answering.
mod hooks;
mod http;
/// Joining: what is looked at before anything is made, and who may run it.
mod interrupted;
mod joining;
/// Lag, without a sidecar and with.
mod lag;
/// What acknowledged rows are checked with.
mod ledger;
/// WAL that PostgreSQL removed before it was captured.
mod lost_wal;
/// Each major version of PostgreSQL that is here, and what came with one.
mod majors;
/// Standbys that move on, back, and along with a promotion.
mod moving;
/// A standby that has what the new primary never had.
mod past_fork;
/// The primary is lost, and a standby takes its place.
mod promotion;
/// The bad network that other tests rely on.
mod proxy;
/// What is refused: a message, a hint, an exit code, and nothing harmed.
mod refusals;
/// An old primary comes back.
mod rejoin;
/// The replication protocol, client side: logging in, streaming, and how streams end.
mod replication;
/// Standbys that are made whole of what is there: let go, damaged, diverged.
mod reseed;
/// A primary that diverged comes back by its own pg_rewind.
mod rewind;
/// Scenes of a few nodes, in words.
mod scenes;
/// The few queries, what they need, and how their errors are sorted.
mod sql;
/// A standby: joining, following, and what it survives.
mod standby;
/// A primary's PostgreSQL stops, whatever commits wait for.
mod stop;
/// The primary hands over.
mod switchover;
/// A PostgreSQL of a version that walship does not know: refused everywhere.
mod versions;
/// Read your writes: a wait for a position, how it ends, and who may wait.
mod wait;
