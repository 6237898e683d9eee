//! `walship invite`: what the next node or a reader needs, in one file.

use std::fs;
use std::io::{Write, stdout};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;

use anyhow::Context;
use rustix::fs::{FileType, Mode};

use super::{exit, output};
use crate::clock::WallTime;
use crate::config::{Address, Bundle, Config, ConfigError, Name};
use crate::durable;
use crate::fault::{Advised, Fault, Outcome, WithFault};
use crate::pg::control::ControlFile;
use crate::tls::{Authority, Files, Kind, Pem};

/// Make a bundle for a new node, or for a reader that may take backups and ask
///
/// The bundle holds a private key: move it like one, and delete it once it is used. `walship standby --join BUNDLE`
/// and `walship basebackup --bundle BUNDLE` take it. It goes to the standard output, which is made readable by its owner
/// alone when it is a file.
///
/// Inviting a name again makes a certificate that replaces the one before, which is also how one is renewed. With the
/// name of this node itself it is put in place at once; `walship run` and its like take it up on SIGHUP.
#[derive(clap::Args, Clone, Debug)]
#[command(after_long_help = exit::explained(&[
    (0, "the bundle is made"),
    (1, "it failed"),
    (2, "wrong usage, or the CA's key is not on this host"),
    (3, "refused and nothing changed: the output file exists"),
], &[
    ("For a standby:", "walship invite db2 > db2.join"),
    ("For a host that takes backups:", "walship invite reports --reader -o reports.bundle"),
    ("Renew the certificate of this node, db1, and have the sidecar read it:",
     "walship invite db1\n    systemctl reload walship"),
]))]
pub struct Args {
    /// The name of the new node or reader: 1 to 63 of a-z, 0-9, - and _.
    #[arg(id = "invited", value_name = "NAME")]
    pub name: Name,
    /// It may take backups and ask, but never become a member.
    #[arg(long)]
    pub reader: bool,
    /// Where it will reach the cluster, instead of the `advertise` of this node; may be repeated.
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Vec<Address>,
    /// Write the bundle to this new file instead.
    #[arg(short = 'o', long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The CA's private key, when `walship init` was given one.
    #[arg(long, value_name = "FILE")]
    pub ca_key: Option<PathBuf>,
}

/// Makes the bundle, or renews this node's own certificate. Blocks.
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    if args.name.0 == config.name {
        let expires = renew(args, config)?;
        return output::print(&format!(
            "Renewed the certificate of {}, this node, until {}. Send its sidecar a SIGHUP.\n",
            config.name,
            expires.rfc3339()
        ));
    }
    let bundle = make(args, config)?;
    let Some(path) = &args.output else {
        close_to_others(stdout()).context("keep others from reading the bundle")?;
        return output::print(&bundle);
    };
    let mut file = durable::create_new(path)
        .hint("Name a file that does not exist, in a folder that does.")
        .outcome(Outcome::Refused)?;
    file.write_all(bundle.as_bytes()).with_context(|| format!("write {}", path.display()))?;
    durable::sync_data(&file, path)?;
    Ok(())
}

/// The bundle's text.
fn make(args: &Args, config: &Config) -> anyhow::Result<String> {
    let authority = authority(args, config).advised()?;
    let kind = if args.reader { Kind::Reader } else { Kind::Node };
    let issued = authority.issue(&args.name.0, kind, WallTime::now()).map_err(ConfigError::from).advised()?;
    let addresses = match args.address.is_empty() {
        true => vec![config.advertise.clone()],
        false => args.address.clone(),
    };
    // Lets the new node notice early that it asks the wrong cluster; not worth failing for.
    let control = ControlFile::read(&config.postgres.data_directory).ok();
    let identifier = control.map(|control| control.system_identifier);
    Bundle::new(issued, authority.certificate_pem(), addresses, identifier)
        .and_then(|bundle| bundle.render())
        .advised()
}

/// Gives this node a new certificate and key; until when they last.
fn renew(args: &Args, config: &Config) -> anyhow::Result<WallTime> {
    if args.reader || args.output.is_some() {
        return Err(Fault::usage(
            format!("{} is this node's own name, whose certificate is renewed in place", config.name),
            "Give another name, or leave `--reader` and `--output` out.",
        ));
    }
    let authority = authority(args, config).advised()?;
    let now = WallTime::now();
    let issued = authority.issue(&config.name, Kind::Node, now).map_err(ConfigError::from).advised()?;
    let checked = authority.check(&issued, now).map_err(ConfigError::from).advised()?;
    let folder = config.tls_folder();
    let files = Files::in_folder(&folder);
    // Killed in between, the two do not fit, which is said at the next start; running this again mends it.
    durable::write(&files.key, issued.key.as_bytes())?;
    durable::write(&files.certificate, issued.certificate.as_bytes())?;
    if rustix::process::geteuid().is_root() {
        let owner = fs::metadata(&folder).with_context(|| format!("look at {}", folder.display()))?;
        for path in [&files.key, &files.certificate] {
            chown(path, Some(owner.uid()), Some(owner.gid()))
                .with_context(|| format!("give {} to the owner of the store", path.display()))?;
        }
    }
    Ok(checked.identity().expires)
}

