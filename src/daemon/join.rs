//! Joining: what a node that is nobody yet finds out before it is seeded.

use std::fmt::Display;
use std::sync::Arc;

use anyhow::Context;

use super::ask::ask;
use super::attempts::NoPrimary;
use super::postgres;
use super::seed::Seed;
use crate::config::Config;
use crate::fault::{Advised, Fault, Outcome, WithFault};
use crate::link::message::{Answer, Hello, Purpose, Role};
use crate::link::{LinkError, Listener, Security};
use crate::pg::SegmentSize;
use crate::pg::sql::ServerVersion;
use crate::restore::target::{self, Kind, Standing};
use crate::store::{NewStore, State, Store};
use crate::tls::Credentials;

/// What a new standby is told.
pub struct Join {
    /// Where the primary may be.
    pub addresses: Vec<String>,
    /// What this node shows when it asks there.
    pub credentials: Arc<Credentials>,
    /// The cluster that the bundle is for.
    pub system_identifier: Option<u64>,
    /// How the copy is to be made.
    pub seed: Seed,
}

/// Looks whether this node may join, and changes nothing: what is refused, is refused here. The store that it begins
/// with; `None` where it has joined already and only goes on.
pub async fn look(config: &Config, join: &Join) -> anyhow::Result<Option<NewStore>> {
    let (data_directory, store) = (config.postgres.data_directory.clone(), config.store.clone());
    let expected = join.system_identifier;
    let looked = tokio::task::spawn_blocking(move || {
        let store = Store::state_in(&store)?;
        if store.is_some() && Standing::at(&data_directory)?.is_complete_and_of(expected) {
            return anyhow::Ok(None);
        }
        target::require_free(&data_directory, Kind::Copy, expected)?;
        Ok(Some(store))
    });
    let Some(store) = looked.await.context("look at what is here")?? else { return Ok(None) };
    drop(Listener::bind(&config.listen.to_string()).await.advised().outcome(Outcome::Refused)?);
    let asker = Asker {
        config,
        addresses: &join.addresses,
        credentials: &join.credentials,
        system_identifier: join.system_identifier,
        store: store.as_ref(),
    };
    let (hello, answer) = asker.ask_primary().await?;
    let version = hello.postgres_version.map(ServerVersion);
    if let Some(version) = version {
        version.require_supported(format!("beside {}", hello.node)).advised()?;
    }
    if config.postgres.start_command.is_none() {
        if answer.holds_configuration == Some(false) {
            return Err(no_configuration(&format!("a copy of {} would have no postgresql.conf", hello.node)));
        }
        if let Some(version) = version {
            postgres::binaries_of(config, version.major()).await?;
        }
    }
    let segment_size = hello.segment_size.context("the primary did not say its segment size")?;
    Ok(Some(NewStore {
        system_identifier: hello.system_identifier.context("the primary did not say which cluster it is")?,
        segment_size: SegmentSize::new(segment_size)?,
    }))
}

fn no_configuration(what: &str) -> anyhow::Error {
    Fault::refused(
        format!("{what}: the primary keeps its configuration outside its data directory"),
        "Name this host's own folder with postgresql.conf and pg_hba.conf: --config-directory DIR, on Debian \
         /etc/postgresql/VERSION/main.",
    )
}

/// Opens the store, or makes it.
pub async fn open_store(config: &Config, join: &Join, new: NewStore) -> anyhow::Result<Store> {
    let (folder, addresses) = (config.store.clone(), join.addresses.clone());
    let opened = tokio::task::spawn_blocking(move || {
        let store = if Store::exists(&folder) { Store::open(&folder)? } else { Store::create(&folder, new)? };
        store.update_state(|state| state.join_addresses = addresses)?;
        anyhow::Ok(store)
    });
    opened.await.context("open the store")?
}

/// Who asks for the primary before there is a node.
pub struct Asker<'a> {
    /// Its configuration.
    pub config: &'a Config,
    /// Where the primary may be.
    pub addresses: &'a [String],
    /// What it shows.
    pub credentials: &'a Arc<Credentials>,
    /// The cluster, where there is no store to tell.
    pub system_identifier: Option<u64>,
    /// The store that it has.
    pub store: Option<&'a State>,
}

impl Asker<'_> {
    /// Asks at each address who is there. Nothing was changed yet, so what speaks against this node is a refusal.
    pub async fn ask_primary(&self) -> anyhow::Result<(Hello, Answer)> {
        let security = Security::Tls(Arc::clone(self.credentials));
        let ours = Hello {
            system_identifier: self.store.map(|store| store.system_identifier).or(self.system_identifier),
            store_uuid: self.store.map(|store| store.store_uuid.clone()),
            former_store_uuids: self.store.map(|store| store.former_store_uuids.clone()).unwrap_or_default(),
            advertise: Some(self.config.advertise.to_string()),
            ..Hello::of_stranger(self.config.name.clone(), Role::Standby, Purpose::Ask)
        };
        let mut failures = Vec::new();
        for address in self.addresses {
            match ask(address, &security, &ours).await {
                Ok((hello, answer)) if hello.role == Role::Primary => return Ok((hello, answer)),
                Ok((hello, _)) => {
                    failures.push((address, anyhow::anyhow!("{} is {}", hello.node, hello.role.name())));
                }
                Err(error) => failures.push((address, error)),
            }
        }
        let refused = failures.iter().any(|(_, error)| refusal(error).is_some());
        Err(no_primary(&failures)).outcome(if refused { Outcome::Refused } else { Outcome::Failed })
    }
}

/// What speaks against this node, unless it is only that nobody is there.
fn refusal(error: &anyhow::Error) -> Option<&LinkError> {
    error.downcast_ref::<LinkError>().filter(|error| !error.is_gone())
}

/// What each address had to say. A refusal says more than silence, and brings its own hint.
pub fn no_primary(failures: &[(impl Display, anyhow::Error)]) -> anyhow::Error {
    let refused = failures.iter().find_map(|(address, error)| Some((address, refusal(error)?)));
    if let Some((address, refusal)) = refused {
        let said = anyhow::anyhow!("{address}: {refusal}");
        return match refusal.hint() {
            Some(hint) => Fault::advise(said, hint),
            None => said,
        };
    }
    let hint = "Is `walship primary` running there, and can this host reach it? `advertise` in its walship.toml is the \
                address in the bundle.";
    let told: Vec<String> = failures.iter().map(|(address, error)| format!("{address}: {error:#}")).collect();
    Fault::advise(NoPrimary { told: told.join("; ") }, hint)
}
