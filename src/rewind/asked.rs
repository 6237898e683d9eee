//! What pg_rewind says to its source, and nothing else: its statements, word for word, and paths in the data directory.
//! Pure.
//!
//! A node's certificate lets it read the data directory, not run SQL; the role behind the session may be a superuser's.
//! Statements that a later pg_rewind adds are refused before it has changed anything.

use bytes::{Buf, Bytes, BytesMut};

use crate::pg::message::{MessageError, RawMessage};

/// The statements of PostgreSQL 14 to 18 (`libpq_source.c`), with single spaces.
const STATEMENTS: [&str; 11] = [
    "SET statement_timeout = 0",
    "SET lock_timeout = 0",
    "SET idle_in_transaction_session_timeout = 0",
    "SET transaction_timeout = 0",
    "SET default_transaction_read_only = on",
    "SELECT pg_catalog.set_config('search_path', '', false);",
    "SHOW full_page_writes",
    "SELECT pg_current_wal_insert_lsn()",
    "SELECT pg_read_binary_file($1)",
    "SELECT path, begin, pg_read_binary_file(path, begin, len, true) AS chunk FROM unnest ($1::text[], $2::int8[], \
     $3::int4[]) as x(path, begin, len)",
    "WITH RECURSIVE files (path, filename, size, isdir) AS ( SELECT '' AS path, filename, size, isdir FROM (SELECT \
     pg_ls_dir('.', true, false) AS filename) AS fn, pg_stat_file(fn.filename, true) AS this UNION ALL SELECT \
     parent.path || parent.filename || '/' AS path, fn, this.size, this.isdir FROM files AS parent, \
     pg_ls_dir(parent.path || parent.filename, true, false) AS fn, pg_stat_file(parent.path || parent.filename || '/' \
     || fn, true) AS this WHERE parent.isdir = 't' ) SELECT path || filename, size, isdir, \
     pg_tablespace_location(pg_tablespace.oid) AS link_target FROM files LEFT OUTER JOIN pg_tablespace ON files.path = \
     'pg_tblspc/' AND oid::text = files.filename",
];

/// Why something is not passed on.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It is none of pg_rewind's statements.
    #[error("pg_rewind does not say this, or this version of walship does not know it: {0:.200}")]
    Statement(String),
    /// A message that has no place here.
    #[error("pg_rewind sends no message '{}'", .0.escape_ascii())]
    Message(u8),
    /// A file outside of the data directory.
    #[error("no file of the data directory: {0:.200}")]
    Path(String),
    /// Parameters that are not as libpq sends them.
    #[error("the parameters of a statement are not as pg_rewind sends them")]
    Parameters,
    /// No message at all.
    #[error(transparent)]
    Protocol(#[from] MessageError),
}

/// Takes a client's bytes as they come, and lets whole messages through that pg_rewind would send.
#[derive(Debug, Default)]
pub struct Gate {
    buffer: BytesMut,
}

impl Gate {
    /// What may go on to the server of what has come so far.
    pub fn admit(&mut self, bytes: &[u8]) -> Result<Bytes, Refused> {
        self.buffer.extend_from_slice(bytes);
        let mut admitted = BytesMut::new();
        while let Some(message) = RawMessage::take(&mut self.buffer)? {
            check(&message)?;
            message.encode(&mut admitted);
        }
        Ok(admitted.freeze())
    }
}

fn check(message: &RawMessage) -> Result<(), Refused> {
    let mut body = message.body.clone();
    match message.tag {
        b'Q' => check_statement(&mut body),
        b'P' => {
            take_text(&mut body)?;
            check_statement(&mut body)
        }
        b'B' => check_parameters(&mut body),
        // Describe, Execute, Sync, Close, Flush, Terminate.
        b'D' | b'E' | b'S' | b'C' | b'H' | b'X' => Ok(()),
        tag => Err(Refused::Message(tag)),
    }
}

fn check_statement(body: &mut Bytes) -> Result<(), Refused> {
    let text = take_text(body)?;
    let plain = text.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    if STATEMENTS.contains(&plain.as_str()) { Ok(()) } else { Err(Refused::Statement(plain)) }
}

/// One parameter is a path; three are a list of paths and two of numbers.
fn check_parameters(body: &mut Bytes) -> Result<(), Refused> {
    take_text(body)?;
    take_text(body)?;
    // Formats: text, which is what none means.
    for _ in 0..take_u16(body)? {
        if take_u16(body)? != 0 {
            return Err(Refused::Parameters);
        }
    }
    let count = take_u16(body)?;
    let mut parameters = Vec::new();
    for _ in 0..count.min(4) {
        let length = body.try_get_u32().map_err(|_| Refused::Parameters)? as usize;
        let value = body.get(..length).ok_or(Refused::Parameters)?;
        parameters.push(String::from_utf8(value.to_vec()).map_err(|_| Refused::Parameters)?);
        body.advance(length);
    }
    match &parameters[..] {
        [] => Ok(()),
        [path] => check_path(path),
        [paths, _, _] => list_of(paths)?.iter().try_for_each(|path| check_path(path)),
        _ => Err(Refused::Parameters),
    }
}

