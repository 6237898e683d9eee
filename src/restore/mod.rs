//! Link → PGDATA: parallel write, verify, fsync, standby settings.
