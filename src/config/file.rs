//! What `walship.toml` may say. Every error has the file, the line and the column.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use toml::{Spanned, Value};

use super::ConfigError;
use super::keys::KEYS;
use super::value::{Absolute, Address, ConninfoText, Name, Size, SlotName, ValueError};
use crate::policy::{Policy, StallLimit};

/// The file, key by key; `None` for what it leaves out or sets to the empty text.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    #[serde(deserialize_with = "text")]
    pub name: Option<Name>,
    #[serde(deserialize_with = "text")]
    pub store: Option<Absolute>,
    #[serde(deserialize_with = "text")]
    pub listen: Option<Address>,
    #[serde(deserialize_with = "text")]
    pub advertise: Option<Address>,
    #[serde(rename = "upstream")]
    upstream_texts: Vec<Spanned<String>>,
    /// Made from the texts, so that an error has the place within the list.
    #[serde(skip)]
    pub upstream: Vec<Address>,
    #[serde(deserialize_with = "text")]
    pub http_listen: Option<Address>,
    pub postgres: Postgres,
    pub replication: Replication,
    pub retention: Retention,
    pub promotion: Promotion,
    pub hooks: Hooks,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Postgres {
    #[serde(deserialize_with = "text")]
    pub data_directory: Option<Absolute>,
    #[serde(deserialize_with = "text")]
    pub conninfo: Option<ConninfoText>,
    #[serde(deserialize_with = "text")]
    pub bin_directory: Option<Absolute>,
    #[serde(deserialize_with = "text")]
    pub start_command: Option<String>,
    #[serde(deserialize_with = "text")]
    pub stop_command: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Replication {
    #[serde(deserialize_with = "text")]
    pub slot: Option<SlotName>,
    #[serde(deserialize_with = "text")]
    pub max_rate: Option<Size>,
    pub auto_reseed: bool,
    #[serde(deserialize_with = "text")]
    pub ack: Option<Policy>,
    #[serde(deserialize_with = "text")]
    pub stall_limit: Option<StallLimit>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Retention {
    #[serde(deserialize_with = "text")]
    pub store_max_bytes: Option<Size>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Promotion {
    pub priority: Option<u32>,
    #[serde(deserialize_with = "text")]
    pub fence_command: Option<String>,
    pub auto_rejoin: bool,
    start_alone: Later,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Hooks {
    #[serde(deserialize_with = "text")]
    pub before_role_change: Option<String>,
    #[serde(deserialize_with = "text")]
    pub after_role_change: Option<String>,
}

/// A key of a later version: here it may have its default only.
type Later = Option<Spanned<Value>>;

impl File {
    /// Reads the text of `path`.
    pub(super) fn parse(text: &str, path: &Path) -> Result<File, ConfigError> {
        let mut file: File = toml::from_str(text).map_err(|e| {
            let (line, column) = place(text, e.span());
            // Some messages of the parser have several lines.
            let message = e.message().trim_end().replace('\n', ", ").replace("unknown field", "unknown key");
            ConfigError::Content { path: path.to_owned(), line, column, message }
        })?;
        for address in &file.upstream_texts {
            file.upstream.push(address.get_ref().parse().map_err(|e: ValueError| {
                let (line, column) = place(text, Some(address.span()));
                ConfigError::Content { path: path.to_owned(), line, column, message: e.to_string() }
            })?);
        }
        file.refuse_later_keys(text, path)?;
        Ok(file)
    }

    fn refuse_later_keys(&self, text: &str, path: &Path) -> Result<(), ConfigError> {
        let Promotion { start_alone, .. } = &self.promotion;
        let later = [("promotion", "start_alone", start_alone)];
        for (section, name, set) in later {
            let key = KEYS.iter().find(|key| (key.section, key.name) == (section, name));
            let (Some(set), Some(key)) = (set, key) else { continue };
            if Value::from_str(key.default).ok().as_ref() == Some(set.get_ref()) {
                continue;
            }
            let (line, column) = place(text, Some(set.span()));
            let path = path.to_owned();
            return Err(ConfigError::Later { path, line, column, key: name, only: key.default });
        }
        Ok(())
    }
}

/// Line and column of the start of a span, counted from one.
fn place(text: &str, span: Option<Range<usize>>) -> (usize, usize) {
    let before = text.get(..span.map_or(0, |span| span.start)).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

fn text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(D::Error::custom)
}
