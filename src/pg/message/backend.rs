//! What a server sends.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::{COPY_DATA, Fields, MessageError, RawMessage, Result, put_message, put_string};

/// A message of the server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Backend {
    /// A step of authentication.
    Authentication(Authentication),
    /// A setting of the session, such as `server_version`.
    ParameterStatus {
        /// The setting.
        name: String,
        /// Its value.
        value: String,
    },
    /// What a cancel request must name.
    BackendKeyData {
        /// The server process.
        process_id: i32,
        /// A secret.
        secret_key: i32,
    },
    /// The server waits for the next command.
    ReadyForQuery {
        /// `I`: not in a transaction, `T`: in one, `E`: in a failed one.
        status: u8,
    },
    /// The columns of the rows that follow.
    RowDescription(Vec<Column>),
    /// A row; `None` is NULL.
    DataRow(Vec<Option<Bytes>>),
    /// A command is done; the text is its tag.
    CommandComplete(String),
    /// An error; a FATAL one ends the connection.
    ErrorResponse(ServerMessage),
    /// Something that is worth saying.
    NoticeResponse(ServerMessage),
    /// Both sides may now send `CopyData`.
    CopyBothResponse,
    /// A piece of a copy stream; in replication, what [`super::copy::FromServer`] reads.
    CopyData(Bytes),
    /// The end of the server's copy stream.
    CopyDone,
    /// The server speaks an older minor version, or does not know some options.
    NegotiateProtocolVersion {
        /// The newest version that it speaks, such as [`PROTOCOL_3_0`]. The manual has it as a minor version; PostgreSQL
        /// sends both halves, and since 18 libpq refuses anything else.
        newest: u32,
        /// Options (`_pq_.*`) it does not know.
        unknown_options: Vec<String>,
    },
}

/// Version 3.0, as a start-up packet has it.
pub const PROTOCOL_3_0: u32 = 3 << 16;

/// A step of authentication. The kinds that nobody uses any more are [`Authentication::Other`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Authentication {
    /// The client is who it says.
    Ok,
    /// Wants the password as it is.
    CleartextPassword,
    /// Wants the password hashed with this salt.
    Md5Password {
        /// The salt.
        salt: [u8; 4],
    },
    /// Begins a SASL exchange.
    Sasl {
        /// What the server offers, best first.
        mechanisms: Vec<String>,
    },
    /// The server's part of a SASL exchange.
    SaslContinue(Bytes),
    /// The end of a SASL exchange, which proves that the server knows the password too.
    SaslFinal(Bytes),
    /// Kerberos, GSSAPI, SSPI and the like, by their code.
    Other(u32),
}

/// A column of a result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// OID of its type.
    pub type_oid: u32,
    /// `typlen` of its type; negative when it varies.
    pub type_size: i16,
}

impl Column {
    /// A column of type `text`.
    pub fn text(name: &str) -> Column {
        Column { name: name.to_owned(), type_oid: 25, type_size: -1 }
    }

    /// A column of type `int4`.
    pub fn int4(name: &str) -> Column {
        Column { name: name.to_owned(), type_oid: 23, type_size: 4 }
    }

    /// A column of type `int8`.
    pub fn int8(name: &str) -> Column {
        Column { name: name.to_owned(), type_oid: 20, type_size: 8 }
    }
}

/// The fields of an error or a notice that a program or a person needs. As an error it shows like psql does.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServerMessage {
    /// `ERROR`, `FATAL`, `PANIC`, `WARNING`, …; not translated, where the server says so.
    pub severity: String,
    /// SQLSTATE.
    pub code: String,
    /// What happened.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

impl ServerMessage {
    /// An error that leaves the session usable.
    pub fn error(code: &str, message: impl Into<String>) -> ServerMessage {
        ServerMessage::new("ERROR", code, message)
    }

    /// An error after which the server closes the connection.
    pub fn fatal(code: &str, message: impl Into<String>) -> ServerMessage {
        ServerMessage::new("FATAL", code, message)
    }

    fn new(severity: &str, code: &str, message: impl Into<String>) -> ServerMessage {
        let (severity, code) = (severity.to_owned(), code.to_owned());
        ServerMessage { severity, code, message: message.into(), detail: None, hint: None }
    }

