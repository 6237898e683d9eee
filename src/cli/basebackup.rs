//! `walship basebackup`: an ordinary data directory, from a sidecar elsewhere or from a PostgreSQL on this host.

use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::{Args as _, FromArgMatches, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use super::exit::{self, Exit};
use super::{init, output, privilege, progress, runtime};
use crate::config::{Address, Bundle, Config, ConfigError, ConninfoText, Overrides, Size};
use crate::daemon::local_copy::{self, Local};
use crate::daemon::remote_copy::{self, Remote};
use crate::fault::{Advised, Fault, Outcome, WithFault};
use crate::pg::AccessError;
use crate::pg::Conninfo;
use crate::pg::sql::SqlError;
use crate::restore::standby::StandbySettings;
use crate::restore::tablespace::Mapping;
use crate::restore::target::{Kind, require_free};
use crate::restore::{Options, Phase, Progress, Report};
use crate::store::COMPRESSION_LEVEL;
use crate::tls::for_postgres;
use crate::vitals::Cell;

/// Copy a running cluster into an ordinary data directory
///
/// With --from or --bundle the copy comes from the sidecar beside the primary, compressed and over TLS. Without, it
/// comes from the PostgreSQL on this host, which needs no sidecar: the one that --pgdata or the configuration names.
///
/// Files are copied over several connections, every page is checked, and a manifest is written that pg_verifybackup
/// reads. A link that is cut is waited for, half a minute at a time. A copy that failed or was cancelled cannot start; the
/// same command, run again, goes on with what is there: only blocks of files that differ are sent.
///
/// The letters are pg_basebackup's, where both can do the same.
#[derive(clap::Args, Clone, Debug)]
#[command(after_long_help = exit::explained(&[
    (0, "the copy is complete"),
    (1, "it failed; or it is complete, but pages were damaged at the source:\n     their files are named"),
    (2, "wrong usage: flags, configuration or bundle"),
    (3, "refused and nothing changed: DIR is not empty, say"),
], &[
    ("From the primary's sidecar, with the certificate of this node:",
     "walship basebackup --from db1.example:7432 -D /srv/copy"),
    ("On a host that is no node, as a reader that was invited:",
     "walship basebackup --bundle reports.bundle -D /srv/copy -r 50MiB"),
    ("From the PostgreSQL on this host, with a tablespace moved:",
     "walship basebackup --pgdata /var/lib/postgresql/15/main -D /srv/copy \\\n      -T /ssd/space=/srv/space"),
    ("Verify the copy, its WAL too:", "pg_verifybackup /srv/copy"),
]))]
pub struct Args {
    /// The folder that becomes the copy: missing, empty, or what an earlier attempt left
    #[arg(short = 'D', long = "directory", value_name = "DIR")]
    directory: PathBuf,
    /// The primary's sidecar, instead of the PostgreSQL on this host
    #[arg(long, value_name = "HOST:PORT")]
    from: Option<Address>,
    /// The bundle that `walship invite --reader` made; `-` for standard input. Without --from, its address is used
    #[arg(long, value_name = "FILE", overrides_with = "bundle")]
    bundle: Option<PathBuf>,
    /// The data directory of the PostgreSQL on this host, instead of the configuration's
    #[arg(long, value_name = "PGDATA", conflicts_with_all = ["from", "bundle"])]
    pgdata: Option<PathBuf>,
    /// How to connect to the PostgreSQL on this host, instead of what the configuration or its postmaster.pid says
    #[arg(long, value_name = "CONNINFO", conflicts_with_all = ["from", "bundle"])]
    conninfo: Option<ConninfoText>,
    /// Make the copy a standby of --primary-conninfo: settings in postgresql.auto.conf, and standby.signal
    #[arg(short = 'R', long)]
    write_recovery_conf: bool,
    /// Where the standby gets its WAL from, as PostgreSQL's primary_conninfo has it
    #[arg(long, value_name = "CONNINFO", requires = "write_recovery_conf")]
    primary_conninfo: Option<String>,
    /// Copy a tablespace to another folder; may be repeated
    #[arg(short = 'T', long = "tablespace-mapping", value_name = "OLDDIR=NEWDIR")]
    tablespace_mapping: Vec<Mapping>,
    /// The label of the backup, which its backup_label and the server's log show
    #[arg(short = 'l', long, value_name = "LABEL", default_value = "walship basebackup")]
    label: String,
    /// How the source makes its checkpoint
    #[arg(short = 'c', long, value_enum, value_name = "HOW", default_value_t = Checkpoint::Fast)]
    checkpoint: Checkpoint,
    /// The most bytes of files per second, such as 20MiB, over all connections
    #[arg(short = 'r', long, value_name = "SIZE")]
    max_rate: Option<Size>,
    /// Connections that carry files at once
    #[arg(short = 'j', long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    jobs: u8,
    /// Leave out the WAL: the copy starts only where restore_command or a primary brings it
    #[arg(long)]
    no_wal: bool,
    /// Show the progress in plain lines even where standard error is no terminal
    #[arg(short = 'P', long)]
    progress: bool,
    /// The configuration file, else ./walship.toml, else /etc/walship/walship.toml
    #[arg(long, value_name = "FILE", env = "WALSHIP_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
}

