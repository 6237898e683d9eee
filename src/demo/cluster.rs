//! One PostgreSQL server with a folder of its own: made, started, stopped, killed, promoted, asked.
//!
//! It listens on a unix socket in a private folder and nowhere else, so clusters never collide. Its state is what
//! the processes on this machine say, not what was done through this handle: a server that walship starts or stops
//! is seen all the same. Dropping the handle ends the server, and blocks until it is gone.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::{Account, Binaries, process, wait};
use crate::fault::WithFault;
use crate::pg::socket_file::{self, PATH_BYTES_MAX, PORT};

/// The superuser of every cluster made here.
pub const SUPERUSER: &str = "postgres";

/// How long a start or stop may take: a standby may have to replay first.
const CONTROL_TIMEOUT_SECONDS: u32 = 120;

/// How long a dropped server gets for its immediate shutdown before it is killed.
const DROP_TIMEOUT: Duration = Duration::from_secs(10);

/// What a new cluster is like.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// `initdb --wal-segsize`, in MiB.
    pub wal_segment_mib: u32,
    /// `initdb --data-checksums`.
    pub data_checksums: bool,
    /// Lines for postgresql.conf, after our own and so above them.
    pub settings: Vec<(String, String)>,
}

impl Default for ClusterOptions {
    /// Small segments, so that a little WAL crosses many boundaries, and page checksums.
    fn default() -> ClusterOptions {
        ClusterOptions { wal_segment_mib: 1, data_checksums: true, settings: Vec::new() }
    }
}

impl ClusterOptions {
    /// Adds a setting for postgresql.conf.
    pub fn set(mut self, name: &str, value: &str) -> ClusterOptions {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// How `pg_ctl stop` goes about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopMode {
    /// Clients are disconnected, a shutdown checkpoint is written.
    Fast,
    /// No checkpoint: the next start recovers.
    Immediate,
}

/// One PostgreSQL server.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    binaries: Binaries,
    account: Account,
    keep_running: bool,
}

impl Cluster {
    /// Runs initdb below `folder`, which is made when it is missing. The server is not started.
    pub async fn create(
        folder: &Path,
        binaries: &Binaries,
        account: &Account,
        options: &ClusterOptions,
    ) -> anyhow::Result<Cluster> {
        let cluster = Cluster::at(folder, binaries, account)?;
        let mut initdb = account.command(binaries.program("initdb"));
        initdb
            .args(["--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync", "--username", SUPERUSER])
            .arg(format!("--wal-segsize={}", options.wal_segment_mib));
        if options.data_checksums {
            initdb.arg("--data-checksums");
        } else if binaries.major() >= 18 {
            initdb.arg("--no-data-checksums"); // from 18 on they are the default
        }
        initdb.arg("-D").arg(cluster.data_directory());
        cluster.run(initdb).await?;
        cluster.configure(&options.settings)?;
        Ok(cluster)
    }

    /// A handle on the cluster below `folder`, whose data directory walship made or is going to make. Makes the
    /// folders around it.
    pub fn at(folder: &Path, binaries: &Binaries, account: &Account) -> anyhow::Result<Cluster> {
        process::adopt_orphans();
        account.create_folder(folder)?;
        let folder = folder.canonicalize().with_context(|| format!("resolve {}", folder.display()))?;
        let cluster =
            Cluster { folder, binaries: binaries.clone(), account: account.clone(), keep_running: false };
        let socket = socket_file::path_in(&cluster.socket_folder(), PORT);
        ensure!(
            socket.as_os_str().len() <= PATH_BYTES_MAX,
            "{} is longer than the {PATH_BYTES_MAX} bytes of a unix socket's path: use a folder nearer to /",
            socket.display()
        );
        account.create_folder(&cluster.socket_folder())?;
        Ok(cluster)
    }

    /// PGDATA.
    pub fn data_directory(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Where the server's socket is.
    pub fn socket_folder(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// What the server writes when it is started from here.
    pub fn log_file(&self) -> PathBuf {
        self.folder.join("postgresql.log")
    }

    /// The port, which names the socket.
    pub fn port(&self) -> u16 {
        PORT
    }

    /// PostgreSQL's programs that run this cluster.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// As whom they run.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// A connection string for libpq and tokio-postgres, as the superuser.
    pub fn conninfo(&self) -> String {
        self.conninfo_as(SUPERUSER)
    }

    /// A connection string for another role.
    pub fn conninfo_as(&self, user: &str) -> String {
        format!("host={} port={PORT} user={user} dbname=postgres", self.socket_folder().display())
    }

    /// Writes to postgresql.conf: what makes the server private and quiet, then `settings`.
    fn configure(&self, settings: &[(String, String)]) -> anyhow::Result<()> {
        let socket_folder = self.socket_folder().display().to_string();
        let own = [
            ("listen_addresses", ""),
            ("unix_socket_directories", socket_folder.as_str()),
            ("log_line_prefix", "%m [%p] %b %q%a "),
            ("max_connections", "50"),
            ("shared_buffers", "32MB"),
            // Files in the data directory: a server that is killed leaves nothing in /dev/shm.
            ("dynamic_shared_memory_type", "mmap"),
        ];
        let given = settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let lines: String = own
            .into_iter()
            .chain(given)
            .map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''")))
            .collect();
        self.append_to("postgresql.conf", &lines)
    }

    /// Appends lines to a configuration file in the data directory; the server reads them when it starts or is
    /// told to.
    pub fn append_to(&self, file: &str, lines: &str) -> anyhow::Result<()> {
        use std::io::Write;
        let path = self.data_directory().join(file);
        let mut open = std::fs::OpenOptions::new();
        open.append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(lines.as_bytes()))
            .with_context(|| format!("append to {}", path.display()))
    }

    /// Starts the server and waits until it accepts connections.
    pub async fn start(&self) -> anyhow::Result<()> {
        let log = self.log_file();
        let log = log.to_str().with_context(|| format!("write {} as text", log.display()))?;
        self.pg_ctl(&["start", "-w", "-l", log]).await.with_context(|| {
            format!("start PostgreSQL; the end of its log is:\n{}", last_lines(&self.log_file(), 20))
        })
    }

    /// Stops the server and waits until it is gone.
    pub async fn stop(&self, mode: StopMode) -> anyhow::Result<()> {
        let mode = match mode {
            StopMode::Fast => "fast",
            StopMode::Immediate => "immediate",
        };
        self.pg_ctl(&["stop", "-w", "-m", mode]).await
    }

    /// Stops fast and starts again.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.stop(StopMode::Fast).await?;
        self.start().await
    }

