//! The `walship.toml` that `init` and `standby` write: every key with its meaning, those that were chosen set, the
//! others behind a `#` with their defaults.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::keys::{KEYS, Key};
use super::{Config, ConfigError, Overrides};

/// Where a comment is broken.
const COMMENT_COLUMNS: usize = 100;

/// What was chosen for a new node. The rest has its defaults.
#[derive(Clone, Default, Debug)]
pub struct Template {
    /// What flags can say, paths absolute; name, store and data directory must be there.
    pub chosen: Overrides,
    /// Instead of `pg_ctl start`.
    pub start_command: Option<String>,
}

impl Template {
    /// The text to be written to `path`, once it has been found to be a valid configuration.
    pub fn render(&self, path: &Path) -> Result<(String, Config), ConfigError> {
        let mut text = format!(
            "# walship's configuration of node {}. What stands behind a # is the default.\n\
             # `man walship.toml` says more; `walship check` looks whether all of it works.\n",
            self.chosen.name.as_ref().map_or("", |name| name.0.as_str())
        );
        let mut section = "";
        for key in KEYS.iter().filter(|key| !key.later) {
            if key.section != section {
                section = key.section;
                let _ = write!(text, "\n[{section}]\n"); // writing to a String cannot fail
            }
            text.push('\n');
            comment(&mut text, key.meaning);
            let _ = match self.value_of(key) {
                Some(value) => writeln!(text, "{} = {value}", key.name),
                None => writeln!(text, "# {} = {}", key.name, key.default),
            };
        }
        let config = Config::parse(&text, path)?;
        Ok((text, config))
    }

    /// The chosen value of a key as TOML.
    fn value_of(&self, key: &Key) -> Option<String> {
        fn text<T: ToString>(value: &Option<T>) -> Option<String> {
            value.as_ref().map(|value| quoted(&value.to_string()))
        }
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| quoted(&path.to_string_lossy()));
        let chosen = &self.chosen;
        match (key.section, key.name) {
            ("", "name") => chosen.name.as_ref().map(|name| quoted(&name.0)),
            ("", "store") => path(&chosen.store),
            ("", "listen") => text(&chosen.listen),
            ("", "advertise") => text(&chosen.advertise),
            ("", "http_listen") => text(&chosen.http_listen),
            ("", "upstream") if !chosen.upstream.is_empty() => {
                let addresses: Vec<String> =
                    chosen.upstream.iter().map(|address| quoted(&address.to_string())).collect();
                Some(format!("[{}]", addresses.join(", ")))
            }
            ("postgres", "data_directory") => path(&chosen.data_directory),
            ("postgres", "conninfo") => chosen.conninfo.as_ref().map(|conninfo| quoted(&conninfo.0)),
            ("postgres", "bin_directory") => path(&chosen.bin_directory),
            ("replication", "max_rate") => text(&chosen.max_rate),
            ("retention", "store_max_bytes") => text(&chosen.store_max_bytes),
            ("postgres", "start_command") => self.start_command.as_deref().map(quoted),
            _ => None,
        }
    }
}

fn comment(text: &mut String, meaning: &str) {
    let mut column = 0;
    for word in meaning.split_whitespace() {
        if column == 0 || column + 1 + word.len() > COMMENT_COLUMNS {
            text.push_str(if column == 0 { "#" } else { "\n#" });
            column = 1;
        }
        text.push(' ');
        text.push_str(word);
        column += 1 + word.chars().count();
    }
    text.push('\n');
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
