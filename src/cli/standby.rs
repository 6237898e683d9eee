//! `walship standby`: from an empty directory to a hot standby that follows.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use rustix::fs::{Access, access};

use super::exit::{self, Exit};
use super::{configuration, output, privilege, progress, runtime};
use crate::clock::WallTime;
use crate::config::{Bundle, Config, ConfigError, Overrides, SEARCH_PATH, Size, Template};
use crate::daemon::control::Client;
use crate::daemon::{self, CONNECTIONS, Join, Seed};
use crate::durable;
use crate::fault::{Advised, Fault, Outcome, WithFault};
use crate::pg::CONFIGURATION_FILE;
use crate::restore::tablespace::Mapping;
use crate::restore::target::{Kind, StandbyPlace};
use crate::store::NodeRole;
use crate::tls::{Credentials, Files};

/// Where the stores of this host are, one folder a node.
const SYSTEM_STORE: &str = "/var/lib/walship";

/// Make this host a standby and follow the primary
///
/// With --join and an empty data directory it takes a base backup over several connections, makes it a standby, starts
/// PostgreSQL and follows. A link that is cut is waited for. Run again, it goes on where it was, also within the copy:
/// what is there already is not sent again. It stays in the foreground, for a service manager; SIGTERM ends it and leaves
/// PostgreSQL running.
///
/// With --reseed a standby that can't follow any more, or whose files were damaged, is made whole: PostgreSQL is stopped,
/// what is in its data directory is compared with the primary's, block by block, what differs is sent, and what the primary
/// does not have is removed. Configuration files, certificates and logs in the data directory stay as they are. Where the
/// sidecar runs it does that, and goes on; else this command is it from then on.
#[derive(clap::Args, Clone, Debug)]
#[command(after_long_help = exit::explained(&[
    (0, "it was told to end; or the sidecar that runs has seeded it anew"),
    (1, "it failed; the reason is the last thing it says"),
    (2, "wrong usage, bundle or configuration"),
    (3, "refused and nothing changed: PGDATA holds something else, say"),
    (4, "the sidecar ended before it was seeded anew: `walship run` goes on"),
], &[
    ("With the bundle that `walship invite db2` made on the primary's host:",
     "walship standby --join db2.join -D /var/lib/postgresql/15/main"),
    ("Where the primary keeps postgresql.conf in /etc (Debian):",
     "walship standby --join db2.join -D /var/lib/postgresql/15/main \\\n      --config-directory /etc/postgresql/15/main"),
    ("Later, after a restart of the host:", "walship run"),
    ("When it must be seeded anew:", "walship standby --reseed --dry-run\n    walship standby --reseed"),
]))]
pub struct Args {
    /// The join bundle that `walship invite` made on the primary; `-` for standard input
    #[arg(long, value_name = "FILE", overrides_with = "join")]
    join: Option<PathBuf>,
    /// Make this standby's data directory whole, of what is there: it was let go, say, or its files were damaged
    #[arg(long, conflicts_with_all = ["join", "config_directory"])]
    reseed: bool,
    /// With --reseed: only say what would be done
    #[arg(long, requires = "reseed")]
    dry_run: bool,
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
    #[arg(short = 'j', long, value_name = "N", default_value_t = CONNECTIONS, value_parser = clap::value_parser!(u8).range(1..=32))]
    jobs: u8,
    /// The most bytes of files per second that the base backup takes, such as 20MiB
    #[arg(short = 'r', long, value_name = "SIZE")]
    backup_rate: Option<Size>,
    #[command(flatten)]
    overrides: Overrides,
}

/// Joins or goes on.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    match &args.join {
        _ if args.reseed => reseed(&with_absolute_folders(args)?),
        Some(bundle) => join(&with_absolute_folders(args)?, &read_bundle(bundle)?),
        None => follow(&args.overrides),
    }?;
    Ok(Exit::Done)
}

