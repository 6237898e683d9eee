//! Which stages run in which role, and the change between them.
