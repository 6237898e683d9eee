//! `walship init`: what the first node needs before it runs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf, absolute};

use anyhow::Context;

use super::{exit, output, privilege};
use crate::clock::WallTime;
use crate::config::{Config, ConfigError, ConninfoText, Overrides, SEARCH_PATH, Template};
use crate::durable::{self, FileError};
use crate::fault::{Advised, Fault, Outcome, WithFault};
use crate::pg::control::ControlFile;
use crate::pg::version;
use crate::tls::{Authority, Files, Kind, Pem};

/// Make the first node: a private CA, its certificate and its walship.toml
///
/// Run it once, beside the primary; `walship invite` then lets other nodes in. Nothing is changed in the data
/// directory or in PostgreSQL. Run as root, it makes everything for the owner of the data directory.
///
/// The CA's private key stays in the store, in tls/ca.key. Keep a copy elsewhere: without it nobody can be invited.
#[derive(clap::Args, Clone, Debug)]
#[command(
    mut_arg("name", |flag| flag.required(true).help("This node's name: 1 to 63 of a-z, 0-9, - and _")),
    mut_arg("data_directory", |flag| flag.required(true)),
    mut_arg("store", |flag| flag.help(
        "The folder of the store; as root /var/lib/walship/NAME, else PGDATA-walship beside the data directory")),
    mut_arg("conninfo", |flag| flag.help(
        "How to connect to this node's PostgreSQL; what its postmaster.pid says if not given")),
    mut_arg("config", |flag| flag.help(
        "The configuration file to write; as root /etc/walship/walship.toml, else ./walship.toml")),
)]
#[command(after_long_help = exit::explained(&[
    (0, "the node is made"),
    (1, "it failed"),
    (2, "wrong usage, or PGDATA is no data directory"),
    (3, "refused and nothing changed: there is a node already"),
], &[
    ("Beside the primary:", "walship init --name db1 -D /var/lib/postgresql/15/main"),
    ("With the port and the address that other hosts use:",
     "walship init --name db1 -D /var/lib/postgresql/15/main \\\n      --listen 0.0.0.0:7432 --advertise db1.example:7432"),
    ("What to do next:", "walship check\n    walship primary\n    walship invite db2 > db2.join"),
]))]
pub struct Args {
    #[command(flatten)]
    overrides: Overrides,
    /// The certificate of a CA to use instead of a new one.
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    ca_cert: Option<PathBuf>,
    /// Its private key. It is used now and not copied; `walship invite` asks for it again.
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
}

/// Makes all of it, or refuses when any of it exists. Blocks.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let (file, config) = make(args, privilege::is_root())?;
    output::print(&told(args, &file, &config))
}

/// What was made, and what to do next.
fn told(args: &Args, file: &Path, config: &Config) -> String {
    let key = match args.ca_key {
        Some(_) => String::new(),
        None => {
            let key = Files::authority_key(&config.tls_folder());
            format!("  CA key         {}: keep a copy elsewhere\n", key.display())
        }
    };
    let flag =
        args.overrides.config.as_ref().map_or_else(String::new, |_| format!(" --config {}", file.display()));
    format!(
        "Made node {}.\n  configuration  {}\n  store          {}\n{key}\
         Now run `walship check{flag}`, then `walship primary{flag}`.\n",
        config.name,
        file.display(),
        config.store.display(),
    )
}