fn follow(overrides: &Overrides) -> anyhow::Result<()> {
    let config = match Config::load(overrides) {
        Err(error @ ConfigError::Missing { source_file: None, .. }) => Err(error)
            .hint("A new standby needs --join FILE, the bundle that `walship invite` makes on the primary.")
            .outcome(Outcome::Usage),
        loaded => loaded.advised(),
    }?;
    privilege::become_owner_of(&config.postgres.data_directory)?;
    runtime()?.block_on(progress::beside(|progress| daemon::run(config, NodeRole::Standby, false, progress)))
}

/// Has the sidecar that runs seed this node anew, or does it in its place.
fn reseed(args: &Args) -> anyhow::Result<()> {
    let config = configuration(&args.overrides)?;
    privilege::become_owner_of(&config.postgres.data_directory)?;
    let seed = seed(args, Kind::Reseed);
    runtime()?.block_on(async {
        if let Ok(sidecar) = Client::connect(&config.store).await {
            let done = sidecar.reseed(seed, args.dry_run, |line| eprintln!("{line}")).await?;
            return output::print(&format!("{done}\n"));
        }
        if args.dry_run {
            let lines = daemon::plan_reseed(&config).await?;
            lines.iter().for_each(|line| eprintln!("{line}"));
            return output::print("nothing was changed\n");
        }
        progress::beside(|progress| daemon::reseed(config, seed, progress)).await
    })
}

/// What the flags say of the copy.
fn seed(args: &Args, kind: Kind) -> Seed {
    Seed {
        kind,
        place: StandbyPlace { port: args.port, socket_directory: args.socket_directory.clone() },
        tablespaces: args.tablespace_mapping.clone(),
        connections: usize::from(args.jobs),
        max_rate_bytes_per_second: args.backup_rate.map(|size| size.0),
    }
}

/// Looks whether it may join, and only then makes anything. Root looks, and the owner of the data directory that it
/// becomes looks again.
fn join(args: &Args, bundle: &Bundle) -> anyhow::Result<()> {
    let (config, new_file) = configure(args, bundle)?;
    let files = Files::in_folder(&config.tls_folder());
    // An older invitation replaces no certificate.
    let kept = Credentials::load(&files, WallTime::now()).ok();
    let kept = kept.filter(|kept| kept.identity().serial >= bundle.identity.serial);
    let is_kept = kept.is_some();
    let join = Join {
        addresses: bundle.addresses.iter().map(ToString::to_string).collect(),
        credentials: Arc::new(kept.map_or_else(|| bundle.credentials(), Ok).advised()?),
        system_identifier: bundle.system_identifier,
        seed: seed(args, Kind::Copy),
    };
    let found = runtime()?.block_on(daemon::look(&config, &join))?;
    make_folders(&config, new_file.as_ref().map(|(file, _)| file.as_path()))?;
    let text = bundle.render().advised()?;
    privilege::become_owner_with(&config.postgres.data_directory, &text, &["--join", "-"])?;
    if let Some((file, text)) = new_file {
        durable::write(&file, text.as_bytes())
            .hint("Run it where its account may write, or name another file with --config.")?;
        tracing::info!(file = %file.display(), "wrote the configuration");
    }
    if !is_kept {
        bundle.install(&files).advised().context("install the certificate")?;
    }
    runtime()?.block_on(progress::beside(|progress| daemon::join(config, join, found, progress)))
}

