//! The join bundle: what `walship invite` gives to a new node or reader, in one file.
//!
//! It holds a private key, so it is to be moved like one, and deleted once used. There is no register of bundles: the
//! first node that comes with a certificate binds it to its store.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Address, ConfigError};
use crate::clock::WallTime;
use crate::durable::{self, FileError};
use crate::tls::{self, Credentials, Identity, Issued, Pem};

/// The version of the format.
const VERSION: u32 = 1;

/// The largest bundle that is read.
const LIMIT_BYTES: u64 = 1 << 20;

/// A valid bundle.
pub struct Bundle {
    /// Whom it is for.
    pub identity: Identity,
    /// Where the cluster is reached, the best first.
    pub addresses: Vec<Address>,
    /// The cluster's `system_identifier`, when it was known.
    pub system_identifier: Option<u64>,
    certificate: String,
    key: String,
    authority: String,
    origin: String,
}

/// The file. JSON, because PEM has many lines; unknown fields are ignored, so that a newer `invite` may say more.
#[derive(Serialize, Deserialize)]
struct Form {
    walship_join_bundle: u32,
    name: String,
    kind: String,
    addresses: Vec<String>,
    system_identifier: Option<String>,
    certificate: String,
    key: String,
    ca: String,
}

impl Bundle {
    /// A new bundle for what a CA just issued; checked as its reader will.
    pub fn new(
        issued: Issued,
        authority: String,
        addresses: Vec<Address>,
        system_identifier: Option<u64>,
    ) -> Result<Bundle, ConfigError> {
        let origin = "the new bundle".to_owned();
        let Issued { certificate, key } = issued;
        let identity = credentials(&origin, &authority, &certificate, &key)?.identity().clone();
        Ok(Bundle { identity, addresses, system_identifier, certificate, key, authority, origin })
    }

    /// Reads and checks a bundle; `-` is the standard input. Blocks.
    pub fn read(path: &Path) -> Result<Bundle, ConfigError> {
        let failed = |e| ConfigError::BundleFile(FileError::new("read", path, e));
        let mut text = String::new();
        if path == Path::new("-") {
            std::io::stdin().take(LIMIT_BYTES).read_to_string(&mut text).map_err(failed)?;
            return Bundle::parse(&text, "the bundle on the standard input");
        }
        let file = File::open(path).map_err(failed)?;
        file.take(LIMIT_BYTES).read_to_string(&mut text).map_err(failed)?;
        Bundle::parse(&text, &path.display().to_string())
    }

    /// Checks a bundle: it is whole, fits together, and is valid now.
    pub fn parse(text: &str, origin: &str) -> Result<Bundle, ConfigError> {
        let wrong = |reason: String| ConfigError::Bundle { origin: origin.to_owned(), reason };
        // The version first: another one may have any shape.
        #[derive(Deserialize)]
        struct Version {
            walship_join_bundle: u32,
        }
        let version: Version = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        if version.walship_join_bundle != VERSION {
            return Err(wrong(format!("it has version {}, not {VERSION}", version.walship_join_bundle)));
        }
        let form: Form = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        let addresses: Result<Vec<Address>, _> = form.addresses.iter().map(|text| text.parse()).collect();
        let addresses = addresses.map_err(|e| wrong(e.to_string()))?;
        if addresses.is_empty() {
            return Err(wrong("it names no address".to_owned()));
        }
        let identifier = form.system_identifier.map(|text| text.parse::<u64>()).transpose();
        let system_identifier =
            identifier.map_err(|_| wrong("its system identifier is no number".to_owned()))?;
        let identity = credentials(origin, &form.ca, &form.certificate, &form.key)?.identity().clone();
        if identity.name != form.name || identity.kind.to_string() != form.kind {
            return Err(wrong("its certificate was made for someone else".to_owned()));
        }
        Ok(Bundle {
            identity,
            addresses,
            system_identifier,
            certificate: form.certificate,
            key: form.key,
            authority: form.ca,
            origin: origin.to_owned(),
        })
    }

    /// The file's content.
    pub fn render(&self) -> Result<String, ConfigError> {
        let form = Form {
            walship_join_bundle: VERSION,
            name: self.identity.name.clone(),
            kind: self.identity.kind.to_string(),
            addresses: self.addresses.iter().map(Address::to_string).collect(),
            system_identifier: self.system_identifier.map(|number| number.to_string()),
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            ca: self.authority.clone(),
        };
        let text = serde_json::to_string_pretty(&form);
        let text =
            text.map_err(|e| ConfigError::Bundle { origin: self.origin.clone(), reason: e.to_string() })?;
        Ok(text + "\n")
    }

    /// What the holder shows to its peers.
    pub fn credentials(&self) -> Result<Credentials, ConfigError> {
        credentials(&self.origin, &self.authority, &self.certificate, &self.key)
    }

    /// Whether the holder may become a member.
    pub fn is_for_a_node(&self) -> bool {
        self.identity.is_node()
    }

    /// Writes keys and certificates to where a node has them. Blocks.
    pub fn install(&self, files: &tls::Files) -> Result<(), ConfigError> {
        if let Some(folder) = files.key.parent() {
            durable::create_folder(folder)?;
        }
        durable::write(&files.ca, self.authority.as_bytes())?;
        durable::write(&files.certificate, self.certificate.as_bytes())?;
        // Last, for a node without a key has visibly not joined yet.
        durable::write(&files.key, self.key.as_bytes())?;
        Ok(())
    }
}

/// True when others than the owner can read the file, which holds a key: worth a warning.
pub fn is_open_to_others(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o077 != 0)
}

fn credentials(origin: &str, ca: &str, certificate: &str, key: &str) -> Result<Credentials, ConfigError> {
    let pem = |what: &str, text: &str| Pem::new(format!("{what} in {origin}"), text);
    let (ca, certificate) = (pem("the CA certificate", ca), pem("the certificate", certificate));
    Credentials::from_pem(&ca, &certificate, &pem("the key", key), WallTime::now())
        .map_err(|source| ConfigError::BundleTls { origin: origin.to_owned(), source })
}
