//! What a client sends.

use bytes::{BufMut, Bytes, BytesMut};

use super::{COPY_DATA, Fields, MessageError, RawMessage, Result, put_counted, put_message, put_string};

const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;
const PROTOCOL_MAJOR: u16 = 3;

/// A packet before the session starts; these have no tag.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Startup {
    /// Asks for TLS; the answer is one byte, `S` or `N`.
    Ssl,
    /// Asks for GSSAPI encryption; the answer is one byte, `G` or `N`.
    Gss,
    /// Asks to cancel the query of another session; there is no answer.
    Cancel {
        /// As in [`super::backend::Backend::BackendKeyData`].
        process_id: i32,
        /// As in [`super::backend::Backend::BackendKeyData`].
        secret_key: i32,
    },
    /// Starts a session of protocol 3.
    Session {
        /// The minor version that the client would like; 0 is what everybody speaks.
        minor: u16,
        /// `user`, `database`, `replication`, `application_name` and settings, in the client's order.
        parameters: Vec<(String, String)>,
    },
}

impl Startup {
    /// Reads a packet's body.
    pub fn decode(body: Bytes) -> Result<Startup> {
        let mut fields = Fields::new("startup packet", body);
        let packet = match fields.u32()? {
            SSL_REQUEST => Startup::Ssl,
            GSS_REQUEST => Startup::Gss,
            CANCEL_REQUEST => Startup::Cancel { process_id: fields.i32()?, secret_key: fields.i32()? },
            version => {
                let (major, minor) = ((version >> 16) as u16, version as u16);
                if major != PROTOCOL_MAJOR {
                    return Err(MessageError::Protocol { major, minor });
                }
                let mut parameters = Vec::new();
                loop {
                    let name = fields.string()?;
                    if name.is_empty() {
                        break;
                    }
                    parameters.push((name, fields.string()?));
                }
                Startup::Session { minor, parameters }
            }
        };
        fields.end()?;
        Ok(packet)
    }

    /// Appends the packet.
    pub fn encode(&self, out: &mut BytesMut) {
        put_counted(out, |out| match self {
            Startup::Ssl => out.put_u32(SSL_REQUEST),
            Startup::Gss => out.put_u32(GSS_REQUEST),
            Startup::Cancel { process_id, secret_key } => {
                out.put_u32(CANCEL_REQUEST);
                out.put_i32(*process_id);
                out.put_i32(*secret_key);
            }
            Startup::Session { minor, parameters } => {
                out.put_u16(PROTOCOL_MAJOR);
                out.put_u16(*minor);
                for (name, value) in parameters {
                    put_string(out, name);
                    put_string(out, value);
                }
                out.put_u8(0);
            }
        });
    }
}

/// A message of a running session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frontend {
    /// A command of the simple query protocol.
    Query(String),
    /// An answer to an authentication request; what it holds depends on the request.
    Password(Bytes),
    /// A piece of a copy stream; in replication, what [`super::copy::FromClient`] reads.
    CopyData(Bytes),
    /// The end of the client's copy stream.
    CopyDone,
    /// The client gives its copy stream up, and says why.
    CopyFail(String),
    /// Good-bye.
    Terminate,
}

impl Frontend {
    /// An answer to a request for a password, in clear text or hashed by MD5.
    pub fn password(password: &str) -> Frontend {
        let mut body = BytesMut::new();
        put_string(&mut body, password);
        Frontend::Password(body.freeze())
    }

    /// The first message of a SASL exchange. All later ones are plain [`Frontend::Password`].
    pub fn sasl_initial_response(mechanism: &str, data: &[u8]) -> Frontend {
        let mut body = BytesMut::new();
        put_string(&mut body, mechanism);
        body.put_u32(data.len() as u32);
        body.put_slice(data);
        Frontend::Password(body.freeze())
    }

    /// Reads a message. Those of the extended query protocol are unknown: replication does not use it.
    pub fn decode(message: RawMessage) -> Result<Frontend> {
        let RawMessage { tag, body } = message;
        let empty = |name, value| Fields::new(name, body.clone()).end().map(|()| value);
        let one_string = |name, build: fn(String) -> Frontend| {
            let mut fields = Fields::new(name, body.clone());
            let text = fields.string()?;
            fields.end().map(|()| build(text))
        };
        match tag {
            b'Q' => one_string("Query", Frontend::Query),
            b'p' => Ok(Frontend::Password(body)),
            COPY_DATA => Ok(Frontend::CopyData(body)),
            b'c' => empty("CopyDone", Frontend::CopyDone),
            b'f' => one_string("CopyFail", Frontend::CopyFail),
            b'X' => empty("Terminate", Frontend::Terminate),
            tag => Err(MessageError::UnknownTag { tag }),
        }
    }