    fn decode(name: &'static str, body: Bytes) -> Result<ServerMessage> {
        let mut fields = Fields::new(name, body);
        let mut message = ServerMessage::default();
        let mut plain_severity = None;
        loop {
            match fields.u8()? {
                0 => break,
                b'S' => message.severity = fields.text()?,
                b'V' => plain_severity = Some(fields.text()?),
                b'C' => message.code = fields.text()?,
                b'M' => message.message = fields.text()?,
                b'D' => message.detail = Some(fields.text()?),
                b'H' => message.hint = Some(fields.text()?),
                _ => drop(fields.raw_string()?),
            }
        }
        message.severity = plain_severity.unwrap_or(message.severity);
        fields.end()?;
        Ok(message)
    }

    fn encode(&self, out: &mut BytesMut) {
        let required =
            [(b'S', &self.severity), (b'V', &self.severity), (b'C', &self.code), (b'M', &self.message)];
        let optional = [(b'D', &self.detail), (b'H', &self.hint)];
        let optional = optional.iter().filter_map(|(kind, text)| text.as_ref().map(|text| (*kind, text)));
        for (kind, text) in required.into_iter().chain(optional) {
            out.put_u8(kind);
            put_string(out, text);
        }
        out.put_u8(0);
    }
}

impl fmt::Display for ServerMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.severity, self.message, self.code)?;
        self.detail.iter().try_for_each(|detail| write!(f, "; {detail}"))
    }
}

impl std::error::Error for ServerMessage {}

impl Backend {
    /// Reads a message. Those of the extended query protocol and of plain COPY are unknown: replication does not use
    /// them.
    pub fn decode(message: RawMessage) -> Result<Backend> {
        let RawMessage { tag, body } = message;
        match tag {
            COPY_DATA => Ok(Backend::CopyData(body)),
            b'E' => ServerMessage::decode("ErrorResponse", body).map(Backend::ErrorResponse),
            b'N' => ServerMessage::decode("NoticeResponse", body).map(Backend::NoticeResponse),
            b'R' => decode_authentication(body).map(Backend::Authentication),
            b'T' => decode_columns(body).map(Backend::RowDescription),
            b'D' => decode_row(body).map(Backend::DataRow),
            _ => Backend::decode_plain(tag, body),
        }
    }

    /// The messages of a few fields.
    fn decode_plain(tag: u8, body: Bytes) -> Result<Backend> {
        let mut fields = Fields::new(name_of(tag)?, body);
        let message = match tag {
            b'S' => Backend::ParameterStatus { name: fields.string()?, value: fields.text()? },
            b'K' => Backend::BackendKeyData { process_id: fields.i32()?, secret_key: fields.i32()? },
            b'Z' => Backend::ReadyForQuery { status: fields.u8()? },
            b'C' => Backend::CommandComplete(fields.text()?),
            b'W' => {
                // The format, and the formats of columns that a replication stream does not have.
                fields.u8()?;
                for _ in 0..fields.count()? {
                    fields.i16()?;
                }
                Backend::CopyBothResponse
            }
            b'c' => Backend::CopyDone,
            b'v' => {
                let newest = fields.u32()?;
                let mut unknown_options = Vec::new();
                for _ in 0..fields.u32()? {
                    unknown_options.push(fields.string()?);
                }
                Backend::NegotiateProtocolVersion { newest, unknown_options }
            }
            tag => return Err(MessageError::UnknownTag { tag }),
        };
        fields.end()?;
        Ok(message)
    }

    /// Appends the message.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Backend::Authentication(step) => put_message(out, b'R', |out| encode_authentication(step, out)),
            Backend::ParameterStatus { name, value } => put_message(out, b'S', |out| {
                put_string(out, name);
                put_string(out, value);
            }),
            Backend::BackendKeyData { process_id, secret_key } => put_message(out, b'K', |out| {
                out.put_i32(*process_id);
                out.put_i32(*secret_key);
            }),
            Backend::ReadyForQuery { status } => put_message(out, b'Z', |out| out.put_u8(*status)),
            Backend::RowDescription(columns) => put_message(out, b'T', |out| encode_columns(columns, out)),
            Backend::DataRow(values) => put_message(out, b'D', |out| encode_row(values, out)),
            Backend::CommandComplete(tag) => put_message(out, b'C', |out| put_string(out, tag)),
            Backend::ErrorResponse(message) => put_message(out, b'E', |out| message.encode(out)),
            Backend::NoticeResponse(message) => put_message(out, b'N', |out| message.encode(out)),
            Backend::CopyBothResponse => put_message(out, b'W', |out| out.put_slice(&[0, 0, 0])),
            Backend::CopyData(body) => put_message(out, COPY_DATA, |out| out.put_slice(body)),
            Backend::CopyDone => put_message(out, b'c', |_| ()),
            Backend::NegotiateProtocolVersion { newest, unknown_options } => {
                put_message(out, b'v', |out| {
                    out.put_u32(*newest);
                    out.put_u32(unknown_options.len() as u32);
                    unknown_options.iter().for_each(|name| put_string(out, name));
                });
            }
        }
    }
}

