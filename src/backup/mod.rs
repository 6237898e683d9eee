//! PGDATA → link: start, plan, parallel read, page checks, stop.
