//! Who a certificate is for.
//!
//! A node's carries the DNS names `<name>.node.walship` and `node.walship`, a reader's `<name>.reader.walship` and
//! `reader.walship`. The serial number is the time of issue in microseconds, so a later certificate has a greater
//! one.

use std::fmt;

use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::clock::WallTime;

const NODE_SUFFIX: &str = ".node.walship";
const READER_SUFFIX: &str = ".reader.walship";

/// What a peer's certificate says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The node's or reader's name.
    pub name: String,
    /// What it may be.
    pub kind: Kind,
    /// Time of issue in microseconds since 1970: of two certificates of one name the greater one counts.
    pub serial: u64,
    /// When the certificate expires.
    pub expires: WallTime,
}

/// What a certificate allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// To be a member: serve, follow, acknowledge, vote.
    Node,
    /// To back up and ask.
    Reader,
}

impl Kind {
    /// The DNS names for a certificate of this kind.
    pub(super) fn dns_names(self, name: &str) -> [String; 2] {
        let suffix = match self {
            Kind::Node => NODE_SUFFIX,
            Kind::Reader => READER_SUFFIX,
        };
        [format!("{name}{suffix}"), suffix[1..].to_owned()]
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Node => "node",
            Kind::Reader => "reader",
        })
    }
}

/// A name that no node may have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{name}` cannot be a node's name: it takes 1 to 63 of a-z, 0-9, - and _, a letter or digit at both ends"
)]
pub struct NameError {
    name: String,
}

/// Checks the name of a node or reader: it is a DNS label, for it stands in a certificate and in messages.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    let valid = bytes.len() <= 63
        && bytes.iter().all(|&b| plain(b) || b == b'-' || b == b'_')
        && bytes.first().copied().is_some_and(plain)
        && bytes.last().copied().is_some_and(plain);
    if valid { Ok(()) } else { Err(NameError { name: name.chars().take(80).collect() }) }
}

impl Identity {
    /// Whether it is a node's, which may vote, order and read what a copy has.
    pub fn is_node(&self) -> bool {
        self.kind == Kind::Node
    }

    /// Reads a certificate, which need not be trustworthy.
    pub(super) fn of_certificate(der: &[u8]) -> Result<Identity, String> {
        let certificate = Certificate::from_der(der).map_err(|e| format!("it cannot be read: {e}"))?;
        let tbs = &certificate.tbs_certificate;
        let (_, names) = tbs
            .get::<SubjectAltName>()
            .map_err(|e| format!("its names cannot be read: {e}"))?
            .ok_or("it has no DNS names")?;
        let mut found = names.0.iter().filter_map(|name| match name {
            GeneralName::DnsName(name) => kind_and_name(name.as_str()),
            _ => None,
        });
        let (kind, name) = found.next().ok_or("it was not made for a walship node or reader")?;
        if found.next().is_some() {
            return Err("it carries several nodes' names".to_owned());
        }
        check_name(name).map_err(|e| e.to_string())?;
        let serial = tbs.serial_number.as_bytes();
        let serial =
            serial.iter().try_fold(0u64, |value, &byte| Some(value.checked_mul(256)? + u64::from(byte)));
        let serial = serial.ok_or("its serial number was not made by walship")?;
        Ok(Identity { name: name.to_owned(), kind, serial, expires: expiry_of(&certificate) })
    }
}

fn kind_and_name(dns: &str) -> Option<(Kind, &str)> {
    let node = dns.strip_suffix(NODE_SUFFIX).map(|name| (Kind::Node, name));
    node.or_else(|| dns.strip_suffix(READER_SUFFIX).map(|name| (Kind::Reader, name)))
}

/// When any certificate expires.
pub(super) fn expiry(der: &[u8]) -> Result<WallTime, String> {
    Certificate::from_der(der).map(|c| expiry_of(&c)).map_err(|e| format!("it cannot be read: {e}"))
}

fn expiry_of(certificate: &Certificate) -> WallTime {
    let since_1970 = certificate.tbs_certificate.validity.not_after.to_unix_duration();
    WallTime { unix_micros: i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "db1", "rack-3_b", "0", &"x".repeat(63)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "DB1", "-a", "a-", "_a", "a.b", "a b", "ä", &"x".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
