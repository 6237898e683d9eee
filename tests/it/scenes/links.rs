//! A network between nodes that can be cut for each pair and each direction.
//!
//! All dial the one address that a node advertises, so who dials is found out: the client's port leads to its socket's
//! inode (/proc/net/tcp), and that to the process that has it open, which is one of the nodes' sidecars. Whoever is none
//! of them is turned away, so that nothing passes by the rules unseen.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use walship::demo::{Direction, Wire};

/// The network; dropping it closes all that was open.
#[derive(Default)]
pub struct Links {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// The process of each node that runs.
    processes: Mutex<BTreeMap<String, u32>>,
    /// By who dials and who is dialled.
    wires: Mutex<BTreeMap<(String, String), Arc<Wire>>>,
    stop: CancellationToken,
}

impl Links {
    /// Listens in a node's place; the address that it is to advertise.
    pub async fn place(&self, name: &str, listens: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(accept(listener, name.to_owned(), listens, Arc::clone(&self.shared)));
        address
    }

    /// Notes which process dials for a node from now on.
    pub fn is(&self, name: &str, process: u32) {
        self.shared.processes.lock().unwrap().insert(name.to_owned(), process);
    }

    /// Closes what is open between two nodes, and lets neither reach the other.
    pub fn cut(&self, one: &str, other: &str) {
        self.shared.wire(one, other).cut();
        self.shared.wire(other, one).cut();
    }

    /// Closes what is open between two nodes; on what they open from then on nothing that one says reaches the other,
    /// whoever of them dialled, and what the other says arrives.
    pub fn cut_one_way(&self, from: &str, to: &str) {
        let (theirs, back) = (self.shared.wire(from, to), self.shared.wire(to, from));
        theirs.stall_one_way(Direction::ToTarget);
        back.stall_one_way(Direction::FromTarget);
        theirs.reset();
        back.reset();
    }

    /// Everything passes again; what was held back arrives.
    pub fn heal(&self) {
        self.shared.wires.lock().unwrap().values().for_each(|wire| wire.heal());
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        self.shared.wires.lock().unwrap().values().for_each(|wire| wire.close());
    }
}

impl Shared {
    fn wire(&self, dialler: &str, target: &str) -> Arc<Wire> {
        let pair = (dialler.to_owned(), target.to_owned());
        self.wires.lock().unwrap().entry(pair).or_default().clone()
    }

    /// Whose socket this is.
    fn owner_of(&self, ours: SocketAddr, theirs: SocketAddr) -> Option<String> {
        let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
        let inode = inode_of(&table, theirs, ours)?;
        let processes = self.processes.lock().unwrap();
        let owner = processes.iter().find(|(_, process)| has_open(**process, inode));
        owner.map(|(name, _)| name.clone())
    }
}

async fn accept(listener: TcpListener, name: String, listens: SocketAddr, shared: Arc<Shared>) {
    let ours = listener.local_addr().unwrap();
    loop {
        let accepted = tokio::select! {
            // Both are cancellation safe: a connection that was not taken stays in the queue.
            accepted = listener.accept() => accepted,
            () = shared.stop.cancelled() => return,
        };
        let Ok((client, theirs)) = accepted else { continue };
        tokio::spawn(connection(client, ours, theirs, name.clone(), listens, Arc::clone(&shared)));
    }
}

async fn connection(
    client: TcpStream,
    ours: SocketAddr,
    theirs: SocketAddr,
    name: String,
    listens: SocketAddr,
    shared: Arc<Shared>,
) {
    let asked = Arc::clone(&shared);
    // Much of /proc is read.
    let owner = tokio::task::spawn_blocking(move || asked.owner_of(ours, theirs)).await.unwrap();
    // One that has hung up already has no owner either.
    let Some(dialler) = owner else { return };
    shared.wire(&dialler, &name).carry(client, listens).await;
}

/// The inode of the socket with these two ends, from the kernel's table.
fn inode_of(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let (local, remote) = (in_table(local)?, in_table(remote)?);
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = fields.get(1) == Some(&local.as_str()) && fields.get(2) == Some(&remote.as_str());
        fields.get(9).filter(|_| is_it)?.parse().ok()
    })
}

/// An address as the kernel prints it: the number as it lies in memory, then the port.
fn in_table(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else { return None };
    let number = u32::from_ne_bytes(address.ip().octets());
    Some(format!("{number:08X}:{:04X}", address.port()))
}

