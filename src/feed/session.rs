//! One client: start-up, then commands until it leaves (pg-facts, B.1 to B.3).

use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncRead, AsyncWrite};

use super::command::Command;
use super::reporter::Reporter;
use super::{STANDBY_NAME, Shared};
use crate::pg::message::backend::{Authentication, Backend, PROTOCOL_3_0, ServerMessage};
use crate::pg::message::frontend::{Frontend, Startup};
use crate::pg::message::{MessageError, MessageReader, MessageWriter};

/// A client that says nothing for so long at the start is dropped, so that it can't hold its place for ever.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests for encryption that are answered; a client sends one of each kind at most.
const MAX_ENCRYPTION_REQUESTS: usize = 2;

/// Both directions of a connection.
pub(super) struct Wires<R, W> {
    pub(super) reader: MessageReader<R>,
    pub(super) writer: MessageWriter<W>,
}

/// A client's session.
pub(super) struct Session<R, W> {
    pub(super) wires: Wires<R, W>,
    pub(super) shared: Shared,
    pub(super) reporter: Reporter,
    number: u64,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Session<R, W> {
    /// A session over a connection; its number is not zero.
    pub(super) fn new(reader: R, writer: W, shared: Shared, number: u64) -> Session<R, W> {
        let wires = Wires { reader: MessageReader::new(reader), writer: MessageWriter::new(writer) };
        let reporter = Reporter::silent(shared.vitals.clone());
        Session { wires, shared, reporter, number }
    }

    /// Serves the client until it leaves; one that is not admitted is told why.
    pub(super) async fn serve(mut self, admitted: Result<(), ServerMessage>) -> anyhow::Result<()> {
        let started = tokio::time::timeout(STARTUP_TIMEOUT, self.start_up(admitted)).await;
        if !started.context("the client said nothing")?? {
            return Ok(());
        }
        let served = self.serve_commands().await;
        self.reporter.ended(served.as_ref().err().map(|error| format!("{error:#}")));
        served
    }

    async fn serve_commands(&mut self) -> anyhow::Result<()> {
        while let Some(text) = self.next_command().await? {
            tracing::debug!(command = text, "received");
            let done = match Command::parse(&text) {
                Ok(command) => self.execute(command).await?,
                Err(refusal) => Done::Refused(refusal),
            };
            match done {
                Done::Complete(tag) => self.put(Backend::CommandComplete(tag.to_owned())),
                Done::Refused(error) => {
                    tracing::info!(command = text, %error, "refused");
                    self.reporter.ended(Some(error.to_string()));
                    self.put(Backend::ErrorResponse(error));
                }
                Done::Gone => return Ok(()),
            }
            self.put(Backend::ReadyForQuery { status: b'I' });
            self.wires.writer.flush().await?;
        }
        Ok(())
    }

    /// Takes the client through the start of its session; false when there will be none.
    async fn start_up(&mut self, admitted: Result<(), ServerMessage>) -> anyhow::Result<bool> {
        let Some((minor, parameters)) = self.read_startup().await? else { return Ok(false) };
        let parameter =
            |name: &str| parameters.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v.as_str());
        if let Err(refusal) = admitted.and_then(|()| check_purpose(parameter("replication"))) {
            tracing::info!(error = %refusal, "client refused");
            self.put(Backend::ErrorResponse(refusal));
            self.wires.writer.flush().await?;
            return Ok(false);
        }
        let application = parameter("application_name");
        tracing::info!(application, "client connected");
        if application == STANDBY_NAME {
            let (vitals, current) = (self.shared.vitals.clone(), self.shared.current.clone());
            self.reporter = Reporter::of_standby(vitals, current, self.number);
        }
        let unknown_options: Vec<String> =
            parameters.iter().map(|(n, _)| n).filter(|n| n.starts_with("_pq_.")).cloned().collect();
        if minor > 0 || !unknown_options.is_empty() {
            self.put(Backend::NegotiateProtocolVersion { newest: PROTOCOL_3_0, unknown_options });
        }
        self.put(Backend::Authentication(Authentication::Ok));
        for (name, value) in [
            ("server_version", self.shared.server_version.to_string()),
            ("server_encoding", "UTF8".to_owned()),
            ("client_encoding", "UTF8".to_owned()),
            ("integer_datetimes", "on".to_owned()),
            ("standard_conforming_strings", "on".to_owned()),
        ] {
            self.put(Backend::ParameterStatus { name: name.to_owned(), value });
        }
        // Nobody can cancel anything here, so the secret is none; the number ends up in a temporary slot's name.
        self.put(Backend::BackendKeyData { process_id: self.number as i32, secret_key: 0 });
        self.put(Backend::ReadyForQuery { status: b'I' });
        self.wires.writer.flush().await?;
        Ok(true)
    }

    /// The start-up packet, after whatever asks for encryption, which a unix socket does not need.
    async fn read_startup(&mut self) -> anyhow::Result<Option<(u16, Vec<(String, String)>)>> {
        for _ in 0..=MAX_ENCRYPTION_REQUESTS {
            let packet = match self.wires.reader.read_startup().await {
                Ok(packet) => packet,
                Err(error) => return self.violation(error).await,
            };
            match packet {
                Some(Startup::Ssl | Startup::Gss) => {
                    self.wires.writer.buffer().extend_from_slice(b"N");
                    self.wires.writer.flush().await?;
                }
                Some(Startup::Session { minor, parameters }) => return Ok(Some((minor, parameters))),
                Some(Startup::Cancel { .. }) | None => return Ok(None),
            }
        }
        anyhow::bail!("the client asked for encryption again and again")
    }

    /// The text of the next command; `None` when the client has left.
    async fn next_command(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            let Some(message) = self.wires.reader.read().await? else { return Ok(None) };
            match Frontend::decode(message) {
                Ok(Frontend::Query(text)) => return Ok(Some(text)),
                Ok(Frontend::Terminate) => return Ok(None),
                // Left over from a stream that we ended by an error before the client knew.
                Ok(Frontend::CopyData(_) | Frontend::CopyDone | Frontend::CopyFail(_)) => {}
                Ok(Frontend::Password(_)) => {
                    return self.violation(MessageError::UnknownTag { tag: b'p' }).await;
                }
                Err(error) => return self.violation(error).await,
            }
        }
    }

    /// Says what is wrong with the client's messages, and gives up on it.
    async fn violation<T>(&mut self, error: MessageError) -> anyhow::Result<T> {
        self.put(Backend::ErrorResponse(ServerMessage::fatal("08P01", error.to_string())));
        self.wires.writer.flush().await?;
        Err(error.into())
    }

    pub(super) fn put(&mut self, message: Backend) {
        message.encode(self.wires.writer.buffer());
    }
}

/// How a command ended.
pub(super) enum Done {
    /// Well; with this tag.
    Complete(&'static str),
    /// With an error that leaves the session usable.
    Refused(ServerMessage),
    /// With the client gone.
    Gone,
}

/// Only physical replication is served here.
fn check_purpose(replication: &str) -> Result<(), ServerMessage> {
    if ["true", "on", "yes", "1"].iter().any(|yes| replication.eq_ignore_ascii_case(yes)) {
        return Ok(());
    }
    let hint = "Connect to PostgreSQL itself; this socket is for the primary_conninfo of a standby.";
    let refusal = ServerMessage::fatal(
        "0A000",
        "this is walship's feed: it serves physical replication and nothing else",
    );
    Err(ServerMessage { hint: Some(hint.to_owned()), ..refusal })
}
