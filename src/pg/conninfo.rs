//! How to reach a PostgreSQL: a libpq connection string, read and checked once.
//!
//! One server only: the sidecar's own, or the one that a person names. What the string leaves out is filled in as
//! libpq does. Nothing here ever prints a password, neither an error nor `Debug`.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, Host, SslMode};
use tokio_rustls::rustls::ClientConfig;

use super::{passfile, socket_file};

/// The key words of the `key=value` form.
const KEYS: [&str; 17] = [
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "options",
    "passfile",
    "password",
    "port",
    "sslmode",
    "tcp_user_timeout",
    "user",
];

/// Where libpq, as every distribution builds it, looks for the socket when no host is given.
const DEFAULT_SOCKET_DIRECTORY: &str = "/var/run/postgresql";

/// A connection attempt takes no longer than this unless the string says otherwise.
const DEFAULT_CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// A checked connection string.
#[derive(Clone)]
pub struct Conninfo {
    config: Config,
    endpoint: Endpoint,
    user: String,
    tls: Option<Arc<ClientConfig>>,
}

/// The one address of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// A socket file such as `/run/postgresql/.s.PGSQL.5432`.
    Unix(PathBuf),
    /// A host and port.
    Tcp {
        /// The name, which a certificate is checked against.
        host: String,
        /// The address, when `hostaddr` spares the look-up.
        address: Option<IpAddr>,
        /// The port.
        port: u16,
    },
}

/// A connection string that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConninfoError {
    /// Not `key=value`.
    #[error("the connection string is not `key=value key=value`: {reason}")]
    Syntax {
        /// What is wrong, without the text itself.
        reason: String,
    },
    /// A key that means nothing here.
    #[error("`{key}` is no key of a connection string; there are {}", KEYS.join(", "))]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// A value that its key cannot have.
    #[error("the connection string has a wrong value: {reason}")]
    BadValue {
        /// Which key.
        reason: String,
    },
    /// More than one host, or a port for each.
    #[error("the connection string names several servers; a sidecar has one PostgreSQL")]
    SeveralServers,
    /// Neither named nor known to the system.
    #[error("the connection string names no user, and this process's own has no name: add user=…")]
    NoUser,
}

impl Conninfo {
    /// Reads a connection string, `key=value …` or `postgresql://…`, and looks a missing password up in
    /// `PGPASSWORD` and then in the password file.
    pub fn parse(text: &str) -> Result<Conninfo, ConninfoError> {
        let (mut config, named_passfile) = if is_url(text) {
            (parse_config(text)?, None)
        } else {
            let mut pairs = split(text)?;
            let passfile = pairs.iter().position(|(key, _)| key == "passfile").map(|at| pairs.remove(at).1);
            pairs.retain(|(key, value)| key != "host" || !value.is_empty()); // as libpq: the default
            (parse_config(&join(&pairs))?, passfile.map(PathBuf::from))
        };
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            config.host_path(DEFAULT_SOCKET_DIRECTORY);
        }
        let endpoint = endpoint(&config)?;
        if let Endpoint::Unix(_) = endpoint {
            config.ssl_mode(SslMode::Disable); // as libpq: no TLS over a socket file, whatever is asked for
        }
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            config.host_path(DEFAULT_SOCKET_DIRECTORY); // tokio-postgres has no default
        }
        let user = match config.get_user() {
            Some(user) => user.to_owned(),
            None => whoami::username().map_err(|_| ConninfoError::NoUser)?,
        };
        config.user(&user);
        if config.get_dbname().is_none() {
            config.dbname(&user);
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(DEFAULT_CONNECT_TIME_MAX);
        }
        let mut conninfo = Conninfo { config, endpoint, user, tls: None };
        if conninfo.config.get_password().is_none()
            && let Some(password) = conninfo.look_up_password(named_passfile)
        {
            conninfo.config.password(password);
        }
        Ok(conninfo)
    }

    fn look_up_password(&self, named_passfile: Option<PathBuf>) -> Option<String> {
        if let Ok(password) = std::env::var("PGPASSWORD") {
            return Some(password);
        }
        let path = named_passfile.or_else(passfile::default_path)?;
        let (host, port) = match &self.endpoint {
            Endpoint::Tcp { host, port, .. } => (host.as_str(), *port),
            Endpoint::Unix(file) => {
                let directory = file.parent().and_then(Path::to_str).unwrap_or("localhost");
                let default = directory == DEFAULT_SOCKET_DIRECTORY || directory == "/run/postgresql";
                (if default { "localhost" } else { directory }, self.port())
            }
        };
        passfile::look_up(&path, host, port, self.database(), &self.user)
    }

    /// With a TLS configuration; without one, `sslmode=prefer` means plain and `require` fails.
    pub fn with_tls(self, tls: Arc<ClientConfig>) -> Conninfo {
        Conninfo { tls: Some(tls), ..self }
    }

    /// The same server, but another database.
    pub fn with_database(&self, database: &str) -> Conninfo {
        let mut other = self.clone();
        other.config.dbname(database);
        other
    }

    /// Where the server is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The port, which also numbers a socket file.
    pub fn port(&self) -> u16 {
        self.config.get_ports().first().copied().unwrap_or(5432)
    }

    /// The role to log in as.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database for SQL; a replication connection has none.
    pub fn database(&self) -> &str {
        self.config.get_dbname().unwrap_or(&self.user)
    }

    /// How long connecting may take, authentication included.
    pub fn connect_time_max(&self) -> Duration {
        self.config.get_connect_timeout().copied().unwrap_or(DEFAULT_CONNECT_TIME_MAX)
    }

    /// Whether TLS is asked for; never over a socket file.
    pub fn ssl_mode(&self) -> SslMode {
        self.config.get_ssl_mode()
    }

    pub(super) fn tls(&self) -> Option<&Arc<ClientConfig>> {
        self.tls.as_ref()
    }

    /// Whether authentication must be bound to the TLS connection.
    pub(super) fn channel_binding(&self) -> ChannelBinding {
        self.config.get_channel_binding()
    }

    pub(super) fn options(&self) -> &str {
        self.config.get_options().unwrap_or_default()
    }

    pub(super) fn password(&self) -> Option<&[u8]> {
        self.config.get_password()
    }

    /// The form that tokio-postgres connects with.
    pub(super) fn sql_config(&self) -> &Config {
        &self.config
    }
}

