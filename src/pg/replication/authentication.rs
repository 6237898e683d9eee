//! Proving who we are: nothing, a password, MD5, or SCRAM with channel binding where TLS allows it.

use bytes::Bytes;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ScramSha256};
use tokio_postgres::config::ChannelBinding;

use super::error::{protocol, sort};
use super::{Replication, ReplicationError};
use crate::pg::Conninfo;
use crate::pg::message::backend::{Authentication, Backend};
use crate::pg::message::frontend::Frontend;

type Result<T> = std::result::Result<T, ReplicationError>;

impl Replication {
    /// Answers what the server asks until it says that we are in.
    pub(super) async fn authenticate(
        &mut self,
        conninfo: &Conninfo,
        server_end_point: Option<Vec<u8>>,
    ) -> Result<()> {
        let binding_required = conninfo.channel_binding() == ChannelBinding::Require;
        let request = self.read_authentication().await?;
        if binding_required && !matches!(request, Authentication::Sasl { .. }) {
            return Err(self.party.unauthenticated("the server did not ask for channel binding").into());
        }
        match request {
            Authentication::Ok => return Ok(()),
            Authentication::CleartextPassword => {
                let password = String::from_utf8_lossy(self.password(conninfo)?).into_owned();
                self.send(&Frontend::password(&password)).await?;
            }
            Authentication::Md5Password { salt } => {
                let hash = md5_hash(conninfo.user().as_bytes(), self.password(conninfo)?, salt);
                self.send(&Frontend::password(&hash)).await?;
            }
            Authentication::Sasl { mechanisms } => {
                self.scram(conninfo, &mechanisms, server_end_point, binding_required).await?;
            }
            _ => {
                return Err(self.party.unauthenticated("the server asks for a method we do not have").into());
            }
        }
        match self.read_authentication().await? {
            Authentication::Ok => Ok(()),
            _ => Err(protocol(&self.party, "a second authentication request")),
        }
    }

    async fn scram(
        &mut self,
        conninfo: &Conninfo,
        offered: &[String],
        server_end_point: Option<Vec<u8>>,
        binding_required: bool,
    ) -> Result<()> {
        let offers = |mechanism: &str| offered.iter().any(|name| name == mechanism);
        let usable = server_end_point.filter(|_| conninfo.channel_binding() != ChannelBinding::Disable);
        let (mechanism, binding) = match usable {
            Some(data) if offers(sasl::SCRAM_SHA_256_PLUS) => {
                (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(data))
            }
            _ if binding_required => {
                return Err(self
                    .party
                    .unauthenticated("channel binding is required, but not possible here")
                    .into());
            }
            // Says that we could have bound: a server that knows it offered it sees that somebody meddled.
            Some(_) => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
            None => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
        };
        if !offers(mechanism) {
            return Err(self.party.unauthenticated("the server offers no SCRAM-SHA-256").into());
        }
        let mut scram = ScramSha256::new(self.password(conninfo)?, binding);
        self.send(&Frontend::sasl_initial_response(mechanism, scram.message())).await?;
        let Authentication::SaslContinue(challenge) = self.read_authentication().await? else {
            return Err(protocol(&self.party, "no SCRAM challenge"));
        };
        scram.update(&challenge).map_err(|error| self.party.unauthenticated(error.to_string()))?;
        self.send(&Frontend::Password(Bytes::copy_from_slice(scram.message()))).await?;
        let Authentication::SaslFinal(proof) = self.read_authentication().await? else {
            return Err(protocol(&self.party, "no SCRAM proof"));
        };
        // The server proves that it knows the password, too.
        Ok(scram.finish(&proof).map_err(|error| self.party.unauthenticated(error.to_string()))?)
    }

    fn password<'a>(&self, conninfo: &'a Conninfo) -> Result<&'a [u8]> {
        const MISSING: &str = "it asks for a password; give one by password=…, PGPASSWORD or ~/.pgpass";
        conninfo.password().ok_or_else(|| self.party.unauthenticated(MISSING).into())
    }

    async fn read_authentication(&mut self) -> Result<Authentication> {
        match self.read().await? {
            Backend::Authentication(step) => Ok(step),
            Backend::ErrorResponse(error) => Err(sort(&self.party, error)),
            _ => Err(protocol(&self.party, "not an authentication request")),
        }
    }
}
