//! Which stages run in which role, and the change between them.

pub mod local_copy;
