//! A proxy for TCP through which every answer takes longer, as from far away: its bytes arrive later, and no slower.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

const CHUNK: usize = 256 << 10;
const METHODS: [&[u8]; 5] = [b"GET ", b"PUT ", b"HEAD ", b"POST ", b"DELETE "];

/// Listens on loopback for as long as the process lives.
#[derive(Debug)]
pub struct DelayProxy {
    port: u16,
    requests: Arc<AtomicU64>,
}

impl DelayProxy {
    pub fn start(server: u16, delay: Duration) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a port");
        let port = listener.local_addr().expect("it is bound").port();
        let requests = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&requests);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A client or a server that goes away is no fault of the proxy's.
                serve(client, server, delay, &counted).ok();
            }
        });
        Self { port, requests }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// How many requests of HTTP/1.1 there were, of clients that wait for the answer before the next.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

fn serve(client: TcpStream, server: u16, delay: Duration, counted: &Arc<AtomicU64>) -> std::io::Result<()> {
    let upstream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], server)))?;
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    let (sent, waiting) = sync_channel(64);
    let (from, to) = (upstream.try_clone()?, client.try_clone()?);
    let counted = Arc::clone(counted);
    std::thread::spawn(move || forward(client, upstream, &counted));
    std::thread::spawn(move || hold(from, &sent, delay));
    std::thread::spawn(move || release(&waiting, to));
    Ok(())
}

fn forward(mut client: TcpStream, mut upstream: TcpStream, counted: &AtomicU64) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(len @ 1..) = client.read(&mut buffer) {
        let bytes = &buffer[..len];
        if METHODS.iter().any(|method| bytes.starts_with(method)) {
            counted.fetch_add(1, Ordering::Relaxed);
        }
        if upstream.write_all(bytes).is_err() {
            break;
        }
    }
    upstream.shutdown(Shutdown::Write).ok();
}

fn hold(mut upstream: TcpStream, sent: &SyncSender<(Instant, Vec<u8>)>, delay: Duration) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(len @ 1..) = upstream.read(&mut buffer) {
        if sent.send((Instant::now() + delay, buffer[..len].to_vec())).is_err() {
            return;
        }
    }
}

fn release(waiting: &Receiver<(Instant, Vec<u8>)>, mut client: TcpStream) {
    while let Ok((at, bytes)) = waiting.recv() {
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        if client.write_all(&bytes).is_err() {
            return;
        }
    }
    client.shutdown(Shutdown::Write).ok();
}
