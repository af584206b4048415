//! `relay TARGET MILLISECONDS MBIT`: a link between this machine and TARGET (`HOST:PORT`), of that round-trip time and that bandwidth in
//! each direction, for all connections together. It tells its own port on the first line. For each line that it reads from then on it
//! tells, on one line, how many requests of HTTP/1.1 and how many bytes have gone up, and how many bytes have come down, since the line
//! before. It ends with its input.
//!
//! ```text
//! client ──▶ read ──▶ its turn on the link ──▶ waits for half of a round trip ──▶ TARGET
//!        ◀── waits for half of a round trip ◀── its turn on the link ◀── read ◀──
//! ```
//!
//! What a link does that this does not: connections begin at full speed, and lose nothing. That they take a round trip to be made is in
//! it: the first bytes of each wait for one more.

use std::error::Error;
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// Bytes that take their turn on the link together: as many as a segment of a network card has.
const SEGMENT: usize = 16 << 10;
/// Segments of one connection that are under way at most: 4 MiB, more than any of the links that are measured holds.
const UNDER_WAY: usize = 256;
/// How every request of HTTP/1.1 ends its first line.
const FIRST_LINE: &[u8] = b" HTTP/1.1\r\n";

/// One direction of the link.
struct Link {
    bytes_per_second: f64,
    /// From when on it is free.
    free: Mutex<Instant>,
    bytes: AtomicU64,
}

impl Link {
    fn new(megabits: f64) -> Link {
        let bytes_per_second = megabits * 1e6 / 8.0;
        Link { bytes_per_second, free: Mutex::new(Instant::now()), bytes: AtomicU64::new(0) }
    }

    /// When so many bytes that come now have left.
    fn take_turn(&self, bytes: usize) -> Instant {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = Instant::now().max(*free) + takes;
        *free
    }
}

/// Counts requests in what goes up, wherever it is cut.
#[derive(Default)]
struct Requests {
    matched: usize,
}

impl Requests {
    fn count(&mut self, bytes: &[u8]) -> u64 {
        let mut found = 0;
        for byte in bytes {
            // No part of it but its beginning begins it.
            self.matched = match *byte {
                byte if byte == FIRST_LINE[self.matched] => self.matched + 1,
                byte if byte == FIRST_LINE[0] => 1,
                _ => 0,
            };
            if self.matched == FIRST_LINE.len() {
                (self.matched, found) = (0, found + 1);
            }
        }
        found
    }
}

struct Relay {
    target: String,
    half: Duration,
    up: Link,
    down: Link,
    requests: AtomicU64,
}

impl Relay {
    async fn carry(self: Arc<Relay>, client: TcpStream) -> std::io::Result<()> {
        let target = TcpStream::connect(&self.target).await?;
        client.set_nodelay(true)?;
        target.set_nodelay(true)?;
        let ((from_client, to_client), (from_target, to_target)) = (client.into_split(), target.into_split());
        let (relay, mut requests) = (self.clone(), Requests::default());
        let counted = move |bytes: &[u8]| {
            relay.requests.fetch_add(requests.count(bytes), Ordering::Relaxed);
        };
        tokio::try_join!(
            pass(&self.up, from_client, to_target, self.half, self.half * 2, counted),
            pass(&self.down, from_target, to_client, self.half, Duration::ZERO, |_| {}),
        )?;
        Ok(())
    }

    fn told(&self) -> String {
        let [requests, up, down] = [&self.requests, &self.up.bytes, &self.down.bytes]
            .map(|counter| counter.swap(0, Ordering::Relaxed));
        format!("{requests} {up} {down}")
    }
}

/// Passes one direction of a connection on to its end. What comes first waits for `first` more.
async fn pass(
    link: &Link,
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    delay: Duration,
    mut first: Duration,
    mut seen: impl FnMut(&[u8]),
) -> std::io::Result<()> {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let read = async move {
        let mut buffer = vec![0; SEGMENT];
        let mut arrives = Instant::now();
        loop {
            let length = from.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            seen(&buffer[..length]);
            // What comes later does not overtake it.
            arrives = arrives.max(link.take_turn(length) + delay + std::mem::take(&mut first));
            if sender.send((arrives, buffer[..length].to_vec())).await.is_err() {
                return Ok(());
            }
        }
    };
    let write = async move {
        while let Some((arrives, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(arrives.into()).await;
            to.write_all(&bytes).await?;
        }
        to.shutdown().await
    };
    let ended: (std::io::Result<()>, std::io::Result<()>) = tokio::join!(read, write);
    ended.0.and(ended.1)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [target, milliseconds, megabits] = arguments.as_slice() else {
        return Err("usage: relay HOST:PORT MILLISECONDS MBIT".into());
    };
    let (milliseconds, megabits): (f64, f64) = (milliseconds.parse()?, megabits.parse()?);
    if !(0.0..1e6).contains(&milliseconds) || megabits.is_nan() || megabits <= 0.0 {
        return Err("a round trip of less than 1000 s, please, and a bandwidth above 0".into());
    }
    let relay = Arc::new(Relay {
        target: target.clone(),
        half: Duration::from_secs_f64(milliseconds / 2000.0),
        up: Link::new(megabits),
        down: Link::new(megabits),
        requests: AtomicU64::new(0),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let mut output = std::io::stdout();
    writeln!(output, "{}", listener.local_addr()?.port())?;
    output.flush()?;
    let accepting = relay.clone();
    runtime.spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let relay = accepting.clone();
            // A connection that breaks is told to its ends.
            tokio::spawn(async move { drop(relay.carry(client).await) });
        }
    });
    for line in std::io::stdin().lock().lines() {
        line?;
        writeln!(output, "{}", relay.told())?;
        output.flush()?;
    }
    // Connections that are open must not keep it.
    runtime.shutdown_background();
    Ok(())
}
