//! What can be wrong with the configuration: always which key or file, where it was set, and what to do.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::durable::FileError;
use crate::fault::{Advice, Outcome};
use crate::tls::TlsError;

/// A configuration or a join bundle that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was named, or one that exists, cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is no valid TOML, has an unknown key, or a value that its key cannot have.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Counted from one.
        line: usize,
        /// Counted from one, in characters.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// A key of a later version that is set to more than this one can do.
    #[error("{}:{line}:{column}: `{key}` is not supported by this version of walship", path.display())]
    Later {
        /// The file.
        path: PathBuf,
        /// Counted from one.
        line: usize,
        /// Counted from one, in characters.
        column: usize,
        /// The key.
        key: &'static str,
        /// The only value that it may have, as it stands in the file.
        only: &'static str,
    },
    /// A key that must be set and is not.
    #[error("`{key}` is not set{}", in_that_file(source_file))]
    Missing {
        /// The key, with its section.
        key: &'static str,
        /// The file that was read, if any.
        source_file: Option<PathBuf>,
    },
    /// A value that does not go with the others.
    #[error("`{key}` cannot be {value}: {reason}{}", in_file(source_file))]
    Unfit {
        /// The key, with its section.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        hint: &'static str,
        /// The file that was read, if any.
        source_file: Option<PathBuf>,
    },
    /// A join bundle that cannot be read.
    #[error(transparent)]
    BundleFile(FileError),
    /// A join bundle that cannot be used.
    #[error("{origin} is not a usable join bundle: {reason}")]
    Bundle {
        /// The file.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The private key of the CA is needed and not there.
    #[error("the CA's private key {} is not here", key.display())]
    NoAuthority {
        /// Where it should be.
        key: PathBuf,
    },
    /// Keys or certificates that cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A join bundle with keys or certificates that cannot be used.
    #[error("{origin} is not a usable join bundle")]
    BundleTls {
        /// The file.
        origin: String,
        /// What is wrong with it.
        source: TlsError,
    },
}

fn in_file(path: &Option<PathBuf>) -> String {
    path.as_deref().map_or_else(String::new, |path: &Path| format!(", in {}", path.display()))
}

fn in_that_file(path: &Option<PathBuf>) -> String {
    if path.is_none() { ", and there is no configuration file".to_owned() } else { in_file(path) }
}

impl ConfigError {
    /// What to do about it, in full sentences.
    pub fn hint(&self) -> String {
        match self {
            ConfigError::File(error) if error.kind() == ErrorKind::PermissionDenied => {
                "Run this as root or as PostgreSQL's account.".to_owned()
            }
            ConfigError::File(_) => {
                "Name the file with `--config FILE`; `walship init` or `walship standby --join` make one.".to_owned()
            }
            ConfigError::Content { .. } => "`man walship.toml` describes every key.".to_owned(),
            ConfigError::Later { key, only, .. } => format!("Remove the line, or set `{key} = {only}`."),
            ConfigError::Missing { source_file: None, .. } => "There is no ./walship.toml and no \
                 /etc/walship/walship.toml: `walship init` or `walship standby --join` make one; or name it with \
                 `--config FILE`."
                .to_owned(),
            ConfigError::Missing { key, .. } => {
                format!("Add `{}`; `man walship.toml` describes every key.", key.rsplit('.').next().unwrap_or(key))
            }
            ConfigError::Unfit { hint, .. } => (*hint).to_owned(),
            ConfigError::BundleFile(_) => "Name the file that `walship invite NAME` made.".to_owned(),
            ConfigError::Bundle { .. } => {
                "Make a new one with `walship invite NAME` where `walship init` ran, and copy it whole.".to_owned()
            }
            ConfigError::NoAuthority { .. } => {
                "Run this where `walship init` ran, or name the key with `--ca-key FILE`.".to_owned()
            }
            ConfigError::Tls(source) | ConfigError::BundleTls { source, .. } => source.hint(),
        }
    }
}

impl Advice for ConfigError {
    fn hint(&self) -> Option<String> {
        Some(self.hint())
    }

    /// The files named are wrong.
    fn outcome(&self) -> Option<Outcome> {
        Some(Outcome::Usage)
    }
}
