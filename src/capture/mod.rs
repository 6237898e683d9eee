//! Local PostgreSQL → store: the client side of physical replication.
