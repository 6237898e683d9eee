//! File, environment and flags → one validated Config.
