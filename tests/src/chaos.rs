//! A bad network: a TCP proxy that delays, cuts into pieces, stalls and breaks what goes through it.

use crate::random::Random;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How bad it is, each in ‰ of what is read.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// Delayed by up to 100 ms.
    pub delayed: u64,
    /// Sent on byte by byte at first.
    pub shredded: u64,
    /// Held for up to ten seconds, the connection open.
    pub stalled: u64,
    /// Broken off in the middle, both ways at once.
    pub cut: u64,
}

impl Faults {
    /// As bad as a mobile network in a tunnel.
    pub const BAD: Self = Self {
        delayed: 200,
        shredded: 50,
        stalled: 10,
        cut: 10,
    };
}

/// What happened to connections.
#[derive(Debug, Default)]
struct Tally {
    connections: AtomicU64,
    stalls: AtomicU64,
    cuts: AtomicU64,
}

struct Inner {
    to: SocketAddr,
    faults: Faults,
    /// Whether it misbehaves at all.
    is_bad: AtomicBool,
    random: Mutex<Random>,
    tally: Tally,
    /// Sent on to break every connection.
    cut_all: watch::Sender<u64>,
}

/// A proxy; it ends with this.
pub struct Chaos {
    /// Where it listens.
    pub port: u16,
    inner: Arc<Inner>,
    accepting: JoinHandle<()>,
}

impl Chaos {
    /// Listens on any port of the loopback interface, well-behaved at first.
    ///
    /// # Errors
    /// There is no port.
    pub async fn start(to: SocketAddr, faults: Faults, random: Random) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let inner = Arc::new(Inner {
            to,
            faults,
            is_bad: AtomicBool::new(false),
            random: Mutex::new(random),
            tally: Tally::default(),
            cut_all: watch::Sender::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&inner)));
        Ok(Self {
            port,
            inner,
            accepting,
        })
    }

    /// Misbehaves from now on, or no more.
    pub fn set_bad(&self, is_bad: bool) {
        self.inner.is_bad.store(is_bad, Ordering::Relaxed);
    }

    /// Breaks every connection.
    pub fn cut_all(&self) {
        self.inner.cut_all.send_modify(|n| *n += 1);
    }

    /// Connections, stalls and cuts so far.
    #[must_use]
    pub fn tally(&self) -> [u64; 3] {
        let tally = &self.inner.tally;
        [&tally.connections, &tally.stalls, &tally.cuts].map(|n| n.load(Ordering::Relaxed))
    }
}

impl Drop for Chaos {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut_all();
    }
}

async fn accept(listener: TcpListener, inner: Arc<Inner>) {
    while let Ok((near, _)) = listener.accept().await {
        let inner = Arc::clone(&inner);
        tokio::spawn(async move {
            // Nobody at home: the connection is closed, as it would be without a proxy.
            let Ok(far) = TcpStream::connect(inner.to).await else {
                return;
            };
            inner.tally.connections.fetch_add(1, Ordering::Relaxed);
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            let mut cut_all = inner.cut_all.subscribe();
            let up = pump(near_read, far_write, &inner);
            let down = pump(far_read, near_write, &inner);
            // The first that ends takes the other with it; what is dropped is closed.
            tokio::select! {
                () = up => {}
                () = down => {}
                _ = cut_all.changed() => {}
            }
        });
    }
}

enum Fate {
    Pass,
    Delay(Duration),
    Shred,
    Stall(Duration),
    Cut(usize),
}

fn fate(inner: &Inner, length: usize) -> Fate {
    if !inner.is_bad.load(Ordering::Relaxed) {
        return Fate::Pass;
    }
    let mut random = inner.random.lock().unwrap_or_else(PoisonError::into_inner);
    let mut dice = random.below(1000);
    let mut falls = |share: u64| {
        let hit = dice < share;
        dice = dice.saturating_sub(share);
        hit
    };
    let faults = inner.faults;
    let ms = |random: &mut Random, most| Duration::from_millis(random.below(most));
    if falls(faults.cut) {
        return Fate::Cut(usize::try_from(random.below(length as u64)).unwrap_or(0));
    }
    if falls(faults.stalled) {
        return Fate::Stall(ms(&mut random, 10_000));
    }
    if falls(faults.shredded) {
        return Fate::Shred;
    }
    if falls(faults.delayed) {
        return Fate::Delay(ms(&mut random, 100));
    }
    Fate::Pass
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, inner: &Inner) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read) = from.read(&mut buffer).await
        && read > 0
    {
        let mut bytes = &buffer[..read];
        match fate(inner, read) {
            Fate::Pass => {}
            Fate::Delay(time) => tokio::time::sleep(time).await,
            Fate::Stall(time) => {
                inner.tally.stalls.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(time).await;
            }
            Fate::Shred => {
                let (first, rest) = bytes.split_at(read.min(64));
                for byte in first {
                    if to.write_all(&[*byte]).await.is_err() || to.flush().await.is_err() {
                        return;
                    }
                }
                bytes = rest;
            }
            Fate::Cut(at) => {
                inner.tally.cuts.fetch_add(1, Ordering::Relaxed);
                let _ = to.write_all(&bytes[..at]).await;
                return;
            }
        }
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}
