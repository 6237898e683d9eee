//! File, environment and flags → one validated [`Config`]. A flag beats a variable beats the file.

pub mod bundle;
mod error;
mod file;
mod keys;
mod overrides;
mod paths;
mod template;
mod value;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub use bundle::Bundle;
pub use error::ConfigError;
use file::File;
pub use keys::{KEYS, Key, PRIORITY};
pub use overrides::Overrides;
pub use template::Template;
pub use value::{Absolute, Address, ConninfoText, Name, Size, SlotName, ValueError};

use crate::durable::FileError;
use crate::policy::{Policy, StallLimit};

/// Where the configuration is looked for when nobody says, in this order.
pub const SEARCH_PATH: [&str; 2] = ["./walship.toml", "/etc/walship/walship.toml"];

/// A valid configuration, with every default filled in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The file that it was read from, if any.
    pub file: Option<PathBuf>,
    /// This node's name.
    pub name: String,
    /// The folder of the store; absolute.
    pub store: PathBuf,
    /// Where other sidecars connect.
    pub listen: Address,
    /// How they reach this node.
    pub advertise: Address,
    /// Where a standby gets its WAL, in order of preference.
    pub upstream: Vec<Address>,
    /// Where HTTP is served, if anywhere.
    pub http_listen: Option<Address>,
    /// About the local PostgreSQL.
    pub postgres: Postgres,
    /// The slot on the primary.
    pub slot: String,
    /// What a commit waits for where this node begins as the primary.
    pub ack: Policy,
    /// How long it waits.
    pub stall_limit: StallLimit,
    /// The most bytes per second shipped to one standby.
    pub max_rate_bytes_per_second: Option<u64>,
    /// Whether a standby whose log is gone seeds itself anew.
    pub auto_reseed: bool,
    /// Of several that are equally far the highest is promoted; zero for never.
    pub priority: u32,
    /// Whether a primary that was left behind becomes a standby by itself.
    pub auto_rejoin: bool,
    /// Makes sure that a lost primary is down.
    pub fence_command: Option<String>,
    /// Run before this node changes its role; its failure keeps the role.
    pub before_role_change: Option<String>,
    /// Run after it has.
    pub after_role_change: Option<String>,
    /// The most bytes of WAL in the store; `None` for a share of the file system.
    pub store_max_bytes: Option<u64>,
}

/// About the local PostgreSQL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Postgres {
    /// The data directory; absolute.
    pub data_directory: PathBuf,
    /// How to connect, for [`crate::pg::Conninfo::parse`].
    pub conninfo: ConninfoText,
    /// Where `pg_ctl` is; `None` to look for it.
    pub bin_directory: Option<PathBuf>,
    /// Instead of `pg_ctl start`.
    pub start_command: Option<String>,
    /// Instead of `pg_ctl stop`.
    pub stop_command: Option<String>,
}

impl Config {
    /// Finds the file, reads it, and puts variables and flags over it. Blocks.
    pub fn load(overrides: &Overrides) -> Result<Config, ConfigError> {
        match read(overrides.config.as_deref())? {
            Some((path, text)) => {
                let file = File::parse(&text, &path)?;
                Config::resolve(file, Some(path), overrides)
            }
            None => Config::resolve(File::default(), None, overrides),
        }
    }

    /// The same for a text that is to become `path`, with nothing over it.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        Config::resolve(File::parse(text, path)?, Some(path.to_owned()), &Overrides::default())
    }

    /// The local control socket.
    pub fn control_socket(&self) -> PathBuf {
        paths::control_socket(&self.store)
    }

    /// The folder of the socket that the local standby connects to.
    pub fn feed_folder(&self) -> PathBuf {
        paths::feed_folder(&self.store)
    }

    /// The folder with keys and certificates.
    pub fn tls_folder(&self) -> PathBuf {
        paths::tls_folder(&self.store)
    }

    fn resolve(file: File, path: Option<PathBuf>, over: &Overrides) -> Result<Config, ConfigError> {
        let missing = |key| ConfigError::Missing { key, source_file: path.clone() };
        let name = over.name.clone().or(file.name).ok_or_else(|| missing("name"))?;
        let store = over.store.clone().or(file.store.map(|path| path.0));
        let data_directory = over.data_directory.clone().or(file.postgres.data_directory.map(|path| path.0));
        let listen = over.listen.clone().or(file.listen);
        let listen = listen.map_or_else(|| constant(keys::LISTEN), Ok)?;
        let advertise = over.advertise.clone().or(file.advertise);
        let conninfo = over.conninfo.clone().or(file.postgres.conninfo);
        let slot = file.replication.slot.map_or_else(|| keys::SLOT.to_owned(), |slot| slot.0);
        let config = Config {
            name: name.0,
            store: absolute(store.ok_or_else(|| missing("store"))?)?,
            advertise: advertise.unwrap_or_else(|| paths::own_address(&listen)),
            listen,
            http_listen: over.http_listen.clone().or(file.http_listen),
            upstream: if over.upstream.is_empty() { file.upstream } else { over.upstream.clone() },
            postgres: Postgres {
                data_directory: absolute(data_directory.ok_or_else(|| missing("postgres.data_directory"))?)?,
                conninfo: conninfo.map_or_else(|| constant(keys::CONNINFO), Ok)?,
                bin_directory: over
                    .bin_directory
                    .clone()
                    .or(file.postgres.bin_directory.map(|path| path.0))
                    .map(absolute)
                    .transpose()?,
                start_command: file.postgres.start_command,
                stop_command: file.postgres.stop_command,
            },
            slot,
            ack: file.replication.ack.unwrap_or(Policy::Async),
            stall_limit: file.replication.stall_limit.unwrap_or_default(),
            priority: file.promotion.priority.unwrap_or(keys::PRIORITY),
            auto_rejoin: file.promotion.auto_rejoin,
            fence_command: file.promotion.fence_command,
            before_role_change: file.hooks.before_role_change,
            after_role_change: file.hooks.after_role_change,
            auto_reseed: file.replication.auto_reseed,
            max_rate_bytes_per_second: over.max_rate.or(file.replication.max_rate).map(|size| size.0),
            store_max_bytes: over.store_max_bytes.or(file.retention.store_max_bytes).map(|size| size.0),
            file: path,
        };
        paths::check(&config)?;
        Ok(config)
    }
}

/// The file's path and text; `None` when none was named and there is none.
fn read(named: Option<&Path>) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let read = |path: &Path| fs::read_to_string(path).map(|text| Some((path.to_owned(), text)));
    let failed = |path: &Path, source| ConfigError::File(FileError::new("read", path, source));
    if let Some(path) = named {
        return read(path).map_err(|e| failed(path, e));
    }
    for path in SEARCH_PATH.map(Path::new) {
        match read(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            found => return found.map_err(|e| failed(path, e)),
        }
    }
    Ok(None)
}

/// Flags and variables may be relative to where the command runs.
fn absolute(path: PathBuf) -> Result<PathBuf, ConfigError> {
    std::path::absolute(&path).map_err(|e| FileError::new("find", &path, e).into())
}

/// A default from the table; the tests parse each.
fn constant<T: std::str::FromStr<Err = ValueError>>(text: &'static str) -> Result<T, ConfigError> {
    text.parse().map_err(|e: ValueError| ConfigError::Unfit {
        key: "default",
        value: text.to_owned(),
        reason: e.to_string(),
        hint: "This is a defect in walship: please report it.",
        source_file: None,
    })
}

#[cfg(test)]
mod tests;
