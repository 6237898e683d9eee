//! Store → local PostgreSQL: a walsender of our own.