    /// Appends the message.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Frontend::Query(text) => put_message(out, b'Q', |out| put_string(out, text)),
            Frontend::Password(body) => put_message(out, b'p', |out| out.put_slice(body)),
            Frontend::CopyData(body) => put_message(out, COPY_DATA, |out| out.put_slice(body)),
            Frontend::CopyDone => put_message(out, b'c', |_| ()),
            Frontend::CopyFail(reason) => put_message(out, b'f', |out| put_string(out, reason)),
            Frontend::Terminate => put_message(out, b'X', |_| ()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::take_startup;
    use super::*;
    use proptest::prelude::*;

    fn round_trip(message: &Frontend) -> Frontend {
        let mut buffer = BytesMut::new();
        message.encode(&mut buffer);
        let raw = RawMessage::take(&mut buffer).unwrap().unwrap();
        assert!(buffer.is_empty());
        Frontend::decode(raw).unwrap()
    }

    fn startup_round_trip(packet: &Startup) -> Startup {
        let mut buffer = BytesMut::new();
        packet.encode(&mut buffer);
        let body = take_startup(&mut buffer).unwrap().unwrap();
        assert!(buffer.is_empty());
        Startup::decode(body).unwrap()
    }

    proptest! {
        #[test]
        fn messages_round_trip(text in "[^\0]*", data: Vec<u8>) {
            for message in [
                Frontend::Query(text.clone()),
                Frontend::password(&text),
                Frontend::sasl_initial_response(&text, &data),
                Frontend::CopyData(data.into()),
                Frontend::CopyDone,
                Frontend::CopyFail(text),
                Frontend::Terminate,
            ] {
                prop_assert_eq!(round_trip(&message), message);
            }
        }

        #[test]
        fn startup_packets_round_trip(
            minor: u16,
            keys: (i32, i32),
            parameters in prop::collection::vec(("[^\0]{1,20}", "[^\0]{0,20}"), 0..20),
        ) {
            let cancel = Startup::Cancel { process_id: keys.0, secret_key: keys.1 };
            for packet in [Startup::Ssl, Startup::Gss, cancel, Startup::Session { minor, parameters }] {
                prop_assert_eq!(startup_round_trip(&packet), packet);
            }
        }
    }

    #[test]
    fn the_bytes_are_those_of_postgres_protocol() {
        let (mut ours, mut theirs) = (BytesMut::new(), BytesMut::new());
        let parameters =
            vec![("user".to_owned(), "u".to_owned()), ("replication".to_owned(), "true".to_owned())];
        let pairs: Vec<_> = parameters.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        postgres_protocol::message::frontend::startup_message(pairs, &mut theirs).unwrap();
        postgres_protocol::message::frontend::query("SHOW x", &mut theirs).unwrap();
        postgres_protocol::message::frontend::sasl_initial_response("S", b"n,,", &mut theirs).unwrap();
        postgres_protocol::message::frontend::password_message(b"secret", &mut theirs).unwrap();
        postgres_protocol::message::frontend::ssl_request(&mut theirs);
        Startup::Session { minor: 0, parameters }.encode(&mut ours);
        Frontend::Query("SHOW x".to_owned()).encode(&mut ours);
        Frontend::sasl_initial_response("S", b"n,,").encode(&mut ours);
        Frontend::password("secret").encode(&mut ours);
        Startup::Ssl.encode(&mut ours);
        assert_eq!(ours, theirs);
    }

    #[test]
    fn other_protocols_are_named() {
        let error = Startup::decode(Bytes::from_static(&[0, 2, 0, 0])).unwrap_err();
        assert_eq!(error.to_string(), "protocol 2.0 is not supported, only 3");
        let extended = RawMessage { tag: b'P', body: Bytes::new() };
        assert_eq!(Frontend::decode(extended).unwrap_err().to_string(), "unexpected message 'P'");
    }
}
