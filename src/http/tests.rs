use super::*;
use crate::error::report;
use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A server on the loopback interface that answers each request, with its number, as it is told to.
pub(crate) struct Server {
    pub(crate) uri: String,
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) fn new(answer: impl Fn(usize, &str, &mut TcpStream) + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("http://{}/debian", listener.local_addr().unwrap());
        let server = Server { uri, requests: Arc::default(), connections: Arc::default() };
        let (requests, connections) = (server.requests.clone(), server.connections.clone());
        let answer = Arc::new(answer);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                connections.fetch_add(1, Ordering::SeqCst);
                let (requests, answer) = (requests.clone(), answer.clone());
                thread::spawn(move || {
                    while let Some(request) = read_request(&mut stream) {
                        let number = {
                            let mut requests = requests.lock().unwrap();
                            requests.push(request.clone());
                            requests.len() - 1
                        };
                        answer(number, &request, &mut stream);
                        if stream.flush().is_err() || !request.contains("keep") {
                            break;
                        }
                    }
                });
            }
        });
        server
    }

    /// A server that always answers the same.
    pub(crate) fn constant(answer: impl Into<Vec<u8>>) -> Server {
        let answer = answer.into();
        Server::new(move |_, _, stream| stream.write_all(&answer).unwrap_or_default())
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut reader = BufReader::new(stream);
    let mut text = String::new();
    while !text.ends_with("\r\n\r\n") {
        if reader.read_line(&mut text).ok()? == 0 {
            return None;
        }
    }
    Some(text.to_lowercase())
}

pub(crate) fn ok(body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

fn status(line: &str) -> Vec<u8> {
    format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n").into_bytes()
}

/// Gives up quickly.
pub(crate) fn hasty() -> Policy {
    Policy {
        idle: Duration::from_secs(5),
        slowest: (1000, Duration::from_secs(5)),
        tries: 2,
        pause: Duration::from_millis(5),
        ..Policy::default()
    }
}

/// A sink that wants certain bytes.
struct Wanted(Vec<u8>, &'static [u8]);

impl Sink for Wanted {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.put(bytes)
    }

    fn restart(&mut self) -> Result<()> {
        self.0.restart()
    }

    fn verify(&mut self) -> Result<Option<String>> {
        Ok((self.0 != self.1).then(|| "has a wrong digest".to_owned()))
    }
}

const BODY: &[u8] = b"0123456789abcdefghij";

fn fetch_with(policy: Policy, servers: &[&Server], told: &AtomicUsize) -> Result<Vec<u8>> {
    let mirrors: Vec<String> = servers.iter().map(|server| server.uri.clone()).collect();
    let mut sink = Wanted(Vec::new(), BODY);
    let fetch = Fetch { mirrors: &mirrors, path: "pool/keep.deb", size: Some(BODY.len() as u64), limit: 1000 };
    Client::new(policy).fetch(&fetch, &mut sink, &|count| {
        told.fetch_add(count as usize, Ordering::SeqCst);
    })?;
    Ok(sink.0)
}

fn fetch(servers: &[&Server]) -> Result<Vec<u8>> {
    fetch_with(hasty(), servers, &AtomicUsize::new(0))
}

/// The whole message, with the ports replaced by letters.
fn refused(servers: &[&Server]) -> String {
    refused_with(hasty(), servers)
}

fn refused_with(policy: Policy, servers: &[&Server]) -> String {
    let mut text = report(&fetch_with(policy, servers, &AtomicUsize::new(0)).unwrap_err());
    for (server, letter) in servers.iter().zip('a'..) {
        text = text.replace(&server.uri, &format!("http://{letter}.example/debian"));
    }
    text
}

/// Sends the header for all of the body, then the bytes from `start`, but only `count` of them.
fn part(stream: &mut TcpStream, start: usize, count: usize, extra: &str) {
    let left = BODY.len() - start;
    let head = match start {
        0 => format!("HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n{extra}\r\n"),
        _ => format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {left}\r\nContent-Range: bytes {start}-{}/{}\r\n{extra}\r\n",
            BODY.len() - 1,
            BODY.len()
        ),
    };
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&BODY[start..start + count]).unwrap();
    if count < left {
        stream.shutdown(std::net::Shutdown::Both).unwrap();
    }
}

