//! Status and lag for people: aligned columns of ASCII, binary units, at most 100 columns wide where names allow.

mod check;
mod commits;
mod exposures;

use std::fmt::Write;

pub use check::check;
pub use commits::commits;
pub use exposures::exposures;

use super::lag::{self, Behind, LagReport, Link, Stage, StandbyLag};
use super::threshold::{Amount, Limits};
use super::{CatchUp, Downstream, Node, Role, Seeding, Status, Traffic, Upstream, units, warnings};
use crate::clock::WallTime;
use crate::pg::Lsn;
use crate::vitals::Contact;

/// The whole topology, seen from one node.
pub fn status(status: &Status) -> String {
    let mut text = heading(status);
    text += &facts(status).indented().render();
    text.push('\n');
    text += &nodes(status).render();
    let seats = status.commits.as_ref().map(commits::seats);
    for table in
        [seats, Some(behind_by(&lag::of(status).standbys)), Some(links(status))].into_iter().flatten()
    {
        if !table.is_empty() {
            text.push('\n');
            text += &table.render();
        }
    }
    for alarm in warnings::alarms(status) {
        let _ = write!(text, "\ncritical: {alarm}");
    }
    for warning in warnings::of(status) {
        let _ = write!(text, "\nwarning: {warning}");
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// How far each standby is behind, with the level that the limits give.
pub fn lag(report: &LagReport, limits: &Limits) -> String {
    let mut grid = Grid::new(["STANDBY", "LEVEL", "HEARD", "SHIP", "FLUSH", "REPLAY"]);
    for standby in &report.standbys {
        let level = standby.level(limits).name().to_owned();
        let mut row = vec![standby.name.clone(), level, heard(standby.link)];
        row.extend(Stage::ALL.map(|stage| behind(standby.stage(stage))));
        grid.row(row);
    }
    let mut text = match report.standbys.is_empty() {
        true => "no standby is known here, so there is no lag to show\n".to_owned(),
        false => grid.render(),
    };
    for alarm in &report.alarms {
        let _ = writeln!(text, "\ncritical: {alarm}");
    }
    for note in &report.notes {
        let _ = writeln!(text, "\nnote: {note}");
    }
    text
}

/// A lag in one cell: `1.2 MiB (2s)`.
pub fn behind(behind: Behind) -> String {
    match (behind.bytes, behind.time) {
        (Amount::Unknown, Amount::Unknown) => "unknown".to_owned(),
        (bytes, time) => {
            format!("{} ({})", amount(bytes, units::size), amount(time, units::duration))
        }
    }
}

fn amount<T>(amount: Amount<T>, show: impl Fn(T) -> String) -> String {
    match amount {
        Amount::Known(value) => show(value),
        Amount::AtLeast(value) => format!(">={}", show(value)),
        Amount::Unknown => "unknown".to_owned(),
    }
}

/// When a peer was last heard: `0.2s ago`, `cut 3m12s`, `never`.
fn heard(link: Link) -> String {
    match link {
        Link::Up(Some(age)) => format!("{} ago", units::duration(age)),
        Link::Up(None) => "connected".to_owned(),
        Link::Cut(Some(age)) => format!("cut {}", units::duration(age)),
        Link::Cut(None) => "never".to_owned(),
    }
}

fn heading(status: &Status) -> String {
    let node = &status.node;
    let postgres = match node.postgres_version.as_str() {
        "" => "PostgreSQL not seen yet".to_owned(),
        version => format!("PostgreSQL {version}"),
    };
    let promised = match node.promised_epoch > node.committed_epoch {
        true => format!(", promised {}", node.promised_epoch),
        false => String::new(),
    };
    format!(
        "{}: {}, {postgres}, timeline {}, epoch {}{promised}, system {}\n",
        node.name,
        node.role.name(),
        node.timeline,
        node.committed_epoch,
        node.system_identifier
    )
}

/// How far the copy is that this node is being made of.
fn seeding_in_words(seeding: &Seeding) -> String {
    let mut text = seeding.phase.clone();
    if seeding.total_bytes > 0 {
        let (done, total) = (units::size(seeding.done_bytes), units::size(seeding.total_bytes));
        let _ = write!(text, ", {done} of {total}");
    }
    if seeding.equal_bytes > 0 {
        let _ = write!(text, ", {} of them here already", units::size(seeding.equal_bytes));
    }
    if seeding.attempts > 1 {
        let _ = write!(text, "; attempt {}", seeding.attempts);
    }
    text
}

/// What this node has, line by line.
fn facts(status: &Status) -> Grid {
    let mut grid = Grid::headless();
    let mut fact = |name: &str, value: String| grid.row(vec![name.to_owned(), value]);
    fact("primary", primary(status));
    if let Some(seeding) = &status.seeding {
        fact("seeding", seeding_in_words(seeding));
    }
    // Straight from the primary is not worth a line.
    if let Some(upstream) = status.upstream.as_ref().filter(|up| up.route.len() > 2 || !up.from_primary) {
        fact("way", way(upstream));
    }
    if let Some(feed) = &status.feed {
        let replayed = position(feed.replayed);
        fact("feed", format!("replayed {replayed}, {}", connection(&feed.contact, status.taken_at)));
    }
    for (name, value) in status.commits.iter().flat_map(commits::facts) {
        fact(name, value);
    }
    let store = &status.store;
    fact("store", store.directory.display().to_string());
    let holds = match store.start.is_valid() {
        true => format!(
            "{} to {}, durable to {}, sealed to {}",
            store.start, store.appended, store.durable, store.sealed
        ),
        false => "nothing yet".to_owned(),
    };
    fact("", holds);
    let limit = if store.max_bytes > 0 { units::size(store.max_bytes) } else { unknown() };
    fact("", format!("{} of at most {limit}", units::size(store.disk_bytes)));
    for hold in &store.holds {
        // One that never said where it is may need all there is.
        let from = hold.lsn.max(store.start);
        fact("held by", format!("{} from {from}", hold.who));
    }
    for way in &status.catching_up {
        fact("catching up", catching_up(way));
    }
    for backup in &status.backups {
        let (done, total) = (units::size(backup.done_bytes), units::size(backup.total_bytes));
        let equal = match backup.equal_bytes {
            0 => String::new(),
            bytes => format!(", {} of them there already", units::size(bytes)),
        };
        fact("backup", format!("{}: {}, {done} of {total}{equal}", backup.client, backup.phase));
    }
    if let Some(last) = &status.last_promotion {
        fact("promoted", format!("{}, epoch {}, {}", last.node, last.epoch, last.committed_at.rfc3339()));
    }
    if let Some(certificate) = status.certificate {
        fact("certificate", format!("until {}", certificate.expires.rfc3339()));
    }
    grid
}

/// How far one is on its way: `db3 lacks 1.2 GiB, gets 80.0 MiB/s, and is there in 15s`.
fn catching_up(way: &CatchUp) -> String {
    let rate = way.bytes_per_second.map_or_else(unknown, |rate| format!("{}/s", units::size(rate)));
    let left = match (way.left, way.bytes_per_second) {
        (Some(left), _) => format!("and is there in {}", units::duration(left)),
        (None, Some(_)) => "and does not get nearer".to_owned(),
        (None, None) => "for how long is unknown".to_owned(),
    };
    format!("{} lacks {}, gets {rate}, {left}", way.standby, units::size(way.behind_bytes))
}

fn primary(status: &Status) -> String {
    let primary = &status.primary;
    let heard = match lag::link(&primary.contact, primary.last_contact, status.taken_at) {
        Link::Up(age) => format!("heard {} ago", units::duration(age.unwrap_or_default())),
        Link::Cut(Some(age)) => format!("not heard for {}", units::duration(age)),
        Link::Cut(None) => "never heard".to_owned(),
    };
    format!("flushed {}, {heard}", position(primary.flush_lsn))
}

/// The way of the WAL to this node, as it flows.
fn way(upstream: &Upstream) -> String {
    let end = if upstream.from_primary { "" } else { " <- nobody" };
    format!("{}{end}", upstream.route.join(" <- "))
}

/// How a connection is doing; why it is not doing well is said by the warnings.
fn connection(contact: &Contact, now: WallTime) -> String {
    let (state, since) = match contact {
        Contact::Never => return "never up".to_owned(),
        Contact::Trying { since, error: None } => ("connecting", since),
        Contact::Trying { since, error: Some(_) } => ("down", since),
        Contact::Up { since } => ("up", since),
        Contact::Stopped { since, .. } => ("stopped", since),
    };
    format!("{state} for {}", units::duration(lag::age(*since, now)))
}

/// The member list, with what this node knows itself, for it is newer.
fn nodes(status: &Status) -> Grid {
    let mut grid =
        Grid::new(["NODE", "ROLE", "FROM", "ADDRESS", "TIMELINE", "SHIPPED", "FLUSHED", "REPLAYED"]);
    let mut node =
        |name: String, role: Role, from: Option<&str>, address: &str, progress: super::Progress| {
            let timeline = progress.timeline.map_or_else(unknown, |timeline| timeline.to_string());
            // A reader holds nothing, a primary is where the positions come from, and one that was superseded goes nowhere.
            let of = |lsn| if role == Role::Standby { position(lsn) } else { "-".to_owned() };
            let timeline =
                if matches!(role, Role::Reader | Role::Superseded) { "-".to_owned() } else { timeline };
            let texts = [role.name(), from.unwrap_or("-"), or_dash(address)].map(str::to_owned);
            let positions = [of(progress.shipped), of(progress.flushed), of(progress.replayed)];
            grid.row([vec![name], texts.into(), vec![timeline], positions.into()].concat());
        };
    let own = &status.node;
    let upstream = status.upstream.as_ref().filter(|up| matches!(up.contact, Contact::Up { .. }));
    let from = upstream.map(|up| up.name.as_str());
    node(format!("{} *", own.name), own.role, from, &own.advertise, status.own_progress());
    for member in status.members.iter().filter(|member| member.name != own.name) {
        let here = status.downstreams.iter().find(|peer| peer.name == member.name);
        let progress = here.map_or(member.progress, |peer| peer.progress);
        let from = here.and_then(|peer| from_of(own, peer)).or(member.upstream.as_deref());
        node(member.name.clone(), member.role, from, &member.advertise, progress);
    }
    let stranger = |name: &str| name != own.name && status.members.iter().all(|member| member.name != name);
    for peer in status.downstreams.iter().filter(|peer| stranger(&peer.name)) {
        node(peer.name.clone(), Role::Standby, from_of(own, peer), &peer.address, peer.progress);
    }
    grid
}

/// Whom a downstream follows, while it does.
fn from_of<'a>(own: &'a Node, peer: &'a Downstream) -> Option<&'a str> {
    matches!(peer.contact, Contact::Up { .. }).then(|| peer.via.as_deref().unwrap_or(&own.name))
}

/// How far each standby is behind, without an opinion.
fn behind_by(standbys: &[StandbyLag]) -> Grid {
    let mut grid = Grid::new(["STANDBY", "HEARD", "SHIP", "FLUSH", "REPLAY"]);
    for standby in standbys {
        let stages = Stage::ALL.map(|stage| behind(standby.stage(stage)));
        grid.row([vec![standby.name.clone(), heard(standby.link)], stages.into()].concat());
    }
    grid
}

/// This node's links, and what went over them.
fn links(status: &Status) -> Grid {
    let mut grid = Grid::new(["LINK", "ADDRESS", "RAW", "WIRE", "RATIO", "STATE"]);
    let mut link = |name: String, address: &str, traffic: Traffic, contact: &Contact| {
        let (raw, wire) = (units::size(traffic.raw_bytes), units::size(traffic.wire_bytes));
        let ratio = traffic.ratio().map_or_else(|| "-".to_owned(), units::ratio);
        grid.row(vec![
            name,
            or_dash(address).to_owned(),
            raw,
            wire,
            ratio,
            connection(contact, status.taken_at),
        ]);
    };
    if let Some(up) = &status.upstream {
        link(format!("from {}", or_dash(&up.name)), &up.address, up.traffic, &up.contact);
    }
    for peer in status.downstreams.iter().filter(|peer| peer.via.is_none()) {
        link(format!("to {}", peer.name), &peer.address, peer.traffic, &peer.contact);
    }
    grid
}

fn position(lsn: Option<Lsn>) -> String {
    lsn.map_or_else(unknown, |lsn| lsn.to_string())
}

fn unknown() -> String {
    "unknown".to_owned()
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// Rows of cells in columns as wide as their widest cell.
struct Grid {
    rows: Vec<Vec<String>>,
    indent: usize,
}

impl Grid {
    fn new<const N: usize>(head: [&str; N]) -> Grid {
        Grid { rows: vec![head.map(str::to_owned).into()], indent: 0 }
    }

    fn headless() -> Grid {
        Grid { rows: Vec::new(), indent: 0 }
    }

    fn indented(self) -> Grid {
        Grid { indent: 2, ..self }
    }

    /// True without a row below the head.
    fn is_empty(&self) -> bool {
        self.rows.len() <= 1
    }

    fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(self.indent);
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:width$}  ");
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}