impl fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Conninfo({self})")
    }
}

impl fmt::Display for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as {}", self.endpoint, self.user)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(file) => write!(f, "{}", file.display()),
            Endpoint::Tcp { host, port, .. } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Endpoint::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
        }
    }
}

fn is_url(text: &str) -> bool {
    text.starts_with("postgres://") || text.starts_with("postgresql://")
}

/// Lets tokio-postgres read the values; its errors name keys, never values.
fn parse_config(text: &str) -> Result<Config, ConninfoError> {
    text.parse().map_err(|error: tokio_postgres::Error| ConninfoError::BadValue {
        reason: match std::error::Error::source(&error) {
            _ if is_url(text) => "it is not a PostgreSQL URL with keys and values known here".to_owned(),
            Some(cause) => cause.to_string(),
            None => error.to_string(),
        },
    })
}

fn endpoint(config: &Config) -> Result<Endpoint, ConninfoError> {
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    if hosts.len() > 1 || addresses.len() > 1 || ports.len() > 1 {
        return Err(ConninfoError::SeveralServers);
    }
    let port = ports.first().copied().unwrap_or(5432);
    let address = addresses.first().copied();
    let in_directory = |directory: &Path| Endpoint::Unix(socket_file::path_in(directory, port));
    Ok(match (hosts.first(), address) {
        (Some(Host::Unix(directory)), _) => in_directory(directory),
        (Some(Host::Tcp(host)), _) if !host.is_empty() => Endpoint::Tcp { host: host.clone(), address, port },
        (_, Some(address)) => Endpoint::Tcp { host: address.to_string(), address: Some(address), port },
        (_, None) => in_directory(Path::new(DEFAULT_SOCKET_DIRECTORY)),
    })
}

/// Splits `key=value key='value with spaces'`; a backslash takes the next character as it is.
fn split(text: &str) -> Result<Vec<(String, String)>, ConninfoError> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let after_password = pairs.last().is_some_and(|(key, _)| key == "password");
        let hidden = after_password.then(|| ConninfoError::Syntax {
            reason: "quote a password that has spaces, as in password='two words'".to_owned(),
        });
        let Some((key, after)) = rest.split_once('=') else {
            return Err(hidden
                .unwrap_or_else(|| ConninfoError::Syntax { reason: "the last part has no `=`".to_owned() }));
        };
        let key = key.trim();
        if !KEYS.contains(&key) {
            return Err(hidden.unwrap_or_else(|| ConninfoError::UnknownKey { key: key.to_owned() }));
        }
        let (value, after) = take_value(after.trim_start()).ok_or_else(|| ConninfoError::Syntax {
            reason: format!("the value of `{key}` has a quote that is not closed"),
        })?;
        pairs.push((key.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(pairs)
}

fn take_value(text: &str) -> Option<(String, &str)> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut characters = text.char_indices().skip(usize::from(quoted));
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Some((value, &text[at + 1..])),
            space if !quoted && space.is_whitespace() => return Some((value, &text[at..])),
            other => value.push(other),
        }
    }
    (!quoted).then_some((value, ""))
}