#[test]
fn a_file_comes_over_a_connection_that_is_kept() {
    let server = Server::constant(ok(BODY));
    let client = Client::new(hasty());
    for _ in 0..3 {
        assert_eq!(client.get(std::slice::from_ref(&server.uri), "keep", 100).unwrap(), BODY);
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    assert!(server.requests()[0].contains(concat!("user-agent: pgha-image/", env!("CARGO_PKG_VERSION"), "\r\n")));
    assert!(server.requests()[0].starts_with("get /debian/keep http/1.1\r\n"));
}

#[test]
fn a_missing_file_is_told_with_all_mirrors() {
    let (first, second) = (Server::constant(status("404 Not Found")), Server::constant(status("403 Forbidden")));
    insta::assert_snapshot!(refused(&[&first, &second]));
    assert_eq!(first.requests().len() + second.requests().len(), 2, "neither is asked again");
}

#[test]
fn a_busy_server_is_asked_again() {
    let server = Server::new(|number, _, stream| match number {
        0 => stream.write_all(&status("503 Service Unavailable")).unwrap(),
        _ => stream.write_all(&ok(BODY)).unwrap(),
    });
    assert_eq!(fetch(&[&server]).unwrap(), BODY);
    insta::assert_snapshot!(refused(&[&Server::constant(status("503 Service Unavailable"))]));
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_stopped() {
    let server = Server::new(|number, _, stream| match number {
        0 => part(stream, 0, 8, "ETag: \"v1\"\r\n"),
        1 => part(stream, 8, 4, ""),
        _ => part(stream, 12, 8, ""),
    });
    let told = AtomicUsize::new(0);
    assert_eq!(fetch_with(hasty(), &[&server], &told).unwrap(), BODY);
    assert_eq!(told.load(Ordering::SeqCst), BODY.len());
    let requests = server.requests();
    assert!(!requests[0].contains("range:"));
    assert!(requests[1].contains("\r\nrange: bytes=8-\r\n") && requests[1].contains("\r\nif-range: \"v1\"\r\n"));
    assert!(requests[2].contains("\r\nrange: bytes=12-\r\n"));

    let stubborn = Server::new(|_, _, stream| part(stream, 0, 5, ""));
    insta::assert_snapshot!(refused(&[&stubborn]));
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let server = Server::new(|number, _, stream| part(stream, 0, if number == 0 { 8 } else { 20 }, ""));
    let told = AtomicUsize::new(0);
    assert_eq!(fetch_with(hasty(), &[&server], &told).unwrap(), BODY);
    assert_eq!(told.load(Ordering::SeqCst), BODY.len(), "what came twice is told once");
}

#[test]
fn the_next_mirror_takes_over() {
    let broken = Server::new(|_, _, stream| part(stream, 0, 8, "ETag: \"v1\"\r\n"));
    let good =
        Server::new(|_, request, stream| part(stream, if request.contains("range: bytes=8-") { 8 } else { 0 }, 12, ""));
    assert_eq!(fetch(&[&broken, &good]).unwrap(), BODY);
    assert!(!good.requests()[0].contains("if-range"), "the tag is another server's");
}

#[test]
fn wrong_content_makes_the_next_mirror_take_over() {
    let wrong = Server::constant(ok(b"0123456789XXXXXXXXXX"));
    let long = Server::constant(ok(&[b'x'; 30]));
    let endless = Server::constant([&b"HTTP/1.1 200 OK\r\n\r\n"[..], &[b'x'; 5000]].concat());
    let good = Server::constant(ok(BODY));
    assert_eq!(fetch(&[&wrong, &long, &endless, &good]).unwrap(), BODY);
    insta::assert_snapshot!(refused(&[&wrong, &long, &endless]));
}

#[test]
fn a_slow_mirror_is_given_up() {
    let drip = Server::new(|_, _, stream| {
        part_header(stream);
        for byte in BODY {
            thread::sleep(Duration::from_millis(60));
            if stream.write_all(&[*byte]).is_err() {
                break;
            }
        }
    });
    let silent = Server::new(|_, _, stream| {
        part_header(stream);
        thread::sleep(Duration::from_secs(5));
    });
    let policy =
        Policy { idle: Duration::from_secs(1), slowest: (1000, Duration::from_millis(200)), tries: 1, ..hasty() };
    insta::assert_snapshot!(refused_with(policy, &[&drip, &silent]));
    let good = Server::constant(ok(BODY));
    assert_eq!(fetch_with(policy, &[&drip, &good], &AtomicUsize::new(0)).unwrap(), BODY);
}

fn part_header(stream: &mut TcpStream) {
    stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", BODY.len()).as_bytes()).unwrap();
}

#[test]
fn redirects_are_followed() {
    let good = Server::constant(ok(BODY));
    let target = format!("{}/elsewhere/keep", good.uri);
    let server = Server::constant(format!("HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n"));
    assert_eq!(fetch(&[&server]).unwrap(), BODY);
    let round = Server::constant("HTTP/1.1 302 Found\r\nLocation: /keep\r\nContent-Length: 0\r\n\r\n");
    assert!(refused(&[&round]).contains("too many redirects"), "{}", refused(&[&round]));
}

#[test]
fn a_server_that_is_not_there_is_told() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mirrors = [format!("http://user:secret@{gone}/debian/")];
    let error = Client::new(hasty()).get(&mirrors, "dists/x/InRelease", 10).unwrap_err();
    let text = report(&error).replace(&gone.to_string(), "a.example");
    insta::assert_snapshot!(text);
}

#[test]
fn a_sink_that_fails_ends_the_download_at_once() {
    struct Full;
    impl Sink for Full {
        fn put(&mut self, _: &[u8]) -> Result<()> {
            Err(io::Error::from(io::ErrorKind::StorageFull)).context("writing to the store")
        }
        fn restart(&mut self) -> Result<()> {
            Ok(())
        }
        fn verify(&mut self) -> Result<Option<String>> {
            Ok(None)
        }
    }
    let server = Server::constant(ok(BODY));
    let mirrors = [server.uri.clone()];
    let fetch = Fetch { mirrors: &mirrors, path: "a.deb", size: None, limit: 100 };
    let error = Client::new(hasty()).fetch(&fetch, &mut Full, &|_| ()).unwrap_err();
    assert_eq!(format!("{error:#}"), "downloading a.deb: writing to the store: no storage space");
    assert_eq!(server.requests().len(), 1);
}
