//! `walship standby`: from an empty directory to a hot standby that follows.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use rustix::fs::{Access, access};

use super::exit::{self, Exit};
use super::{privilege, runtime};
use crate::clock::WallTime;
use crate::config::{Bundle, Config, ConfigError, Overrides, SEARCH_PATH, Size, Template};
use crate::daemon::{self, Join};
use crate::durable;
use crate::fault::{Advised, Fault, Outcome, WithFault};
use crate::pg::control::ControlFile;
use crate::restore::tablespace::Mapping;
use crate::store::NodeRole;
use crate::tls::{Credentials, Files};
use crate::vitals::Cell;

/// Where the stores of this host are, one folder a node.
const SYSTEM_STORE: &str = "/var/lib/walship";

/// Make this host a standby and follow the primary
///
/// With --join and an empty data directory it takes a base backup over several connections, makes it a standby, starts
/// PostgreSQL and follows. Run again, it goes on where it was; an interrupted copy starts over. It stays in the
/// foreground, for a service manager; SIGTERM ends it and leaves PostgreSQL running.
#[derive(clap::Args, Clone, Debug)]
#[command(after_long_help = exit::explained(&[
    (0, "it was told to end"),
    (1, "it failed; the reason is the last thing it says"),
    (2, "wrong usage, bundle or configuration"),
    (3, "refused and nothing changed: PGDATA holds something else, say"),
], &[
    ("With the bundle that `walship invite db2` made on the primary's host:",
     "walship standby --join db2.join -D /var/lib/postgresql/15/main"),
    ("Where the primary keeps postgresql.conf in /etc (Debian):",
     "walship standby --join db2.join -D /var/lib/postgresql/15/main \\\n      --config-directory /etc/postgresql/15/main"),
    ("Later, after a restart of the host:", "walship run"),
]))]
pub struct Args {
    /// The join bundle that `walship invite` made on the primary; `-` for standard input
    #[arg(long, value_name = "FILE")]
    join: Option<PathBuf>,
    /// The port of the new PostgreSQL, instead of what its configuration says
    #[arg(short = 'p', long, value_name = "PORT")]
    port: Option<u16>,
    /// The folder of its unix socket, instead of what its configuration says
    #[arg(short = 'k', long, value_name = "DIR")]
    socket_directory: Option<PathBuf>,
    /// A folder with postgresql.conf and pg_hba.conf, where the primary keeps them outside its data directory
    #[arg(long, value_name = "DIR")]
    config_directory: Option<PathBuf>,
    /// Copy a tablespace to another folder; may be repeated
    #[arg(short = 'T', long = "tablespace-mapping", value_name = "OLDDIR=NEWDIR")]
    tablespace_mapping: Vec<Mapping>,
    /// Connections that carry files at once
    #[arg(short = 'j', long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    jobs: u8,
    /// The most bytes of files per second that the base backup takes, such as 20MiB
    #[arg(short = 'r', long, value_name = "SIZE")]
    backup_rate: Option<Size>,
    #[command(flatten)]
    overrides: Overrides,
}

/// Joins or goes on.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let Some(bundle) = &args.join else {
        let config = match Config::load(&args.overrides) {
            Err(error @ ConfigError::Missing { source_file: None, .. }) => Err(error)
                .hint(
                    "A new standby needs --join FILE, the bundle that `walship invite` makes on the primary.",
                )
                .outcome(Outcome::Usage),
            loaded => loaded.advised(),
        }?;
        privilege::become_owner_of(&config.postgres.data_directory)?;
        runtime()?.block_on(daemon::run(config, NodeRole::Standby))?;
        return Ok(Exit::Done);
    };
    // First of all, for the standard input can be read only once. What is wrong with the configuration is said below.
    let configured = Config::load(&args.overrides).ok();
    let data_directory = configured.as_ref().map(|config| &config.postgres.data_directory);
    if let Some(data_directory) = data_directory.or(args.overrides.data_directory.as_ref()) {
        let store = configured.as_ref().map(|config| &config.store).or(args.overrides.store.as_ref());
        let store = store.map_or(Path::new(SYSTEM_STORE), |store| store.as_path());
        let system_file = Path::new(SEARCH_PATH[1]).parent().filter(|_| !is_configured(args));
        let wanted = [Some(data_directory.as_path()), Some(store), system_file];
        wanted.into_iter().flatten().try_for_each(privilege::make_folder)?;
        privilege::become_owner_of(data_directory)?;
    }
    let args = &with_absolute_folders(args)?;
    let bundle = read_bundle(bundle)?;
    let config = configure(args, &bundle)?;
    privilege::become_owner_of(&config.postgres.data_directory)?;
    let files = Files::in_folder(&config.tls_folder());
    if is_news(&bundle, &files, &config.postgres.data_directory) {
        bundle.install(&files).advised().context("install the certificate")?;
    }
    let progress = Arc::new(Cell::default());
    let join = Join {
        addresses: bundle.addresses.iter().map(ToString::to_string).collect(),
        system_identifier: bundle.system_identifier,
        port: args.port,
        socket_directory: args.socket_directory.clone(),
        has_own_configuration: config.postgres.start_command.is_some(),
        tablespaces: args.tablespace_mapping.clone(),
        connections: usize::from(args.jobs),
        max_rate_bytes_per_second: args.backup_rate.map(|size| size.0),
        progress: Arc::clone(&progress),
    };
    runtime()?.block_on(async {
        let bar = tokio::spawn(super::progress::show(progress));
        let ended = daemon::join(config, join).await;
        bar.abort();
        ended
    })?;
    Ok(Exit::Done)
}