/// The reverse of [`split`]; the last of several equal keys wins, as in libpq, and an empty value is no value.
fn join(pairs: &[(String, String)]) -> String {
    let mut text = String::new();
    for (index, (key, value)) in pairs.iter().enumerate() {
        let overridden = pairs[index + 1..].iter().any(|(later, _)| later == key);
        if !overridden && !value.is_empty() {
            let escaped = value.replace('\\', "\\\\").replace('\'', "\\'");
            text.push_str(&format!("{key}='{escaped}' "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Conninfo {
        Conninfo::parse(text).unwrap()
    }

    #[test]
    fn a_socket_directory_and_a_host() {
        let unix = parse("host=/run/pg port=5433 user=walship dbname=postgres sslmode=require");
        assert_eq!(unix.endpoint(), &Endpoint::Unix("/run/pg/.s.PGSQL.5433".into()));
        assert_eq!((unix.user(), unix.database(), unix.port()), ("walship", "postgres", 5433));
        assert_eq!(unix.ssl_mode(), SslMode::Disable);
        let tcp = parse("host = db1.example hostaddr=10.0.0.1 user=walship sslmode=require");
        assert_eq!(tcp.endpoint().to_string(), "db1.example:5432");
        assert_eq!((tcp.database(), tcp.ssl_mode()), ("walship", SslMode::Require));
        assert_eq!(parse("hostaddr=::1 user=a").endpoint().to_string(), "[::1]:5432");
        assert_eq!(parse("user=a").endpoint().to_string(), "/var/run/postgresql/.s.PGSQL.5432");
        assert_eq!(parse("postgresql://a@h:1/d").endpoint().to_string(), "h:1");
        assert!(!parse("").user().is_empty());
        let host = |text| parse(text).sql_config().get_hosts().to_vec();
        assert_eq!(host("dbname=postgres"), [Host::Unix(DEFAULT_SOCKET_DIRECTORY.into())]);
        assert_eq!(host("hostaddr=::1 user=a"), []);
    }

    #[test]
    fn without_a_host_sql_goes_where_everything_else_goes() {
        for text in ["dbname=postgres user=a", "host='' user=a"] {
            let hosts = parse(text).sql_config().get_hosts().to_vec();
            assert_eq!(hosts, [Host::Unix(DEFAULT_SOCKET_DIRECTORY.into())], "{text}");
        }
    }

    #[test]
    fn quotes_escapes_and_repeated_keys() {
        let info = parse(r"user='a b' password='it\'s \\' dbname=x dbname=y port='' host=h");
        assert_eq!((info.user(), info.database(), info.port()), ("a b", "y", 5432));
        assert_eq!(info.password(), Some(br"it's \".as_slice()));
    }

    #[test]
    fn no_error_and_no_debug_shows_a_password() {
        for text in [
            "password=topsecret zzz=1",
            "password=a topsecret",
            "password=a topsecret=b",
            "password='topsecret",
            "password=topsecret port=x",
            "password=topsecret host=a,b",
            "postgresql://u:topsecret@h:port/db",
            "postgresql://u:a@topsecret@h:port/db?topsecret=1",
        ] {
            let error = Conninfo::parse(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("topsecret"), "{error:?}");
        }
        let info = parse("user=u password=topsecret host=h");
        assert!(!format!("{info} {info:?}").contains("topsecret"));
    }

    #[test]
    fn wrong_strings_say_what_is_wrong() {
        let error = |text| Conninfo::parse(text).unwrap_err();
        assert_eq!(error("hots=a"), ConninfoError::UnknownKey { key: "hots".to_owned() });
        assert_eq!(error("host=a,b user=c"), ConninfoError::SeveralServers);
        assert!(error("host=a port=x").to_string().contains("`port`"));
        assert!(error("host=a sslmode=sometimes").to_string().contains("`sslmode`"));
        assert!(matches!(error("host"), ConninfoError::Syntax { .. }));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            let _ = Conninfo::parse(&text);
        }

        #[test]
        fn any_value_survives_quoting(value in "\\PC+") {
            let quoted = join(&[("user".to_owned(), value.clone())]);
            let info = Conninfo::parse(&quoted).unwrap();
            prop_assert_eq!(info.user(), value);
        }
    }
}