fn authority(args: &Args, config: &Config) -> Result<Authority, ConfigError> {
    let folder = config.tls_folder();
    let key = args.ca_key.clone().unwrap_or_else(|| Files::authority_key(&folder));
    if !key.exists() {
        return Err(ConfigError::NoAuthority { key });
    }
    Ok(Authority::from_pem(Pem::read(&Files::in_folder(&folder).ca)?, &Pem::read_key(&key)?)?)
}

/// Takes everyone else's rights from the file that the standard output was redirected to, before a key goes there.
fn close_to_others(out: impl AsFd) -> rustix::io::Result<()> {
    let found = rustix::fs::fstat(&out)?;
    let is_file = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
    if is_file && found.st_mode & 0o077 != 0 {
        rustix::fs::fchmod(&out, Mode::RUSR | Mode::WUSR)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use crate::config::{Overrides, Template};
    use crate::tls::Credentials;

    /// A node as `init` leaves it.
    fn node() -> (tempfile::TempDir, Config) {
        let folder = tempfile::tempdir().unwrap();
        let chosen = Overrides {
            name: Some("db1".parse().unwrap()),
            store: Some(folder.path().join("store")),
            data_directory: Some(folder.path().join("data")),
            advertise: Some("db1.example:7432".parse().unwrap()),
            ..Overrides::default()
        };
        let template = Template { chosen, start_command: None };
        let (_, config) = template.render(Path::new("walship.toml")).unwrap();
        let control = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/control/15/pg_control");
        fs::create_dir_all(folder.path().join("data/global")).unwrap();
        fs::copy(control, folder.path().join("data/global/pg_control")).unwrap();
        let authority = Authority::create("db1", WallTime::now()).unwrap();
        let issued = authority.issue("db1", Kind::Node, WallTime::now()).unwrap();
        let files = Files::in_folder(&config.tls_folder());
        durable::create_folder(&config.tls_folder()).unwrap();
        durable::write(&files.ca, authority.certificate_pem().as_bytes()).unwrap();
        durable::write(&files.certificate, issued.certificate.as_bytes()).unwrap();
        durable::write(&files.key, issued.key.as_bytes()).unwrap();
        durable::write(&Files::authority_key(&config.tls_folder()), authority.key_pem().as_bytes()).unwrap();
        (folder, config)
    }

    fn args(name: &str) -> Args {
        Args { name: name.parse().unwrap(), reader: false, address: Vec::new(), output: None, ca_key: None }
    }

    #[test]
    fn a_bundle_holds_what_the_next_node_needs() {
        let (folder, config) = node();
        let path = folder.path().join("db2.join");
        run(&Args { output: Some(path.clone()), ..args("db2") }, &config).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let bundle = Bundle::read(&path).unwrap();
        assert!(bundle.is_for_a_node() && bundle.system_identifier.is_some());
        assert_eq!(
            (bundle.identity.name.as_str(), &bundle.addresses),
            ("db2", &vec![config.advertise.clone()])
        );

        let again = run(&Args { output: Some(path.clone()), ..args("db2") }, &config).unwrap_err();
        assert_eq!(Fault::outcome_of(&again), Outcome::Refused);
        let text = make(&Args { reader: true, ..args("backup") }, &config).unwrap();
        assert!(!Bundle::parse(&text, "x").unwrap().is_for_a_node());
    }

    #[test]
    fn a_node_renews_its_own_certificate_in_place() {
        let (_folder, config) = node();
        let files = Files::in_folder(&config.tls_folder());
        let before = Credentials::load(&files, WallTime::now()).unwrap();
        renew(&args("db1"), &config).unwrap();
        let after = Credentials::load(&files, WallTime::now()).unwrap();
        assert!(after.identity().serial > before.identity().serial);
        assert!(run(&Args { reader: true, ..args("db1") }, &config).is_err());
    }

    #[test]
    fn renewed_by_root_it_stays_the_owners() {
        if !rustix::process::geteuid().is_root() {
            return; // nothing to give away
        }
        let (_folder, config) = node();
        chown(config.tls_folder(), Some(65534), Some(65534)).unwrap();
        renew(&args("db1"), &config).unwrap();
        let files = Files::in_folder(&config.tls_folder());
        for path in [&files.key, &files.certificate] {
            assert_eq!(fs::metadata(path).unwrap().uid(), 65534, "{}", path.display());
        }
    }

    #[test]
    fn only_where_the_authoritys_key_is() {
        let (folder, config) = node();
        let (key, elsewhere) = (Files::authority_key(&config.tls_folder()), folder.path().join("ca.key"));
        fs::rename(&key, &elsewhere).unwrap();
        let error = make(&args("db2"), &config).unwrap_err();
        assert_eq!(error.to_string(), format!("the CA's private key {} is not here", key.display()));
        assert!(make(&Args { ca_key: Some(elsewhere), ..args("db2") }, &config).is_ok());
        let other = Authority::create("x", WallTime::now()).unwrap();
        durable::write(&key, other.key_pem().as_bytes()).unwrap();
        let error = make(&args("db2"), &config).unwrap_err();
        assert!(error.to_string().contains("ca.key does not belong to the certificate"), "{error}");
    }

    #[test]
    fn a_file_that_the_bundle_goes_to_is_closed_to_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        close_to_others(fs::File::options().write(true).open(&path).unwrap()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