/// When root, makes what the owner of the data directory might not be allowed to.
fn make_folders(config: &Config, new_file: Option<&Path>) -> anyhow::Result<()> {
    privilege::make_folder(&config.postgres.data_directory)?;
    privilege::make_folder(&config.store)?;
    new_file.and_then(Path::parent).map_or(Ok(()), privilege::make_folder)
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

/// A reader's bundle makes no standby.
fn read_bundle(path: &Path) -> anyhow::Result<Bundle> {
    let bundle = Bundle::read(path).advised()?;
    if bundle.is_for_a_node() {
        return Ok(bundle);
    }
    Err(Fault::usage(
        format!("the bundle of {} is a reader's, who may take copies but not join", bundle.identity.name),
        "A standby needs a bundle that `walship invite NAME` made without --reader.",
    ))
}

/// The configuration that is there, or a new one from the bundle and the flags with the file that it is to be in.
fn configure(args: &Args, bundle: &Bundle) -> anyhow::Result<(Config, Option<(PathBuf, String)>)> {
    if let Some(folder) = &args.config_directory {
        let file = folder.join(CONFIGURATION_FILE);
        File::open(&file)
            .with_context(|| format!("read {}", file.display()))
            .hint("--config-directory takes the folder with this host's postgresql.conf and pg_hba.conf.")
            .outcome(Outcome::Usage)?;
    }
    if args.overrides.config.as_ref().is_some_and(|file| !file.exists()) {
        return new_configuration(args, bundle);
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
            let file_alone = Overrides { config: args.overrides.config.clone(), ..Overrides::default() };
            if Config::load(&file_alone).is_ok_and(|file_alone| file_alone != config) {
                let file = config.file.as_deref().unwrap_or(Path::new("the configuration"));
                tracing::warn!(
                    "{} is there already and stays as it is: what flags or variables say otherwise holds for this run alone",
                    file.display()
                );
            }
            Ok((config, None))
        }
        // Nothing is configured yet: the bundle and the flags say all that is needed.
        Err(ConfigError::Missing { source_file: None, .. }) => new_configuration(args, bundle),
        Err(error) => Err(error).advised(),
    }
}

fn new_configuration(args: &Args, bundle: &Bundle) -> anyhow::Result<(Config, Option<(PathBuf, String)>)> {
    let over = &args.overrides;
    let Some(data_directory) = &over.data_directory else {
        return Err(Fault::usage("a new standby needs a data directory", "Name it with -D."));
    };
    let data_directory = std::path::absolute(data_directory)?;
    let name = &bundle.identity.name;
    let store = match &over.store {
        Some(store) => std::path::absolute(store)?,
        None => default_store(&data_directory, name),
    };
    let conninfo = over.conninfo.clone().or_else(|| conninfo_for(args));
    let start_command =
        args.config_directory.as_ref().map(|folder| start_command(&data_directory, &store, folder));
    let chosen = Overrides {
        name: Some(name.parse().outcome(Outcome::Usage)?),
        store: Some(store),
        data_directory: Some(data_directory),
        conninfo,
        bin_directory: over.bin_directory.as_ref().map(std::path::absolute).transpose()?,
        ..over.clone()
    };
    let template = Template { chosen, start_command };
    let path = std::path::absolute(over.config.clone().unwrap_or_else(default_file))?;
    let (text, config) = template.render(&path).advised()?;
    Ok((config, Some((path, text))))
}

/// How PostgreSQL is started with a configuration that is not in its data directory, and may have been written for
/// another one.
fn start_command(data_directory: &Path, store: &Path, folder: &Path) -> String {
    format!(
        "pg_ctl start --wait --silent --pgdata '{0}' --log '{1}' \
         --options '-c config_file=\"{2}/postgresql.conf\" -c data_directory=\"{0}\"'",
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

/// Where the configuration goes when nobody says: into /etc where that may be written, as root has made sure of.
fn default_file() -> PathBuf {
    let system = PathBuf::from(SEARCH_PATH[1]);
    match system.parent().is_some_and(is_ours_to_write) {
        true => system,
        false => SEARCH_PATH[0].into(),
    }
}

/// Root will make it, and give it to the owner of the data directory.
fn is_ours_to_write(folder: &Path) -> bool {
    privilege::is_root() || access(folder, Access::WRITE_OK | Access::EXEC_OK).is_ok()
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