/// Relative, and staying where it begins.
fn check_path(path: &str) -> Result<(), Refused> {
    let goes_out = path.starts_with('/') || path.split('/').any(|part| part == "..");
    if goes_out { Err(Refused::Path(path.to_owned())) } else { Ok(()) }
}

/// The elements of an array of text, each of them quoted: `{"a","b\"c"}`.
fn list_of(text: &str) -> Result<Vec<String>, Refused> {
    let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).ok_or(Refused::Parameters)?;
    let (mut elements, mut characters) = (Vec::new(), inner.chars());
    while let Some(first) = characters.next() {
        let mut element = String::new();
        if first != '"' {
            return Err(Refused::Parameters);
        }
        loop {
            match characters.next().ok_or(Refused::Parameters)? {
                '"' => break,
                '\\' => element.push(characters.next().ok_or(Refused::Parameters)?),
                plain => element.push(plain),
            }
        }
        elements.push(element);
        if !matches!(characters.next(), None | Some(',')) {
            return Err(Refused::Parameters);
        }
    }
    Ok(elements)
}

fn take_text(body: &mut Bytes) -> Result<String, Refused> {
    let end = body.iter().position(|byte| *byte == 0).ok_or(Refused::Parameters)?;
    let text = String::from_utf8(body[..end].to_vec()).map_err(|_| Refused::Parameters)?;
    body.advance(end + 1);
    Ok(text)
}

fn take_u16(body: &mut Bytes) -> Result<u16, Refused> {
    body.try_get_u16().map_err(|_| Refused::Parameters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BufMut;
    use proptest::prelude::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        RawMessage { tag, body: Bytes::copy_from_slice(body) }.encode(&mut out);
        out.to_vec()
    }

    fn query(text: &str) -> Vec<u8> {
        message(b'Q', format!("{text}\0").as_bytes())
    }

    fn bind(format: Option<u16>, parameters: &[&str]) -> Vec<u8> {
        let mut body = BytesMut::from(&b"\0fetch_chunks_stmt\0"[..]);
        body.put_u16(format.map_or(0, |_| 1));
        format.into_iter().for_each(|format| body.put_u16(format));
        body.put_u16(parameters.len() as u16);
        for parameter in parameters {
            body.put_u32(parameter.len() as u32);
            body.put_slice(parameter.as_bytes());
        }
        body.put_slice(&[0, 1, 0, 1]);
        message(b'B', &body)
    }

    #[test]
    fn what_pg_rewind_says_passes_as_it_was_said_however_it_is_cut() {
        let fetch = "SELECT path, begin,\n  pg_read_binary_file(path, begin, len, true) AS chunk\nFROM unnest ($1::text[], \
                     $2::int8[], $3::int4[]) as x(path, begin, len)";
        let all = [
            query("SHOW full_page_writes"),
            message(b'P', format!("fetch_chunks_stmt\0{fetch}\0\0\0").as_bytes()),
            bind(None, &["global/pg_control"]),
            bind(None, &[r#"{"base/1/\"2","PG_VERSION"}"#, "{0,1}", "{1,2}"]),
            message(b'S', b""),
        ]
        .concat();
        for piece in [1, 7, 64, all.len()] {
            let mut gate = Gate::default();
            let passed: Vec<u8> =
                all.chunks(piece).flat_map(|bytes| gate.admit(bytes).unwrap().to_vec()).collect();
            assert!(passed == all, "in pieces of {piece}");
        }
    }

    #[test]
    fn nothing_else_passes() {
        let refused = |bytes: &[u8]| Gate::default().admit(bytes).unwrap_err().to_string();
        for text in [
            "COPY t FROM PROGRAM 'id'",
            "SELECT pg_read_binary_file('/etc/passwd')",
            "SHOW full_page_writes; DROP TABLE t",
            "SET default_transaction_read_only = off",
        ] {
            assert!(refused(&query(text)).contains(text), "{text}");
        }
        assert!(refused(&message(b'F', b"\0\0\0\x01")).contains("'F'"), "a function's call");
        for path in ["/etc/passwd", "../server.key", "base/../../x"] {
            assert!(refused(&bind(None, &[path])).contains(path), "{path}");
            let escaped = format!("{{\"PG_VERSION\",\"\\{path}\"}}");
            assert!(refused(&bind(None, &[&escaped, "{}", "{}"])).contains(path), "{path}");
        }
        for list in ["{/etc/passwd}", "/etc/passwd", "{\"a\"/x}", "{ \"/a\"}", "{\"a"] {
            assert!(refused(&bind(None, &[list, "{}", "{}"])).contains("parameters"), "{list}");
        }
        assert!(refused(&bind(Some(1), &["x"])).contains("parameters"), "binary");
        assert!(refused(&bind(None, &["a", "b"])).contains("parameters"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..200), tag in prop::sample::select(b"QPBX".to_vec())) {
            let _ = Gate::default().admit(&bytes);
            let _ = Gate::default().admit(&message(tag, &bytes));
        }
    }
}