/// The same without a word: where the configuration is, and what it says.
fn make(args: &Args, root: bool) -> anyhow::Result<(PathBuf, Config)> {
    let find = |path: &Path| absolute(path).with_context(|| format!("find {}", path.display()));
    let over = &args.overrides;
    let (Some(name), Some(data_directory)) = (&over.name, &over.data_directory) else {
        return Err(Fault::usage("a node needs a name and a data directory", "Say them with --name and -D."));
    };
    let data_directory = find(data_directory)?;
    version::require_supported_in(&data_directory).advised()?;
    ControlFile::read(&data_directory)
        .hint("-D takes the data directory of a PostgreSQL: the folder with PG_VERSION in it.")
        .outcome(Outcome::Usage)?;
    let file = over.config.clone().unwrap_or_else(|| SEARCH_PATH[usize::from(root)].into());
    let file = find(&file)?;
    let store = match &over.store {
        Some(store) => find(store)?,
        None => default_store(&name.0, &data_directory, root)?,
    };
    let chosen = Overrides {
        store: Some(store),
        conninfo: over.conninfo.clone().or_else(|| running_server(&data_directory)),
        data_directory: Some(data_directory),
        bin_directory: over.bin_directory.as_deref().map(find).transpose()?,
        ..over.clone()
    };
    let template = Template { chosen, start_command: None };
    let (_, config) = template.render(&file).advised()?;
    // Written out even if nobody asked for it: the invitations will carry it.
    let chosen = Overrides { advertise: Some(config.advertise.clone()), ..template.chosen };
    let template = Template { chosen, ..template };
    let (text, config) = template.render(&file).advised()?;
    let files = Files::in_folder(&config.tls_folder());
    for made in [&file, &files.ca, &files.certificate, &files.key] {
        refuse_if_made(made)?;
    }
    write(args, root, &file, &text, &config)?;
    Ok((file, config))
}

fn refuse_if_made(path: &Path) -> anyhow::Result<()> {
    if !path.try_exists().with_context(|| format!("look for {}", path.display()))? {
        return Ok(());
    }
    Err(Fault::refused(
        format!("{} exists already", path.display()),
        "`walship check` looks at what is there. To begin anew, move the configuration and the store's folder tls/ \
         away: nodes that were invited must then be invited again.",
    ))
}

fn write(args: &Args, root: bool, file: &Path, text: &str, config: &Config) -> anyhow::Result<()> {
    let owner = fs::metadata(&config.postgres.data_directory).context("look at the data directory")?;
    let tls = config.tls_folder();
    let files = Files::in_folder(&tls);
    let now = WallTime::now();
    let authority = match (&args.ca_cert, &args.ca_key) {
        (Some(certificate), Some(key)) => taken_authority(certificate, key).advised()?,
        _ => Authority::create(&config.name, now).map_err(ConfigError::from).advised()?,
    };
    let issued = authority.issue(&config.name, Kind::Node, now).map_err(ConfigError::from).advised()?;
    authority.check(&issued, now).map_err(ConfigError::from).advised()?;

    let mut made = make_passage(&config.store, root)?;
    durable::create_folder(&tls)?;
    made.push(tls.clone());
    durable::write(&files.ca, authority.certificate_pem().as_bytes())?;
    durable::write(&files.certificate, issued.certificate.as_bytes())?;
    durable::write(&files.key, issued.key.as_bytes())?;
    made.extend([files.ca, files.certificate, files.key]);
    if args.ca_key.is_none() {
        let key = Files::authority_key(&tls);
        durable::write(&key, authority.key_pem().as_bytes())?;
        made.push(key);
    }
    if let Some(folder) = file.parent() {
        // A folder of root's own, such as /etc/walship: the node's user reads what is in it.
        let new = make_passage(folder, root)?;
        new.iter().filter(|_| root).try_for_each(|_| open_to_others(folder))?;
    }
    // Last: who finds a configuration finds all of it.
    durable::write(file, text.as_bytes())?;
    made.push(file.to_owned());
    if root {
        for path in made {
            chown(&path, Some(owner.uid()), Some(owner.gid()))
                .with_context(|| format!("give {} to the owner of the data directory", path.display()))?;
        }
    }
    Ok(())
}

fn taken_authority(certificate: &Path, key: &Path) -> Result<Authority, ConfigError> {
    Ok(Authority::from_pem(Pem::read(certificate)?, &Pem::read_key(key)?)?)
}