fn has_open(process: u32, inode: u64) -> bool {
    let socket = format!("socket:[{inode}]");
    let files = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    files.map(|file| std::fs::read_link(file.path())).any(|to| to.is_ok_and(|to| to == Path::new(&socket)))
}

#[test]
fn the_kernels_table_is_read() {
    let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                 0: 0100007F:4E20 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 17 1 0\n   \
                 1: 0100007F:8000 0100007F:4E20 01 00000000:00000000 00:00000000 00000000     0        0 42 1 0\n";
    let at = |port| SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
    assert_eq!(inode_of(table, at(0x8000), at(0x4e20)), Some(42));
    assert_eq!(inode_of(table, at(0x4e20), at(0x8000)), None);
}

/// Links that are tried with processes that dial and note what they hear.
mod tried {
    use std::net::SocketAddr;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};

    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::Links;
    use crate::harness::eventually;

    /// A process of its own that dials, says its name, and notes what it hears until that ends.
    struct Dialler {
        child: Child,
        heard: PathBuf,
    }

    impl Dialler {
        fn start(links: &Links, folder: &Path, name: &str, to: SocketAddr) -> Dialler {
            let (heard, port) = (folder.join(format!("{name}.heard")), to.port());
            // bash dials by itself, once the links know it.
            let script = format!(
                "read; exec 3<>/dev/tcp/127.0.0.1/{port}; echo {name} >&3; exec cat <&3 >{}",
                heard.display()
            );
            let mut bash = Command::new("bash");
            let mut child = bash.args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
            links.is(name, child.id());
            drop(child.stdin.take());
            Dialler { child, heard }
        }

        fn has_heard(&self) -> String {
            std::fs::read_to_string(&self.heard).unwrap_or_default()
        }

        async fn hears(&self, text: &str) {
            eventually(&format!("{text:?} is heard"), async || {
                anyhow::ensure!(self.has_heard() == text, "{:?}", self.has_heard());
                Ok(())
            })
            .await;
        }

        /// Waits until its connection was closed.
        async fn is_cut(&mut self) {
            eventually("the connection is closed", async || {
                anyhow::ensure!(self.child.try_wait()?.is_some(), "it is open");
                Ok(())
            })
            .await;
        }
    }

    impl Drop for Dialler {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// A server that sends back what it gets, on all connections.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = connection.into_split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn a_cut_is_for_one_pair_and_strangers_are_turned_away() {
        let folder = tempfile::tempdir().unwrap();
        let links = Links::default();
        let address = links.place("server", echo().await).await;
        let mut one = Dialler::start(&links, folder.path(), "one", address);
        let mut two = Dialler::start(&links, folder.path(), "two", address);
        one.hears("one\n").await;
        two.hears("two\n").await;
        links.cut("server", "one");
        one.is_cut().await;
        let mut again = Dialler::start(&links, folder.path(), "one", address);
        again.is_cut().await;
        assert_eq!(again.has_heard(), "", "it came through");
        assert!(two.child.try_wait().unwrap().is_none(), "the other one has its connection");
        links.heal();
        Dialler::start(&links, folder.path(), "one", address).hears("one\n").await;
        let heard = TcpStream::connect(address).await.unwrap().read(&mut [0]).await;
        assert!(matches!(heard, Ok(0) | Err(_)), "this process is no node");
    }

    #[tokio::test]
    async fn cut_one_way_the_other_way_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let links = Links::default();
        let address = links.place("server", echo().await).await;
        links.cut_one_way("server", "one");
        links.cut_one_way("two", "server");
        let one = Dialler::start(&links, folder.path(), "one", address);
        let two = Dialler::start(&links, folder.path(), "two", address);
        // What the one says arrives and is answered, and the answer does not come; the other is never heard.
        eventually("the server has heard it", async || {
            let traffic = links.shared.wire("one", "server").traffic();
            anyhow::ensure!((traffic.to_target_bytes, traffic.from_target_bytes) == (4, 0), "{traffic:?}");
            Ok(())
        })
        .await;
        assert_eq!(links.shared.wire("two", "server").traffic().to_target_bytes, 0);
        assert_eq!((one.has_heard(), two.has_heard()), (String::new(), String::new()));
        links.heal();
        one.hears("one\n").await;
        two.hears("two\n").await;
    }
}
