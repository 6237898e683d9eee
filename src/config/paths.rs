//! What lies where, and whether it can.

use std::path::{Path, PathBuf};

use super::{Address, Config, ConfigError};
use crate::pg::socket_file::{self, PATH_BYTES_MAX};

pub(super) fn control_socket(store: &Path) -> PathBuf {
    store.join("control.sock")
}

pub(super) fn feed_folder(store: &Path) -> PathBuf {
    store.join("feed")
}

pub(super) fn tls_folder(store: &Path) -> PathBuf {
    store.join("tls")
}

/// How others reach us if nobody says: the address that we listen on, or with any address this host's name.
pub(super) fn own_address(listen: &Address) -> Address {
    let any = matches!(listen.host.as_str(), "0.0.0.0" | "::");
    if !any {
        return listen.clone();
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Address { host, port: listen.port }
}

/// The checks that need more than one key.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    let unfit = |key, value: &Path, reason: String, hint| ConfigError::Unfit {
        key,
        value: value.display().to_string(),
        reason,
        hint,
        source_file: config.file.clone(),
    };
    let (store, data) = (resolved(&config.store), resolved(&config.postgres.data_directory));
    if store.starts_with(&data) {
        let reason = format!("it lies inside the data directory {}", data.display());
        let hint = "PostgreSQL's tools trip over foreign files: put the store beside the data directory.";
        return Err(unfit("store", &config.store, reason, hint));
    }
    if data.starts_with(&store) {
        let reason = format!("the data directory {} lies inside it", data.display());
        return Err(unfit("store", &config.store, reason, "Put the store beside the data directory."));
    }
    let longest = socket_file::path_in(&feed_folder(&config.store), socket_file::PORT);
    let bytes = longest.as_os_str().len();
    if bytes > PATH_BYTES_MAX {
        let reason = format!(
            "the path of the socket {} has {bytes} bytes, and a socket's path may have {PATH_BYTES_MAX}",
            longest.display()
        );
        return Err(unfit("store", &config.store, reason, "Choose a shorter path."));
    }
    Ok(())
}

/// The path with every link resolved, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let mut missing = Vec::new();
    for ancestor in path.ancestors() {
        if let Ok(real) = ancestor.canonicalize() {
            return missing.into_iter().rev().fold(real, |path, part| path.join(part));
        }
        missing.extend(ancestor.file_name());
    }
    path.to_owned()
}
