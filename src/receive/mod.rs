//! Link → store.