    /// `pg_ctl promote`, the way of someone who knows nothing of walship.
    pub async fn promote(&self) -> anyhow::Result<()> {
        self.pg_ctl(&["promote", "-w"]).await
    }

    /// Kills the postmaster and all its children at once with SIGKILL, as losing the machine would.
    pub async fn kill(&self) -> anyhow::Result<()> {
        let data_directory = self.data_directory();
        let gone = tokio::task::spawn_blocking(move || process::kill_all(&data_directory)).await?;
        ensure!(gone, "processes of {} survived SIGKILL", self.data_directory().display());
        Ok(())
    }

    /// Stops all its processes as they are with SIGSTOP: they hold what they hold, and answer nothing.
    pub fn freeze(&self) {
        process::freeze(&self.data_directory());
    }

    /// Lets them go on.
    pub fn thaw(&self) {
        process::thaw(&self.data_directory());
    }

    /// True while the server's postmaster runs, whoever started it.
    pub fn is_running(&self) -> bool {
        process::postmaster(&self.data_directory()).is_some()
    }

    /// True when the server answers a query.
    pub async fn is_ready(&self) -> bool {
        self.sql("SELECT 1").await.is_ok()
    }

    /// From now on dropping the handle leaves the server as it is.
    pub fn keep_running(&mut self) {
        self.keep_running = true;
    }

    /// A connection as the superuser; it ends when the client is dropped.
    pub async fn connect(&self) -> anyhow::Result<tokio_postgres::Client> {
        connect(&self.conninfo()).await
    }

    /// Runs statements over a connection of their own and returns the rows as `psql -At` prints them: a line each,
    /// columns with `|` between, nothing for NULL.
    pub async fn sql(&self, statements: &str) -> anyhow::Result<Vec<String>> {
        let client = self.connect().await?;
        rows_of(&client, statements).await
    }

    /// The first row of [`Cluster::sql`].
    pub async fn value(&self, query: &str) -> anyhow::Result<String> {
        let rows = self.sql(query).await?;
        rows.into_iter().next().with_context(|| format!("run `{query}`: no rows"))
    }

    /// Waits until a query's answer is true. A server that does not answer is one that may yet come.
    pub async fn wait_until(&self, query: &str, within: Duration) -> anyhow::Result<()> {
        wait::until(&format!("`{query}` is true"), within, async || {
            let answer = self.value(query).await?;
            ensure!(answer == "t", "it is {answer:?}");
            Ok(())
        })
        .await
    }

    async fn pg_ctl(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut pg_ctl = self.account.command(self.binaries.program("pg_ctl"));
        pg_ctl.args(arguments).arg("-D").arg(self.data_directory());
        pg_ctl.args(["-t", &CONTROL_TIMEOUT_SECONDS.to_string()]);
        self.run(pg_ctl).await.map(drop)
    }

    /// Runs a program to its end; what it printed is the error when it fails.
    pub async fn run(&self, command: std::process::Command) -> anyhow::Result<Output> {
        let name = command.get_program().display().to_string();
        let output = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("run {name}"))
            .hint("If it may not be executed, `postgres` may not enter a folder above it.")?;
        if !output.status.success() {
            let said = [output.stderr, output.stdout].concat();
            bail!("{name} failed ({}): {}", output.status, String::from_utf8_lossy(&said).trim());
        }
        Ok(output)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.keep_running {
            let data_directory = self.data_directory();
            process::stop_immediately(&data_directory, DROP_TIMEOUT);
            process::remove_shared_memory(&data_directory);
        }
    }
}

/// Connects without TLS; the connection ends when the client is dropped.
pub async fn connect(conninfo: &str) -> anyhow::Result<tokio_postgres::Client> {
    let (client, mut connection) =
        tokio_postgres::connect(conninfo, NoTls).await.context("connect to PostgreSQL")?;
    tokio::spawn(async move {
        // Whoever waits for an answer on the client hears of the same error. Notices, such as that of a server that is
        // shut down, are for nobody.
        while let Some(Ok(_)) = std::future::poll_fn(|task| connection.poll_message(task)).await {}
    });
    Ok(client)
}

/// Runs statements on a connection; the rows as in [`Cluster::sql`].
pub async fn rows_of(client: &tokio_postgres::Client, statements: &str) -> anyhow::Result<Vec<String>> {
    let messages = client.simple_query(statements).await.with_context(|| format!("run `{statements}`"))?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|i| row.get(i).unwrap_or_default()).collect::<Vec<_>>().join("|"))
        }
        _ => None,
    });
    Ok(rows.collect())
}

/// The end of a text file, for an error message.
pub fn last_lines(path: &Path, lines_max: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(lines_max)..].join("\n")
}