/// Whether the bundle is to replace the certificate: it is a newer invitation, or there is none that is of use. One for
/// another cluster than the one that stands here replaces nothing.
fn is_news(bundle: &Bundle, files: &Files, data_directory: &Path) -> bool {
    let here = ControlFile::read(data_directory).ok().map(|control| control.system_identifier);
    let fits = here.zip(bundle.system_identifier).is_none_or(|(here, theirs)| here == theirs);
    let installed = Credentials::load(files, WallTime::now());
    fits && installed.map_or(true, |installed| installed.identity().serial < bundle.identity.serial)
}

/// PostgreSQL takes a relative folder for one in its data directory, and libpq takes it for a host.
fn with_absolute_folders(args: &Args) -> anyhow::Result<Args> {
    let absolute = |folder: &Option<PathBuf>| folder.as_ref().map(std::path::absolute).transpose();
    Ok(Args {
        socket_directory: absolute(&args.socket_directory)?,
        config_directory: absolute(&args.config_directory)?,
        ..args.clone()
    })
}

fn read_bundle(path: &Path) -> anyhow::Result<Bundle> {
    let read = Bundle::read(path);
    let hint = match &read {
        Err(ConfigError::File(_)) => {
            "Name the file that `walship invite NAME` made on the primary. Who reads it is the owner of the data \
             directory, also where root runs this: `--join - < FILE` gives it what only root can read."
        }
        _ => return read.advised(),
    };
    read.hint(hint).outcome(Outcome::Usage)
}

/// The configuration that is there, or a new one from the bundle and the flags.
fn configure(args: &Args, bundle: &Bundle) -> anyhow::Result<Config> {
    if args.overrides.config.as_ref().is_some_and(|file| !file.exists()) {
        return write_new(args, bundle);
    }
    match Config::load(&args.overrides) {
        Ok(config) => {
            if config.name != bundle.identity.name {
                return Err(Fault::usage(
                    format!("the bundle is for {}, and this node is {}", bundle.identity.name, config.name),
                    "Use the bundle made for this node's name, or another --config.",
                ));
            }
            if let (Some(folder), None) = (&args.config_directory, &config.postgres.start_command) {
                let file = config.file.as_deref().unwrap_or(Path::new("the configuration"));
                return Err(Fault::usage(
                    format!("{} is there already, and says nothing of --config-directory", file.display()),
                    format!(
                        "Add this line to its section [postgres]: start_command = {:?}",
                        start_command(&config.postgres.data_directory, &config.store, folder)
                    ),
                ));
            }
            Ok(config)
        }
        // Nothing is configured yet: the bundle and the flags say all that is needed.
        Err(ConfigError::Missing { .. }) => write_new(args, bundle),
        Err(error) => Err(error).advised(),
    }
}

fn write_new(args: &Args, bundle: &Bundle) -> anyhow::Result<Config> {
    let over = &args.overrides;
    let Some(data_directory) = &over.data_directory else {
        return Err(Fault::usage("a new standby needs a data directory", "Name it with -D."));
    };
    let data_directory = std::path::absolute(data_directory)?;
    let name = bundle.identity.name.clone();
    let store = match &over.store {
        Some(store) => std::path::absolute(store)?,
        None => default_store(&data_directory, &name),
    };
    let conninfo = over.conninfo.clone().or_else(|| conninfo_for(args));
    let start_command =
        args.config_directory.as_ref().map(|folder| start_command(&data_directory, &store, folder));
    let template = Template {
        name,
        store,
        data_directory,
        listen: over.listen.clone(),
        advertise: over.advertise.clone(),
        upstream: bundle.addresses.clone(),
        conninfo,
        bin_directory: over.bin_directory.clone(),
        start_command,
    };
    let path = over.config.clone().unwrap_or_else(default_file);
    let (text, config) = template.render(&path).advised()?;
    durable::write(&path, text.as_bytes())
        .hint("Run it where its account may write, or name another file with --config.")?;
    tracing::info!(file = %path.display(), "wrote the configuration");
    Ok(config)
}

/// How PostgreSQL is started with a configuration that is not in its data directory.
fn start_command(data_directory: &Path, store: &Path, folder: &Path) -> String {
    format!(
        "pg_ctl start --wait --silent --pgdata '{}' --log '{}' --options '-c config_file={}/postgresql.conf'",
        data_directory.display(),
        store.join("postgresql.log").display(),
        folder.display()
    )
}

/// How walship will reach the PostgreSQL that these flags make.
fn conninfo_for(args: &Args) -> Option<crate::config::ConninfoText> {
    let mut text = String::new();
    if let Some(folder) = &args.socket_directory {
        text.push_str(&format!("host={} ", folder.display()));
    }
    if let Some(port) = args.port {
        text.push_str(&format!("port={port} "));
    }
    (!text.is_empty()).then(|| crate::config::ConninfoText(format!("{text}dbname=postgres")))
}

/// Where the configuration goes when nobody says: as root, which made the folder for us, into /etc.
fn default_file() -> PathBuf {
    let system = PathBuf::from(SEARCH_PATH[1]);
    match system.parent().is_some_and(is_ours_to_write) {
        true => system,
        false => SEARCH_PATH[0].into(),
    }
}

/// Whether a configuration was named or is found.
fn is_configured(args: &Args) -> bool {
    args.overrides.config.is_some() || SEARCH_PATH.iter().any(|file| Path::new(file).exists())
}

fn is_ours_to_write(folder: &Path) -> bool {
    access(folder, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

/// Where the store goes when nobody says: where daemons keep such things, or beside the data directory.
fn default_store(data_directory: &Path, name: &str) -> PathBuf {
    let system = Path::new(SYSTEM_STORE);
    if is_ours_to_write(system) {
        return system.join(name);
    }
    let base = data_directory.file_name().unwrap_or_default().to_string_lossy();
    data_directory.with_file_name(format!("{base}-walship"))
}
