//! Flags and variables that beat the file; clap gives the flag precedence over the variable.

use std::path::PathBuf;

use super::value::{Address, ConninfoText, Name, Size};

// What may be said on the command line or in the environment instead of the file.
#[allow(missing_docs, reason = "a doc comment would become the help of the commands that take these flags")]
#[derive(clap::Args, Clone, Default, Debug)]
#[command(next_help_heading = "Configuration")]
pub struct Overrides {
    /// The configuration file, else ./walship.toml, else /etc/walship/walship.toml
    #[arg(long, value_name = "FILE", env = "WALSHIP_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// This node's name
    #[arg(long, value_name = "NAME", env = "WALSHIP_NAME", hide_env_values = true)]
    pub name: Option<Name>,
    /// The folder of the store
    #[arg(long, value_name = "DIR", env = "WALSHIP_STORE", hide_env_values = true)]
    pub store: Option<PathBuf>,
    /// Where other sidecars connect, else 0.0.0.0:7432
    #[arg(long, value_name = "HOST:PORT", env = "WALSHIP_LISTEN", hide_env_values = true)]
    pub listen: Option<Address>,
    /// How other sidecars reach this node, else the address of --listen, or this host's name with its port
    #[arg(long, value_name = "HOST:PORT", env = "WALSHIP_ADVERTISE", hide_env_values = true)]
    pub advertise: Option<Address>,
    /// A standby's sources, in order of preference; may be repeated
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "WALSHIP_UPSTREAM",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub upstream: Vec<Address>,
    /// Where to serve metrics, health checks and waits over HTTP, else nowhere
    #[arg(long, value_name = "HOST:PORT", env = "WALSHIP_HTTP_LISTEN", hide_env_values = true)]
    pub http_listen: Option<Address>,
    /// The data directory of this node's PostgreSQL
    #[arg(short = 'D', long, value_name = "PGDATA", env = "WALSHIP_DATA_DIRECTORY", hide_env_values = true)]
    pub data_directory: Option<PathBuf>,
    /// How to connect to this node's PostgreSQL, as libpq has it, else dbname=postgres
    #[arg(long, value_name = "CONNINFO", env = "WALSHIP_CONNINFO", hide_env_values = true)]
    pub conninfo: Option<ConninfoText>,
    /// Where pg_ctl is, else PATH, pg_config, /usr/lib/postgresql/*/bin
    #[arg(long, value_name = "DIR", env = "WALSHIP_BIN_DIRECTORY", hide_env_values = true)]
    pub bin_directory: Option<PathBuf>,
    /// The most bytes per second shipped to one standby, such as 20MiB
    #[arg(long, value_name = "SIZE", env = "WALSHIP_MAX_RATE", hide_env_values = true)]
    pub max_rate: Option<Size>,
    /// The most bytes of WAL in the store, such as 50GiB, else a quarter of the file system
    #[arg(long, value_name = "SIZE", env = "WALSHIP_STORE_MAX_BYTES", hide_env_values = true)]
    pub store_max_bytes: Option<Size>,
}
