//! Socket files, as libpq looks for them in a folder.

use std::path::{Path, PathBuf};

/// The port in the file's name. A folder of its own makes any number unique; this one is libpq's default.
pub const PORT: u16 = 5432;

/// Longest path of a socket file (`sun_path` of `unix(7)`, less its final zero); libpq has the same limit.
pub const PATH_BYTES_MAX: usize = 107;

/// Where a client of `folder` looks for the socket of that port.
pub fn path_in(folder: &Path, port: u16) -> PathBuf {
    folder.join(format!(".s.PGSQL.{port}"))
}
