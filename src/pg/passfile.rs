//! libpq's password file, `~/.pgpass`: lines of `host:port:database:user:password`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// `PGPASSFILE`, else `.pgpass` in the home directory.
pub(super) fn default_path() -> Option<PathBuf> {
    let named = std::env::var_os("PGPASSFILE").map(PathBuf::from);
    named.or_else(|| std::env::home_dir().map(|home| home.join(".pgpass")))
}

/// The password of the first line that matches. A file that is missing, or that others may read, has none, as in
/// libpq: authentication then fails and says that a password is missing.
pub(super) fn look_up(path: &Path, host: &str, port: u16, database: &str, user: &str) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!("ignoring the password file {}: others may read it; chmod 0600 it", path.display());
        return None;
    }
    let text = std::fs::read_to_string(path).ok()?;
    let wanted = [host, &port.to_string(), database, user];
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| matching_password(line, wanted))
}

fn matching_password(line: &str, wanted: [&str; 4]) -> Option<String> {
    let mut fields = fields(line).into_iter();
    for value in wanted {
        let field = fields.next()?;
        if field != "*" && field != value {
            return None;
        }
    }
    fields.next()
}

/// Splits at the first four colons; a backslash takes the next character as it is.
fn fields(line: &str) -> Vec<String> {
    let mut fields = Vec::new();
    let mut field = String::new();
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            ':' if fields.len() < 4 => fields.push(std::mem::take(&mut field)),
            '\\' => field.extend(characters.next()),
            other => field.push(other),
        }
    }
    fields.push(field);
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;

    #[test]
    fn the_first_matching_line_wins_and_an_open_file_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pgpass");
        let text = "# a comment\nother:*:*:*:no\nlocalhost:5432:*:wal\\:ship:o\\:ne:1\n*:*:*:*:two\n";
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let look_up = |host, user| look_up(&path, host, 5432, "postgres", user);
        assert_eq!(look_up("localhost", "wal:ship").as_deref(), Some("o:ne:1"));
        assert_eq!(look_up("localhost", "else").as_deref(), Some("two"));
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert_eq!(look_up("localhost", "else"), None);
        assert_eq!(super::look_up(Path::new("/nonexistent"), "h", 1, "d", "u"), None);
    }
}