/// How the source makes its checkpoint.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checkpoint {
    /// At once, which takes all of its disk for a while.
    Fast,
    /// Over minutes, as its own checkpoints are.
    Spread,
}

/// What is copied.
enum Source {
    Remote(Remote),
    Local(Box<Local>),
}

/// Copies.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let options = options(args)?;
    let target = options.target.clone();
    let bundle = args.bundle.as_deref().map(Bundle::read).transpose().advised()?;
    let source = source(args, bundle.as_ref())?;
    if privilege::is_root() {
        look(&source, &target)?;
        privilege::make_folder(&target)?;
        match &bundle {
            Some(bundle) => {
                privilege::become_owner_with(&target, &bundle.render().advised()?, &["--bundle", "-"])?
            }
            None => privilege::become_owner_of(&target)?,
        }
    }
    let report = runtime()?.block_on(copy(source, options, args.progress || stderr().is_terminal()))?;
    tell(&target, &report, args)
}

/// Finds out before root makes anything what would be refused once the owner of the folder goes on.
fn look(source: &Source, target: &Path) -> anyhow::Result<()> {
    require_free(target, Kind::Copy, None)?;
    match source {
        Source::Remote(remote) => runtime()?.block_on(remote_copy::look(remote)),
        // It may not let root in.
        Source::Local(_) => Ok(()),
    }
}

/// What the flags say about the copy itself.
fn options(args: &Args) -> anyhow::Result<Options> {
    let target = std::path::absolute(&args.directory)
        .with_context(|| format!("find {}", args.directory.display()))
        .outcome(Outcome::Usage)?;
    let is_remote = args.from.is_some() || args.bundle.is_some();
    Ok(Options {
        target,
        kind: Kind::Copy,
        label: args.label.clone(),
        fast_checkpoint: args.checkpoint == Checkpoint::Fast,
        max_rate_bytes_per_second: args.max_rate.map(|size| size.0),
        // Within one host it would only cost.
        compression: is_remote.then_some(COMPRESSION_LEVEL),
        connections: usize::from(args.jobs),
        tablespaces: args.tablespace_mapping.clone(),
        standby: standby_settings(args)?,
    })
}

fn standby_settings(args: &Args) -> anyhow::Result<Option<StandbySettings>> {
    if !args.write_recovery_conf {
        return Ok(None);
    }
    let conninfo = args.primary_conninfo.clone().filter(|text| !text.trim().is_empty());
    let Some(conninfo) = conninfo else {
        return Err(Fault::usage(
            "-R needs to know where the standby gets its WAL from",
            "Say it with --primary-conninfo 'host=… user=…'. For a standby that follows through walship use \
             `walship standby --join FILE`, which makes the copy itself.",
        ));
    };
    Ok(Some(StandbySettings { primary_conninfo: conninfo, ..StandbySettings::default() }))
}

/// What the flags and the configuration say about the source. Blocks.
fn source(args: &Args, bundle: Option<&Bundle>) -> anyhow::Result<Source> {
    let mut remote = match (bundle, &args.from) {
        (Some(bundle), _) => Remote::from_bundle(bundle)?,
        (None, Some(address)) => {
            let hint = "With --from this host needs a walship.toml and the certificate that goes with it; \
                        a host that is no node takes --bundle FILE, which `walship invite --reader NAME` makes.";
            let config = configuration(args, hint)?;
            Remote::from_node(config.tls_folder(), address.to_string())?
        }
        (None, None) => return Ok(Source::Local(Box::new(local(args)?))),
    };
    if let Some(address) = &args.from {
        remote.addresses = vec![address.to_string()];
    }
    remote.with_wal = !args.no_wal;
    Ok(Source::Remote(remote))
}

fn local(args: &Args) -> anyhow::Result<Local> {
    let (data_directory, text) = match &args.pgdata {
        Some(pgdata) => (pgdata.clone(), init::running_server(pgdata)),
        None => {
            let hint = "Name the data directory of the PostgreSQL on this host with --pgdata DIR, or a sidecar \
                        elsewhere with --from HOST:PORT.";
            let config = configuration(args, hint)?;
            (config.postgres.data_directory, Some(config.postgres.conninfo))
        }
    };
    let text = args.conninfo.clone().or(text).map_or_else(|| "dbname=postgres".to_owned(), |text| text.0);
    let conninfo = Conninfo::parse(&text).outcome(Outcome::Usage)?.with_tls(Arc::new(for_postgres()?));
    Ok(Local { conninfo, data_directory, with_wal: !args.no_wal })
}

