//! The socket: `.s.PGSQL.5432` in a folder that nobody else may enter.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::net::{UnixListener, UnixStream};

use crate::durable;
use crate::fault::{Fault, WithFault};
use crate::pg::message::backend::ServerMessage;
use crate::pg::socket_file::{self, PATH_BYTES_MAX, PORT};

/// Where a client of `folder` looks for the socket.
pub(super) fn socket_path(folder: &Path) -> PathBuf {
    socket_file::path_in(folder, PORT)
}

/// Makes the folder, takes a stale socket out of the way and listens, for one user. Blocks, but must be called within
/// a runtime.
pub(super) fn listen(folder: &Path, client_uid: u32) -> anyhow::Result<UnixListener> {
    let path = socket_path(folder);
    let length = path.as_os_str().len();
    if length > PATH_BYTES_MAX {
        return Err(Fault::usage(
            format!(
                "the path {} has {length} bytes, a unix socket's has {PATH_BYTES_MAX} at most",
                path.display()
            ),
            "Put the store into a folder with a shorter path.",
        ));
    }
    durable::create_folder(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(0o700))
        .with_context(|| format!("make {} private", folder.display()))?;
    remove_stale(&path)?;
    let listener = UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    if client_uid != rustix::process::geteuid().as_raw() {
        for path in [path.as_path(), folder] {
            chown(path, Some(client_uid), None)
                .with_context(|| format!("give {} to user id {client_uid}", path.display()))?;
        }
    }
    Ok(listener)
}

/// Removes a socket that nobody listens on: its process was killed.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(Fault::refused(
            format!("{} is in the way, and is no socket", path.display()),
            "Move it away.",
        ));
    }
    match BlockingStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(durable::remove(path)?),
        Ok(_) => Err(anyhow::anyhow!("another process listens on {}", path.display()))
            .hint("Stop the other walship, or the PostgreSQL whose unix_socket_directories has this folder."),
        Err(error) => Err(error).with_context(|| format!("see who listens on {}", path.display())),
    }
}

/// Only one user is served: no passwords are needed, and none are asked for.
pub(super) fn admit(stream: &UnixStream, client_uid: u32) -> Result<(), ServerMessage> {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == client_uid => Ok(()),
        Ok(peer) => {
            let message = format!("this socket serves user id {client_uid} only, and you are {}", peer.uid());
            Err(ServerMessage::fatal("28000", message))
        }
        Err(error) => Err(ServerMessage::fatal("28000", format!("can't tell who you are: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Outcome;

    fn ours() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[tokio::test]
    async fn only_the_one_user_is_admitted() {
        let (_near, far) = UnixStream::pair().unwrap();
        assert_eq!(admit(&far, ours()), Ok(()));
        assert_eq!(admit(&far, ours() + 1).unwrap_err().code, "28000");
    }

    #[tokio::test]
    async fn the_folder_is_made_private_and_what_is_in_the_way_stays() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("feed");
        fs::create_dir(&folder).unwrap();
        fs::write(socket_path(&folder), "notes").unwrap();
        let error = listen(&folder, ours()).unwrap_err();
        assert_eq!(Fault::outcome_of(&error), Outcome::Refused, "{error:#}");
        assert_eq!(fs::read(socket_path(&folder)).unwrap(), b"notes");

        fs::remove_file(socket_path(&folder)).unwrap();
        listen(&folder, ours()).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        let error = listen(&root.path().join("x".repeat(108)), ours()).unwrap_err();
        assert_eq!(Fault::outcome_of(&error), Outcome::Usage, "{error:#}");
    }
}