/// Makes a folder. What root makes above it is open for others to pass through, as the node's own user will have to.
/// The folder itself is given back if it is new, to be given to that user.
fn make_passage(folder: &Path, root: bool) -> anyhow::Result<Vec<PathBuf>> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|path| !path.exists()).collect();
    durable::create_folder(folder)?;
    for parent in missing.iter().skip(1).filter(|_| root) {
        open_to_others(parent)?;
    }
    Ok(missing.first().map(|new| new.to_path_buf()).into_iter().collect())
}

fn open_to_others(folder: &Path) -> Result<(), FileError> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
        .map_err(|e| FileError::new("open to others", folder, e))
}

fn default_store(name: &str, data_directory: &Path, root: bool) -> anyhow::Result<PathBuf> {
    if root {
        return Ok(Path::new("/var/lib/walship").join(name));
    }
    match (data_directory.parent(), data_directory.file_name()) {
        (Some(parent), Some(own)) => {
            let mut beside = own.to_owned();
            beside.push("-walship");
            Ok(parent.join(beside))
        }
        _ => Err(Fault::usage("there is no place beside the data directory", "Name one with `--store DIR`.")),
    }
}

/// How to connect to the server that runs on the data directory, as its `postmaster.pid` says (`miscadmin.h`).
pub(super) fn running_server(data_directory: &Path) -> Option<ConninfoText> {
    let text = fs::read_to_string(data_directory.join("postmaster.pid")).ok()?;
    let mut lines = text.lines().skip(3);
    let (port, socket_folder) = (lines.next()?.trim(), lines.next()?.trim());
    let quoted = socket_folder.replace('\\', "\\\\").replace('\'', "\\'");
    let host = if socket_folder.is_empty() { "localhost".to_owned() } else { format!("'{quoted}'") };
    format!("host={host} port={port} dbname=postgres").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Credentials;

    /// A folder with something that passes for a data directory.
    fn host() -> (tempfile::TempDir, Args) {
        let folder = tempfile::tempdir().unwrap();
        let data_directory = folder.path().join("data");
        fs::create_dir_all(data_directory.join("global")).unwrap();
        let control = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/control/15/pg_control");
        fs::copy(control, data_directory.join("global/pg_control")).unwrap();
        let overrides = Overrides {
            name: Some("db1".parse().unwrap()),
            data_directory: Some(data_directory),
            store: Some(folder.path().join("new/store")),
            advertise: Some("db1.example:7432".parse().unwrap()),
            config: Some(folder.path().join("etc/walship.toml")),
            ..Overrides::default()
        };
        let args = Args { overrides, ca_cert: None, ca_key: None };
        (folder, args)
    }

    fn data_directory(args: &Args) -> &Path {
        args.overrides.data_directory.as_deref().unwrap()
    }

    #[test]
    fn what_it_says_to_run_next_can_be_run() {
        use clap::Parser;
        let (_folder, args) = host();
        let (file, config) = make(&args, false).unwrap();
        let told = told(&args, &file, &config);
        let commands: Vec<&str> = told.split('`').skip(1).step_by(2).collect();
        assert_eq!(commands.len(), 2, "{told}");
        for command in commands {
            let parsed = crate::cli::Cli::try_parse_from(command.split(' '));
            assert!(parsed.is_ok(), "{command}: {}", parsed.unwrap_err());
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_node_is_made_once() {
        let (_folder, args) = host();
        let (file, config) = make(&args, false).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(Config::parse(&text, &file).unwrap(), config);
        let files = Files::in_folder(&config.tls_folder());
        let credentials = Credentials::load(&files, WallTime::now()).unwrap();
        assert_eq!(credentials.identity().name, "db1");
        let key = Files::authority_key(&config.tls_folder());
        assert!([&file, &files.key, &key].into_iter().all(|path| mode(path) == 0o600));
        assert_eq!(mode(&config.store), 0o700);

        let error = make(&args, false).unwrap_err();
        assert_eq!(Fault::outcome_of(&error), Outcome::Refused);
        assert_eq!(error.to_string(), format!("{} exists already", file.display()));
        fs::remove_file(&file).unwrap();
        let error = make(&args, false).unwrap_err();
        assert!(error.to_string().ends_with("tls/ca.pem exists already"), "{error}");
        assert!(!file.exists(), "refused means nothing changed");
    }

    #[test]
    fn what_is_no_data_directory_is_refused_before_anything_is_written() {
        let (folder, args) = host();
        let elsewhere = Some(folder.path().to_owned());
        let overrides = Overrides { data_directory: elsewhere, ..args.overrides.clone() };
        let error = make(&Args { overrides, ..args }, false).unwrap_err();
        assert_eq!(Fault::outcome_of(&error), Outcome::Usage);
        assert!(Fault::hint_of(&error).unwrap().contains("PG_VERSION"));
        let (folder, args) = host();
        let store = Some(data_directory(&args).join("store"));
        let overrides = Overrides { store, ..args.overrides.clone() };
        assert!(
            make(&Args { overrides, ..args }, false)
                .unwrap_err()
                .to_string()
                .contains("inside the data directory")
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn made_by_root_it_belongs_to_the_owner_of_the_data_directory() {
        if !rustix::process::geteuid().is_root() {
            return; // nothing to give away
        }
        let (_folder, args) = host();
        chown(data_directory(&args), Some(65534), Some(65534)).unwrap();
        let (file, config) = make(&args, true).unwrap();
        let files = Files::in_folder(&config.tls_folder());
        for path in [&file, &config.store, &config.tls_folder(), &files.key, &files.ca] {
            assert_eq!(fs::metadata(path).unwrap().uid(), 65534, "{}", path.display());
        }
        assert_eq!(mode(config.store.parent().unwrap()), 0o755);
        assert_eq!(mode(file.parent().unwrap()), 0o755, "its reader is another user than its maker");
        assert_eq!(mode(&file), 0o600);
    }

    #[test]
    fn another_authority_is_used_and_its_key_stays_where_it_is() {
        let (folder, args) = host();
        let authority = Authority::create("corp", WallTime::now()).unwrap();
        let (certificate, key) = (folder.path().join("corp.pem"), folder.path().join("corp.key"));
        durable::write(&certificate, authority.certificate_pem().as_bytes()).unwrap();
        durable::write(&key, authority.key_pem().as_bytes()).unwrap();
        let strange = folder.path().join("strange.key");
        let other = Authority::create("other", WallTime::now()).unwrap();
        durable::write(&strange, other.key_pem().as_bytes()).unwrap();

        let wrong = Args { ca_cert: Some(certificate.clone()), ca_key: Some(strange), ..args.clone() };
        let error = make(&wrong, false).unwrap_err();
        assert!(error.to_string().contains("strange.key does not belong to the certificate"), "{error}");
        assert!(!folder.path().join("new").exists());

        let args = Args { ca_cert: Some(certificate), ca_key: Some(key), ..args };
        let (_, config) = make(&args, false).unwrap();
        let files = Files::in_folder(&config.tls_folder());
        assert!(Credentials::load(&files, WallTime::now()).is_ok());
        assert!(!Files::authority_key(&config.tls_folder()).exists());
    }

    #[test]
    fn a_running_servers_socket_is_found() {
        let (_folder, args) = host();
        let pid_file = "4711\n/data\n1795412827\n5433\n/tmp/o'dd\nlocalhost\n 12345 1\nready   \n";
        fs::write(data_directory(&args).join("postmaster.pid"), pid_file).unwrap();
        let (_, config) = make(&args, false).unwrap();
        assert_eq!(config.postgres.conninfo.0, "host='/tmp/o\\'dd' port=5433 dbname=postgres");
    }

    #[test]
    fn the_usual_places() {
        let data = Path::new("/var/lib/postgresql/15/main");
        assert_eq!(default_store("db1", data, true).unwrap(), Path::new("/var/lib/walship/db1"));
        assert_eq!(
            default_store("db1", data, false).unwrap(),
            Path::new("/var/lib/postgresql/15/main-walship")
        );
        assert!(default_store("db1", Path::new("/"), false).is_err());
    }
}
