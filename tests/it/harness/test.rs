//! What every test begins with: a folder, PostgreSQL's programs, a seed.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use walship::demo::{Account, Binaries, Cluster, ClusterOptions, Random};

use super::{Finished, command, last_words};

/// Replays the choices of an earlier run.
const SEED_VARIABLE: &str = "WALSHIP_SEED";

/// Ports are taken from here: below the range that outgoing connections get theirs from (32768 and up), or one of
/// those could take a port between our choice of it and the sidecar's.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Makes folders of one process differ.
static NEXT_FOLDER: AtomicU16 = AtomicU16::new(0);
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

/// One test's surroundings. Declare it first, so that it is dropped last: a failed test leaves its folder.
#[derive(Debug)]
pub struct Test {
    folder: PathBuf,
    seed: u64,
    /// As whom PostgreSQL and walship run.
    pub account: Account,
    /// PostgreSQL's programs.
    pub binaries: Binaries,
}

impl Test {
    /// A new folder named for the running test, in a place with a short path: unix sockets go below it.
    pub fn new() -> Test {
        Test::on(Binaries::find().unwrap())
    }

    /// The same with another PostgreSQL than the one that is tested.
    pub fn on(binaries: Binaries) -> Test {
        last_words::keep();
        let thread = std::thread::current();
        let name: String =
            thread.name().unwrap_or("test").rsplit("::").next().unwrap().chars().take(30).collect();
        let number = NEXT_FOLDER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("walship-{name}-{}-{number}", std::process::id()));
        let account = Account::for_postgres().unwrap();
        account.create_folder(&folder).unwrap();
        let seed = std::env::var(SEED_VARIABLE).ok().map(|seed| seed.parse().expect(SEED_VARIABLE));
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
        Test { folder, seed: seed.unwrap_or_else(now), account, binaries }
    }

    /// The folder; it belongs to the account.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Chance for this test. A failed one prints the seed that it came from.
    pub fn random(&self) -> Random {
        Random::new(self.seed)
    }

    /// What [`Test::random`] starts from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// A cluster below the folder, started. It never fsyncs: what tests do to it kills processes and not the kernel.
    pub async fn cluster(&self, name: &str, options: ClusterOptions) -> Cluster {
        let options = options.set("fsync", "off");
        let cluster =
            Cluster::create(&self.folder.join(name), &self.binaries, &self.account, &options).await.unwrap();
        cluster.start().await.unwrap();
        cluster
    }

    /// A handle on a cluster that walship is going to make.
    pub fn empty_cluster(&self, name: &str) -> Cluster {
        Cluster::at(&self.folder.join(name), &self.binaries, &self.account).unwrap()
    }

    /// A standby that PostgreSQL alone keeps, started; `primary_conninfo` is where it gets its WAL.
    pub async fn plain_standby(&self, name: &str, primary: &Cluster, primary_conninfo: &str) -> Cluster {
        let standby = self.empty_cluster(name);
        let (source, copy) = (primary.data_directory(), standby.data_directory());
        let (source, copy) = (source.to_str().unwrap(), copy.to_str().unwrap());
        let make =
            ["basebackup", "--pgdata", source, "-D", copy, "-R", "--primary-conninfo", primary_conninfo];
        self.walship(&make).await.succeeded();
        let socket = format!("unix_socket_directories = '{}'\n", standby.socket_folder().display());
        standby.append_to("postgresql.auto.conf", &socket).unwrap();
        standby.start().await.unwrap();
        standby
    }

    /// Runs walship to its end, in the test's folder.
    pub async fn walship(&self, arguments: &[&str]) -> Finished {
        let mut command = command::walship(&self.account);
        command.args(arguments).current_dir(&self.folder);
        Finished::run(command).await
    }

    /// The same for a command that takes longer than others.
    pub async fn walship_within(&self, patience: Duration, arguments: &[&str]) -> Finished {
        let mut command = command::walship(&self.account);
        command.args(arguments).current_dir(&self.folder);
        Finished::run_within(patience, command).await
    }

    /// A port of loopback that nobody listens on, another one with every call.
    pub fn port(&self) -> u16 {
        let offset = std::process::id() as u16;
        for _ in PORTS {
            let step = offset.wrapping_mul(97).wrapping_add(NEXT_PORT.fetch_add(1, Ordering::Relaxed));
            let port = PORTS.start + step % (PORTS.end - PORTS.start);
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return port;
            }
        }
        panic!("no free port in {PORTS:?}");
    }
}

impl Drop for Test {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!(
                "{SEED_VARIABLE}={} replays its choices; its files are in {}",
                self.seed,
                self.folder.display()
            );
            println!("panicked at {}", last_words::last_words());
        } else {
            std::fs::remove_dir_all(&self.folder).unwrap();
        }
    }
}
