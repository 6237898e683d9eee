//! The `walship` program.

use walship::cli::{self, exit::Exit};

fn main() -> Exit {
    cli::run()
}
