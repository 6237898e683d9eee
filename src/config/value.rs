//! The values that a key, a variable or a flag may have: each is checked where it is read, once.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use bytesize::ByteSize;

use crate::pg::Conninfo;
use crate::pg::conninfo::ConninfoError;
use crate::tls::{NameError, check_name};

/// A node's name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Name(pub String);

/// `host:port`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    /// A name or an address; an IPv6 address without its brackets.
    pub host: String,
    /// The port; zero only for listening on any.
    pub port: u16,
}

/// An absolute path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Absolute(pub PathBuf);

/// A number of bytes, written like `64MiB`; never zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size(pub u64);

/// The name of a replication slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotName(pub String);

/// A connection string that can be parsed. Kept as text, because what it leaves out depends on who runs.
#[derive(Clone, PartialEq, Eq)]
pub struct ConninfoText(pub String);

/// A text that a key cannot have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ValueError {
    /// See there.
    #[error(transparent)]
    Name(#[from] NameError),
    /// See there.
    #[error(transparent)]
    Conninfo(#[from] ConninfoError),
    /// Not `host:port`.
    #[error("`{0}` is not an address: write it like db1.example:7432 or [::1]:7432")]
    Address(String),
    /// A relative path.
    #[error("`{0}` is not an absolute path")]
    Relative(String),
    /// Not a size.
    #[error("`{0}` is not a size: write it like 64MiB or 2GiB")]
    Size(String),
    /// Not a slot's name.
    #[error("`{0}` cannot be a slot's name: it takes 1 to 63 of a-z, 0-9 and _")]
    Slot(String),
}

impl FromStr for Name {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Name, ValueError> {
        check_name(text)?;
        Ok(Name(text.to_owned()))
    }
}

impl FromStr for Address {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Address, ValueError> {
        let wrong = || ValueError::Address(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().ok().map(|_| inner),
            None => Some(host).filter(|host| !host.is_empty() && host.chars().all(plain)),
        };
        Ok(Address { host: host.ok_or_else(wrong)?.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for Absolute {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Absolute, ValueError> {
        let path = PathBuf::from(text);
        if path.is_absolute() { Ok(Absolute(path)) } else { Err(ValueError::Relative(text.to_owned())) }
    }
}

impl fmt::Display for Size {
    /// In the largest unit that says it exactly, so that it reads back as the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        match units.into_iter().find(|(_, bits)| self.0 > 0 && self.0.trailing_zeros() >= *bits) {
            Some((unit, bits)) => write!(f, "{}{unit}", self.0 >> bits),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl FromStr for Size {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Size, ValueError> {
        let size = text.parse::<ByteSize>().ok().map(|size| size.as_u64()).filter(|&bytes| bytes > 0);
        size.map(Size).ok_or_else(|| ValueError::Size(text.to_owned()))
    }
}

impl FromStr for SlotName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<SlotName, ValueError> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        let valid = (1..=63).contains(&text.len()) && text.bytes().all(plain);
        if valid { Ok(SlotName(text.to_owned())) } else { Err(ValueError::Slot(text.to_owned())) }
    }
}

impl FromStr for ConninfoText {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<ConninfoText, ValueError> {
        match Conninfo::parse(text) {
            // Who runs the daemon need not be who reads the file now.
            Ok(_) | Err(ConninfoError::NoUser) => Ok(ConninfoText(text.to_owned())),
            Err(e) => Err(e.into()),
        }
    }
}

impl fmt::Debug for ConninfoText {
    /// It may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConninfoText(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for text in ["db1.example:7432", "127.0.0.1:0", "[::1]:7432", "a_b:1"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in
            ["", ":", "db1", "db1:", ":7432", "db1:65536", "::1:7432", "[x]:1", "http://db1:1", "a b:1"]
        {
            assert_eq!(text.parse::<Address>(), Err(ValueError::Address(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("64MiB", 64 << 20), ("2GiB", 2 << 30), ("1 GB", 1_000_000_000), ("512", 512)] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "0", "-1", "64MiBs", "much"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_connection_string_keeps_its_password_to_itself() {
        let text: ConninfoText = "host=/run/postgresql user=walship password=secret".parse().unwrap();
        assert!(!format!("{text:?}").contains("secret"));
        let error = "host=/run/postgresql passwort=secret".parse::<ConninfoText>().unwrap_err();
        assert!(error.to_string().contains("`passwort`") && !error.to_string().contains("secret"), "{error}");
    }
}
