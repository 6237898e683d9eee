//! The `walship.toml` that `init` and `standby` write: every key with its meaning, those that were chosen set, the
//! others behind a `#` with their defaults.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::keys::{KEYS, Key};
use super::{Address, Config, ConfigError, ConninfoText};

/// Where a comment is broken.
const COMMENT_COLUMNS: usize = 100;

/// What was chosen for a new node. The rest has its defaults.
#[derive(Clone, Debug)]
pub struct Template {
    /// The node's name.
    pub name: String,
    /// The folder of the store; absolute.
    pub store: PathBuf,
    /// The data directory; absolute.
    pub data_directory: PathBuf,
    /// Where other sidecars connect.
    pub listen: Option<Address>,
    /// How they reach this node.
    pub advertise: Option<Address>,
    /// A standby's sources.
    pub upstream: Vec<Address>,
    /// How to connect to PostgreSQL.
    pub conninfo: Option<ConninfoText>,
    /// Where pg_ctl is; absolute.
    pub bin_directory: Option<PathBuf>,
    /// Instead of `pg_ctl start`.
    pub start_command: Option<String>,
}

impl Template {
    /// The text to be written to `path`, once it has been found to be a valid configuration.
    pub fn render(&self, path: &Path) -> Result<(String, Config), ConfigError> {
        let mut text = format!(
            "# walship's configuration of node {}. What stands behind a # is the default.\n\
             # `man walship.toml` says more; `walship check` looks whether all of it works.\n",
            self.name
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
        let path = |path: &PathBuf| quoted(&path.to_string_lossy());
        match (key.section, key.name) {
            ("", "name") => Some(quoted(&self.name)),
            ("", "store") => Some(path(&self.store)),
            ("", "listen") => self.listen.as_ref().map(|address| quoted(&address.to_string())),
            ("", "advertise") => self.advertise.as_ref().map(|address| quoted(&address.to_string())),
            ("", "upstream") if !self.upstream.is_empty() => {
                let addresses: Vec<String> =
                    self.upstream.iter().map(|address| quoted(&address.to_string())).collect();
                Some(format!("[{}]", addresses.join(", ")))
            }
            ("postgres", "data_directory") => Some(path(&self.data_directory)),
            ("postgres", "conninfo") => self.conninfo.as_ref().map(|conninfo| quoted(&conninfo.0)),
            ("postgres", "bin_directory") => self.bin_directory.as_ref().map(path),
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
