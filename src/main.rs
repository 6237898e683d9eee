//! The `walship` program.

fn main() {}
