//! Standard output: what a command has to say.

use std::io::{ErrorKind, Write, stdout};

use anyhow::Context;

/// Prints text as it is. A reader that has seen enough, such as `head`, is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("write to the standard output"),
    }
}