fn name_of(tag: u8) -> Result<&'static str> {
    Ok(match tag {
        b'S' => "ParameterStatus",
        b'K' => "BackendKeyData",
        b'Z' => "ReadyForQuery",
        b'C' => "CommandComplete",
        b'W' => "CopyBothResponse",
        b'c' => "CopyDone",
        b'v' => "NegotiateProtocolVersion",
        tag => return Err(MessageError::UnknownTag { tag }),
    })
}

fn decode_authentication(body: Bytes) -> Result<Authentication> {
    let mut fields = Fields::new("Authentication", body);
    let step = match fields.u32()? {
        0 => Authentication::Ok,
        3 => Authentication::CleartextPassword,
        5 => {
            let mut salt = [0; 4];
            salt.copy_from_slice(&fields.bytes(4)?);
            Authentication::Md5Password { salt }
        }
        10 => {
            let mut mechanisms = Vec::new();
            loop {
                let mechanism = fields.string()?;
                if mechanism.is_empty() {
                    break Authentication::Sasl { mechanisms };
                }
                mechanisms.push(mechanism);
            }
        }
        11 => return Ok(Authentication::SaslContinue(fields.remainder())),
        12 => return Ok(Authentication::SaslFinal(fields.remainder())),
        code => return Ok(Authentication::Other(code)),
    };
    fields.end()?;
    Ok(step)
}

fn encode_authentication(step: &Authentication, out: &mut BytesMut) {
    match step {
        Authentication::Ok => out.put_u32(0),
        Authentication::CleartextPassword => out.put_u32(3),
        Authentication::Md5Password { salt } => {
            out.put_u32(5);
            out.put_slice(salt);
        }
        Authentication::Sasl { mechanisms } => {
            out.put_u32(10);
            mechanisms.iter().for_each(|mechanism| put_string(out, mechanism));
            out.put_u8(0);
        }
        Authentication::SaslContinue(data) => {
            out.put_u32(11);
            out.put_slice(data);
        }
        Authentication::SaslFinal(data) => {
            out.put_u32(12);
            out.put_slice(data);
        }
        Authentication::Other(code) => out.put_u32(*code),
    }
}

fn decode_columns(body: Bytes) -> Result<Vec<Column>> {
    let mut fields = Fields::new("RowDescription", body);
    let mut columns = Vec::new();
    for _ in 0..fields.count()? {
        let name = fields.text()?;
        fields.bytes(6)?; // the table's OID and the column's number in it
        columns.push(Column { name, type_oid: fields.u32()?, type_size: fields.i16()? });
        fields.bytes(6)?; // type modifier and format
    }
    fields.end()?;
    Ok(columns)
}

fn encode_columns(columns: &[Column], out: &mut BytesMut) {
    out.put_u16(columns.len() as u16);
    for column in columns {
        put_string(out, &column.name);
        out.put_u32(0); // of no table
        out.put_u16(0);
        out.put_u32(column.type_oid);
        out.put_i16(column.type_size);
        out.put_i32(-1); // no type modifier
        out.put_u16(0); // text format
    }
}

fn decode_row(body: Bytes) -> Result<Vec<Option<Bytes>>> {
    let mut fields = Fields::new("DataRow", body);
    let mut values = Vec::new();
    for _ in 0..fields.count()? {
        let length = fields.i32()?;
        values.push(match usize::try_from(length) {
            Ok(length) => Some(fields.bytes(length)?),
            Err(_) if length == -1 => None,
            Err(_) => return Err(fields.malformed("a length is negative")),
        });
    }
    fields.end()?;
    Ok(values)
}

