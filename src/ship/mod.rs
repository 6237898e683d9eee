//! Store → link, one per downstream.