/// The configuration of this host, from its file and the environment; `hint` is for a host that has none.
fn configuration(args: &Args, hint: &str) -> anyhow::Result<Config> {
    // -D means another folder here, so the flags of other commands are read from the environment alone.
    let from_environment =
        Overrides::augment_args(clap::Command::new("walship")).try_get_matches_from(["walship"])?;
    let overrides =
        Overrides { config: args.config.clone(), ..Overrides::from_arg_matches(&from_environment)? };
    match Config::load(&overrides) {
        missing @ Err(ConfigError::Missing { source_file: None, .. }) => {
            missing.hint(hint).outcome(Outcome::Usage)
        }
        loaded => loaded.advised(),
    }
}

/// Copies, unless it is told to stop.
async fn copy(source: Source, options: Options, shows: bool) -> anyhow::Result<Report> {
    let cell = Arc::new(Cell::<Progress>::default());
    let shown = shows.then(|| tokio::spawn(progress::show(Arc::clone(&cell))));
    let copying = async {
        match source {
            Source::Remote(remote) => remote_copy::copy(remote, options, Arc::clone(&cell)).await,
            Source::Local(local) => {
                let copied = local_copy::copy(&local, options, Arc::default(), Arc::clone(&cell)).await;
                copied.map_err(advise)
            }
        }
    };
    tokio::pin!(copying);
    // Cancellation-safe: the copy is pinned, and a signal is taken once.
    let copied = tokio::select! {
        copied = &mut copying => copied,
        signal = told_to_stop() => match signal {
            // Its last files are being given their names: it is complete in a moment.
            Ok(_) if cell.get().phase >= Phase::Finishing => copying.await,
            Ok(signal) => Err(anyhow::anyhow!("cancelled by {signal}"))
                .hint("What is there cannot start. The same command, run again, goes on with what is there."),
            Err(error) => Err(error),
        },
    };
    if let Some(shown) = shown {
        match &copied {
            // It ends by itself with the summary.
            Ok(_) => shown.await.context("show the progress")?,
            Err(_) => {
                shown.abort();
                // An error is that it was aborted; then it has put the terminal right.
                let _ = shown.await;
            }
        }
    }
    copied
}

async fn told_to_stop() -> anyhow::Result<&'static str> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    // Cancellation-safe: a signal that was not taken stays pending.
    tokio::select! {
        _ = interrupt.recv() => Ok("SIGINT"),
        _ = terminate.recv() => Ok("SIGTERM"),
    }
}

/// Adds what to do when PostgreSQL on this host can't be asked.
fn advise(error: anyhow::Error) -> anyhow::Error {
    let hint = match error.downcast_ref::<SqlError>() {
        Some(SqlError::Access(AccessError::Unreachable { .. })) => {
            "Is it running, and is this its address? --conninfo 'host=… port=… user=…' says how to reach it."
        }
        Some(SqlError::Access(AccessError::AuthenticationFailed { .. })) => {
            "Name a user that may connect and replicate with --conninfo 'user=…'."
        }
        Some(SqlError::Unsupported { hint, .. }) => {
            let hint = *hint;
            return Fault::refused(format!("{error:#}"), hint);
        }
        _ => return error,
    };
    Fault::advise(error, hint)
}

/// What was copied, and what is wrong with it.
fn tell(target: &Path, report: &Report, args: &Args) -> anyhow::Result<Exit> {
    let wal = if args.no_wal { "needs WAL" } else { "has its WAL" };
    output::print(&format!(
        "{} is complete: PostgreSQL {}, {} files; it {wal} from {} to {} of timeline {}.\n",
        target.display(),
        report.postgres_major,
        report.files,
        report.start_lsn,
        report.stop_lsn,
        report.timeline,
    ))?;
    for bad in &report.bad_pages {
        let first = bad.first.map_or_else(String::new, |first| format!(", the first is page {first}"));
        let (path, count) = (bad.path.display(), bad.count);
        eprintln!("walship: {path}: pages with wrong checksums at the source: {count}{first}");
    }
    if report.bad_pages.is_empty() {
        return Ok(Exit::Done);
    }
    eprintln!(
        "hint: The copy is as damaged as the source. There, `SELECT oid::regclass FROM pg_class WHERE \
         pg_relation_filepath(oid) = 'base/…'` names the relation. Keep older copies until it is mended."
    );
    Ok(Exit::Ended(Outcome::Failed))
}