fn encode_row(values: &[Option<Bytes>], out: &mut BytesMut) {
    out.put_u16(values.len() as u16);
    for value in values {
        match value {
            Some(value) => {
                out.put_u32(value.len() as u32);
                out.put_slice(value);
            }
            None => out.put_i32(-1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(message: &Backend) -> Backend {
        let mut buffer = BytesMut::new();
        message.encode(&mut buffer);
        let raw = RawMessage::take(&mut buffer).unwrap().unwrap();
        assert!(buffer.is_empty());
        Backend::decode(raw).unwrap()
    }

    fn any_bytes() -> impl Strategy<Value = Bytes> {
        any::<Vec<u8>>().prop_map(Bytes::from)
    }

    fn any_server_message() -> impl Strategy<Value = ServerMessage> {
        let text = || "[^\0]{0,40}";
        (text(), text(), text(), prop::option::of(text()), prop::option::of(text())).prop_map(
            |(severity, code, message, detail, hint)| ServerMessage { severity, code, message, detail, hint },
        )
    }

    fn any_authentication() -> impl Strategy<Value = Authentication> {
        prop_oneof![
            Just(Authentication::Ok),
            Just(Authentication::CleartextPassword),
            any::<[u8; 4]>().prop_map(|salt| Authentication::Md5Password { salt }),
            prop::collection::vec("[^\0]{1,20}", 0..4)
                .prop_map(|mechanisms| Authentication::Sasl { mechanisms }),
            any_bytes().prop_map(Authentication::SaslContinue),
            any_bytes().prop_map(Authentication::SaslFinal),
            (13u32..).prop_map(Authentication::Other),
        ]
    }

    fn any_message() -> impl Strategy<Value = Backend> {
        let text = || "[^\0]{0,40}";
        let column = (text(), any::<u32>(), any::<i16>()).prop_map(|(name, type_oid, type_size)| Column {
            name,
            type_oid,
            type_size,
        });
        prop_oneof![
            any_authentication().prop_map(Backend::Authentication),
            (text(), text()).prop_map(|(name, value)| Backend::ParameterStatus { name, value }),
            any::<(i32, i32)>()
                .prop_map(|(process_id, secret_key)| Backend::BackendKeyData { process_id, secret_key }),
            any::<u8>().prop_map(|status| Backend::ReadyForQuery { status }),
            prop::collection::vec(column, 0..6).prop_map(Backend::RowDescription),
            prop::collection::vec(prop::option::of(any_bytes()), 0..6).prop_map(Backend::DataRow),
            text().prop_map(Backend::CommandComplete),
            any_server_message().prop_map(Backend::ErrorResponse),
            any_server_message().prop_map(Backend::NoticeResponse),
            Just(Backend::CopyBothResponse),
            any_bytes().prop_map(Backend::CopyData),
            Just(Backend::CopyDone),
            (any::<u32>(), prop::collection::vec("[^\0]{0,20}", 0..4)).prop_map(
                |(newest, unknown_options)| Backend::NegotiateProtocolVersion { newest, unknown_options }
            ),
        ]
    }

    proptest! {
        #[test]
        fn messages_round_trip(message in any_message()) {
            prop_assert_eq!(round_trip(&message), message);
        }

        #[test]
        fn a_message_cut_short_is_refused_or_another_one(message in any_message(), cut: prop::sample::Index) {
            let mut buffer = BytesMut::new();
            message.encode(&mut buffer);
            let mut raw = RawMessage::take(&mut buffer).unwrap().unwrap();
            raw.body.truncate(cut.index(raw.body.len() + 1));
            let _ = Backend::decode(raw);
        }
    }

    #[test]
    fn a_real_error_of_a_server_with_translated_severity() {
        let body = b"SFEHLER\0VERROR\0C58P01\0Mrequested WAL segment 000000010000000000000001 has already been removed\0Fwalsender.c\0L3024\0RWalSndErrorOnSegmentClose\0\0";
        let raw = RawMessage { tag: b'E', body: Bytes::from_static(body) };
        let Backend::ErrorResponse(error) = Backend::decode(raw).unwrap() else { panic!("not an error") };
        assert_eq!((error.severity.as_str(), error.code.as_str()), ("ERROR", "58P01"));
        assert!(error.to_string().ends_with("has already been removed (58P01)"), "{error}");
    }

    #[test]
    fn a_claimed_count_allocates_nothing() {
        let options =
            RawMessage { tag: b'v', body: Bytes::from_static(&[0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]) };
        assert!(Backend::decode(options).is_err());
        let row = RawMessage { tag: b'D', body: Bytes::from_static(&[0, 1, 0x7F, 0xFF, 0xFF, 0xFF]) };
        assert!(Backend::decode(row).is_err());
    }
}
