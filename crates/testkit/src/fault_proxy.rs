//! A proxy for HTTP/1.1 that does to requests what networks and services do: fails them, delays them, cuts their answers.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A request, as far as a fault depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Counts from 1.
    pub number: u64,
    pub method: String,
    pub path: String,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Is passed on after a while.
    Delay(Duration),
    /// Is answered with this status and never passed on.
    Status(u16),
    /// Is passed on, and the answer is cut after so many bytes.
    Cut(u64),
    /// Is passed on, and its answer lost.
    Lost,
    /// Is never answered, for so long.
    Hang(Duration),
}

type Decide = Arc<dyn Fn(&Request) -> Fault + Send + Sync>;

/// Listens on loopback, and passes requests on to one server. Ends with the value.
#[derive(Debug)]
pub struct FaultProxy {
    port: u16,
    requests: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

impl FaultProxy {
    /// `decide` is asked about each request, from any thread.
    pub fn start(server: u16, decide: impl Fn(&Request) -> Fault + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a port");
        let port = listener.local_addr().expect("it is bound").port();
        let (requests, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, ends, decide): (_, _, Decide) = (Arc::clone(&requests), Arc::clone(&is_over), Arc::new(decide));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                let (counted, decide) = (Arc::clone(&counted), Arc::clone(&decide));
                std::thread::spawn(move || {
                    // A client that goes away is no fault of the proxy's.
                    serve(client, server, &counted, &decide).ok();
                });
            }
        });
        Self { port, requests, is_over }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// How many requests there were.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for clients.
        TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], self.port))).ok();
    }
}

/// The one request of a connection: the server is told to end it, so that its end is that of the answer.
fn serve(mut client: TcpStream, server: u16, counted: &AtomicU64, decide: &Decide) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = Vec::new();
    let mut content_length = 0u64;
    let mut request_line = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if request_line.is_empty() {
            request_line.clone_from(&line);
        } else if let Some((name, value)) = line.split_once(':') {
            if name.eq_ignore_ascii_case("content-length") {
                content_length = value.trim().parse().unwrap_or(0);
            }
            if name.eq_ignore_ascii_case("connection") {
                continue;
            }
        }
        if line.trim().is_empty() {
            break;
        }
        head.extend_from_slice(line.as_bytes());
    }
    head.extend_from_slice(b"Connection: close\r\n\r\n");
    let mut words = request_line.split(' ');
    let request = Request {
        number: counted.fetch_add(1, Ordering::Relaxed) + 1,
        method: words.next().unwrap_or_default().to_owned(),
        path: words.next().unwrap_or_default().to_owned(),
    };
    let mut body = vec![0; content_length as usize];
    reader.read_exact(&mut body)?;
    let fault = decide(&request);
    match fault {
        Fault::Status(status) => {
            let answer = format!("HTTP/1.1 {status} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            client.write_all(answer.as_bytes())?;
            return client.shutdown(Shutdown::Both);
        }
        Fault::Hang(time) => {
            std::thread::sleep(time);
            return client.shutdown(Shutdown::Both);
        }
        Fault::Delay(time) => std::thread::sleep(time),
        Fault::None | Fault::Cut(_) | Fault::Lost => {}
    }
    let mut upstream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], server)))?;
    upstream.set_nodelay(true)?;
    upstream.write_all(&head)?;
    upstream.write_all(&body)?;
    let limit = match fault {
        Fault::Cut(bytes) => bytes,
        Fault::Lost => 0,
        _ => u64::MAX,
    };
    let mut answer = upstream.take(limit);
    if fault == Fault::Lost {
        // It has been done when there is an answer.
        let mut first = [0];
        answer.into_inner().read_exact(&mut first)?;
        return client.shutdown(Shutdown::Both);
    }
    std::io::copy(&mut answer, &mut client)?;
    // The server's answer says that the connection ends with it.
    client.shutdown(Shutdown::Both)
}
