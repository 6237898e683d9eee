//! Looks at everything that is checked, and changes nothing.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{Access, access, statvfs};

use super::{Certificates, Facts, Host, Listen, Problem, Server, Sidecar, Space, settings};
use crate::clock::WallTime;
use crate::fault;
use crate::pg::AccessError;
use crate::pg::replication::{Replication, ReplicationError};
use crate::pg::sql::{Grant, Sql, SqlError};
use crate::pg::version;
use crate::pg::{Binaries, Conninfo};
use crate::store::Store;
use crate::tls::{Credentials, Files};

/// The name under which the replication connection is tried; nobody synchronous listens to it.
const APPLICATION_NAME: &str = "walship check";

/// What to look at.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The local PostgreSQL.
    pub conninfo: Conninfo,
    /// Its data directory.
    pub data_directory: PathBuf,
    /// The store's folder.
    pub store: PathBuf,
    /// The sidecar's control socket.
    pub control_socket: PathBuf,
    /// The address for peers, `host:port`.
    pub listen: String,
    /// The name of the replication slot.
    pub slot_name: String,
    /// The system account that walship runs as.
    pub account: String,
    /// PostgreSQL's programs for this data directory, or why they were not found.
    pub binaries: Result<Binaries, String>,
}

/// Looks at everything, beside what the sidecar says.
pub async fn facts(subject: &Subject, sidecar: Sidecar) -> anyhow::Result<Facts> {
    let server = server(subject).await;
    let setting = server.as_ref().ok().and_then(|server| server.data_directory.clone());
    let listen = listen(subject).await;
    let (folders, now) = (subject.clone(), WallTime::now());
    let host = tokio::task::spawn_blocking(move || host(&folders, setting.as_deref(), listen, now))
        .await
        .context("look at this host")?;
    Ok(Facts {
        taken_at: now,
        role: subject.conninfo.user().to_owned(),
        database: subject.conninfo.database().to_owned(),
        endpoint: subject.conninfo.endpoint().clone(),
        account: subject.account.clone(),
        server,
        host,
        sidecar,
    })
}

/// The account that walship runs as: this process's own or, of root's, the owner of the data directory, whom walship
/// becomes. Blocks.
pub fn account(data_directory: &Path) -> Option<String> {
    let own = rustix::process::geteuid();
    let uid = if own.is_root() { fs::metadata(data_directory).ok()?.uid() } else { own.as_raw() };
    Some(name_of(uid))
}

/// The name of an account in `/etc/passwd`, else its number.
fn name_of(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut accounts = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let name = accounts.find_map(|fields| match fields[..] {
        [name, _, number, ..] if number.parse() == Ok(uid) => Some(name.to_owned()),
        _ => None,
    });
    name.unwrap_or_else(|| uid.to_string())
}

async fn server(subject: &Subject) -> Result<Server, SqlError> {
    let sql = Sql::connect(&subject.conninfo).await?;
    let mut grants = Vec::with_capacity(Grant::ALL.len());
    for grant in Grant::of(sql.version()) {
        grants.push((grant, sql.has(grant).await?));
    }
    let data_directory = match sql.data_directory().await {
        Err(SqlError::Access(AccessError::MissingGrant { .. })) => None,
        path => Some(path?),
    };
    Ok(Server {
        version: sql.version(),
        in_recovery: sql.is_in_recovery().await?,
        grants,
        settings: sql.settings(&settings::NAMES).await?,
        walsenders: sql.walsenders().await?.len(),
        slots: sql.count_slots().await?,
        slot_name: subject.slot_name.clone(),
        slot: sql.slot(&subject.slot_name).await?,
        data_directory,
        // After the walsenders were counted, for it is one.
        replication: replication(&subject.conninfo).await,
    })
}

async fn replication(conninfo: &Conninfo) -> Result<(), ReplicationError> {
    Replication::connect(conninfo, APPLICATION_NAME).await?.identify_system().await.map(drop)
}

/// Tries to listen, and asks who does when somebody else is there.
async fn listen(subject: &Subject) -> Listen {
    let address = subject.listen.clone();
    match tokio::net::TcpListener::bind(&address).await {
        Ok(_) => Listen::Free(address),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            match tokio::net::UnixStream::connect(&subject.control_socket).await {
                Ok(_) => Listen::Ours(address),
                Err(_) => Listen::Refused(address, "somebody else listens there".to_owned()),
            }
        }
        Err(error) => Listen::Refused(address, error.to_string()),
    }
}

fn host(subject: &Subject, setting: Option<&Path>, listen: Listen, now: WallTime) -> Host {
    let data = &subject.data_directory;
    let metadata = fs::metadata(data).ok();
    Host {
        data_directory: data.clone(),
        data_version: version::of_data_directory(data).map_err(|error| fault::in_full(&error)),
        is_servers: setting.map(|setting| is_same(data, setting)),
        owner: metadata.as_ref().map(|metadata| name_of(metadata.uid())),
        store: subject.store.clone(),
        store_is_inside: is_inside(&subject.store, data),
        store_problem: store_problem(&subject.store),
        has_state: Store::state_in(&subject.store)
            .map(|state| state.is_some())
            .map_err(|e| fault::in_full(&e)),
        space: space(&subject.store, metadata.as_ref().map(MetadataExt::dev)),
        certificates: certificates(&subject.store, now),
        listen,
        has_rewind: subject.binaries.clone().map(|binaries| binaries.program("pg_rewind").is_file()),
    }
}

/// Whether two paths lead to one folder.
fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
    matches!((identity(one), identity(other)), (Some(one), Some(other)) if one == other)
}

/// Whether `path`, which need not exist, lies in `folder` once links are followed.
fn is_inside(path: &Path, folder: &Path) -> bool {
    let Ok(folder) = folder.canonicalize() else { return false };
    existing_part(path).is_some_and(|path| path.starts_with(folder))
}

/// The deepest part of a path that exists, links followed.
fn existing_part(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    path.ancestors().find_map(|part| part.canonicalize().ok())
}

fn store_problem(store: &Path) -> Option<String> {
    match fs::metadata(store) {
        Err(error) => Some(error.to_string()),
        Ok(metadata) if !metadata.is_dir() => Some("it is not a folder".to_owned()),
        Ok(_) => access(store, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)
            .err()
            .map(|error| io::Error::from(error).to_string()),
    }
}

fn space(store: &Path, data_device: Option<u64>) -> Option<Space> {
    let store = existing_part(store)?;
    let all = statvfs(&store).ok()?;
    let device = fs::metadata(&store).ok()?.dev();
    Some(Space {
        total_bytes: all.f_blocks.saturating_mul(all.f_frsize),
        free_bytes: all.f_bavail.saturating_mul(all.f_frsize),
        is_shared: data_device == Some(device),
    })
}

fn certificates(store: &Path, now: WallTime) -> Result<Certificates, Problem> {
    match Credentials::load(&Files::in_folder(&store.join("tls")), now) {
        Ok(credentials) => Ok(Certificates {
            expires: credentials.identity().expires,
            authority_expires: credentials.authority_expires(),
        }),
        Err(error) => {
            let hint = error.hint();
            Err(Problem { what: format!("{:#}", anyhow::Error::from(error)), hint })
        }
    }
}
