//! Every key of `walship.toml`, its default and its meaning: the one table that the file, its template and its
//! manual page come from.

/// A key.
#[derive(Debug)]
pub struct Key {
    /// The section that it is in; empty for the top.
    pub section: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Its default as it would stand in the file.
    pub default: &'static str,
    /// What it is for, in one to three sentences.
    pub meaning: &'static str,
    /// Whether this version knows but the default.
    pub later: bool,
}

/// The default of `listen`.
pub const LISTEN: &str = "0.0.0.0:7432";
/// The default of `postgres.conninfo`: libpq's own.
pub const CONNINFO: &str = "dbname=postgres";
/// The default of `promotion.priority`.
pub const PRIORITY: u32 = 100;
/// The default of `replication.slot`.
pub const SLOT: &str = "walship";

const fn key(section: &'static str, name: &'static str, default: &'static str, meaning: &'static str) -> Key {
    Key { section, name, default, meaning, later: false }
}

const fn later(
    section: &'static str,
    name: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> Key {
    Key { section, name, default, meaning, later: true }
}

/// All keys, in the order of the file.
pub const KEYS: &[Key] = &[
    key(
        "",
        "name",
        "",
        "This node's name: the one that it was invited as. 1 to 63 of a-z, 0-9, - and _. Must be set.",
    ),
    key(
        "",
        "store",
        "",
        "The folder of the store: WAL, certificates and keys (tls/), sockets (control.sock, feed/). Outside the data \
         directory, on a disk with room for the WAL that a standby may have to catch up with. Must be set.",
    ),
    key("", "listen", "\"0.0.0.0:7432\"", "Where other nodes' sidecars connect, host:port."),
    key(
        "",
        "advertise",
        "\"\"",
        "How they reach this node, host:port. Empty: the address in listen, or this host's name with its port.",
    ),
    key(
        "",
        "upstream",
        "[]",
        "A standby's sources, the most preferred first: addresses of other sidecars, primary or standby. After them come \
         the primary, wherever it is, and then any other standby. Empty: the primary.",
    ),
    key(
        "",
        "http_listen",
        "\"\"",
        "Where to serve metrics, health checks and waits over HTTP, host:port. Empty: nowhere. Nothing can be changed there, \
         but whoever reaches it may read all that `walship status` shows: take 127.0.0.1, or a network of your own. Read at \
         the start only.",
    ),
    key(
        "postgres",
        "data_directory",
        "",
        "The data directory of this node's PostgreSQL. walship runs as its owner. Must be set.",
    ),
    key(
        "postgres",
        "conninfo",
        "\"dbname=postgres\"",
        "How to connect to this node's PostgreSQL, as libpq has it. `walship check` tells which rights the user needs.",
    ),
    key(
        "postgres",
        "bin_directory",
        "\"\"",
        "Where pg_ctl is. Empty: PATH, pg_config, /usr/lib/postgresql/*/bin.",
    ),
    key("postgres", "start_command", "\"\"", "How to start PostgreSQL, run by a shell. Empty: pg_ctl start."),
    key(
        "postgres",
        "stop_command",
        "\"\"",
        "How to stop PostgreSQL, run by a shell. Empty: pg_ctl stop -m fast.",
    ),
    key(
        "replication",
        "slot",
        "\"walship\"",
        "The physical replication slot that keeps the primary's WAL until it is in the store. Made when missing.",
    ),
    key(
        "replication",
        "ack",
        "\"async\"",
        "Whom a commit waits for where this node begins as the primary: async (nobody), any 1 (*) or any 2 (db2, db3) \
         (any so many), first 1 (db2, db3) (the first that are in step), all, chain (db2, db3) (the last). * and all mean \
         the members known at that time. `walship sync` shows and changes it while it runs.",
    ),
    key(
        "replication",
        "stall_limit",
        "\"never\"",
        "How long a commit waits for them, like 2s; past it commits go on unprotected, which every report says and \
         `walship exposures` lists. never: it waits.",
    ),
    key(
        "replication",
        "max_rate",
        "\"\"",
        "The most bytes per second shipped to one standby, like 20MiB; on a standby, what a re-seed by auto_reseed takes. \
         Empty: no limit.",
    ),
    key(
        "replication",
        "auto_reseed",
        "false",
        "Whether a standby seeds itself anew when the log that it needs is gone, or its files hold what a new primary never \
         had: it stops PostgreSQL, compares its data \
         directory with the primary's, takes what differs, starts PostgreSQL and follows. If not, it says so and waits for \
         `walship standby --reseed`.",
    ),
    key(
        "retention",
        "store_max_bytes",
        "\"\"",
        "The most bytes of WAL in the store, like 50GiB; beyond, the slowest standby is let go and must be seeded anew. \
         Empty: a quarter of the file system.",
    ),
    key(
        "promotion",
        "priority",
        "100",
        "Of several standbys that are equally far `walship promote --elect` takes the one with the highest. 0: never this one, \
         unless `walship promote` is run here.",
    ),
    key(
        "promotion",
        "fence_command",
        "\"\"",
        "Run by a shell on the node that is being promoted when the sidecar of the old primary does not answer: it must make \
         sure that PostgreSQL there is down and stays down, and exit with 0 only then. It is told WALSHIP_FENCE_NODE and \
         WALSHIP_FENCE_ADDRESS, and has 60 s. Empty: none.",
    ),
    key(
        "promotion",
        "auto_rejoin",
        "false",
        "Whether a primary that was left behind by a promotion becomes a standby by itself, as `walship rejoin` does: what only it \
         has is kept in the store's folder capsules, and its data directory made equal to the new primary's. One that handed over \
         does that anyway.",
    ),
    later(
        "promotion",
        "start_alone",
        "false",
        "Whether a primary starts without asking the other nodes first.",
    ),
    key(
        "hooks",
        "before_role_change",
        "\"\"",
        "Run by a shell before this node becomes the primary, and before a running primary is stopped to hand over, as to take \
         an address away; within 30 s it must exit with 0, or the change is given up (--force goes on). It is told WALSHIP_ROLE \
         and WALSHIP_ROLE_BEFORE (primary, standby or down), WALSHIP_NODE, WALSHIP_PRIMARY, WALSHIP_PRIMARY_ADDRESS, \
         WALSHIP_EPOCH, WALSHIP_TIMELINE, WALSHIP_DATA_DIRECTORY and WALSHIP_HOOK (before or after). Not run before a primary \
         is stopped that was left behind: that can't wait. Empty: none.",
    ),
    key(
        "hooks",
        "after_role_change",
        "\"\"",
        "Run by a shell, told the same, after PostgreSQL has come up or gone down in its new role, as to set an address. It has 30 \
         s; failed, it is run twice more, and then every report says so. Killed in between, walship runs it again: it must do no \
         harm a second time. Where before_role_change ran for a change that did not come, it is told of the role that stayed. Not \
         run for what a node begins as. Empty: none.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_in_the_table_are_those_in_use() {
        let default_of = |section, name| {
            let key = KEYS.iter().find(|key| (key.section, key.name) == (section, name)).unwrap();
            key.default.trim_matches('"')
        };
        assert_eq!(default_of("", "listen"), LISTEN);
        assert_eq!(default_of("postgres", "conninfo"), CONNINFO);
        assert_eq!(default_of("replication", "slot"), SLOT);
    }
}
