//! SRV records (RFC 2782), which the C library's resolver does not return.
//!
//! A stub resolver: it queries the name servers of `/etc/resolv.conf` over UDP, and over TCP when an answer was
//! truncated. Addresses are looked up with the system's own resolver instead.

use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// One SRV record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Srv {
    /// The host, ending in a dot.
    pub target: String,
    pub port: u16,
    /// The record with the lowest number is used first.
    pub priority: u16,
    /// The share among records of one priority.
    pub weight: u16,
}

const SRV: u16 = 33;
const WAIT: Duration = Duration::from_secs(2);

/// The SRV records of `name`, such as `_etcd-client._tcp.example.com`, sorted by priority, then weight downwards, then
/// target.
///
/// # Errors
/// When no name server answers, or the name does not exist.
pub fn lookup_srv(name: &str) -> Result<Vec<Srv>> {
    let config = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    lookup_srv_at(&servers(&config), name)
}

/// As [`lookup_srv`], with the given name servers, in order.
///
/// # Errors
/// As [`lookup_srv`].
pub fn lookup_srv_at(servers: &[SocketAddr], name: &str) -> Result<Vec<Srv>> {
    let mut last = anyhow::anyhow!("/etc/resolv.conf names no name server");
    for server in servers {
        match ask(*server, name) {
            Ok(Answer::Records(mut records)) => {
                records.sort_by(|a, b| {
                    (a.priority, b.weight, &a.target, a.port).cmp(&(b.priority, a.weight, &b.target, b.port))
                });
                return Ok(records);
            }
            Ok(Answer::NoSuchName) => bail!("there is no SRV record {name}"),
            Err(error) => last = error.context(format!("querying the name server {server}")),
        }
    }
    Err(last.context(format!("looking up the SRV record {name}")))
}

enum Answer {
    Records(Vec<Srv>),
    NoSuchName,
}

fn servers(config: &str) -> Vec<SocketAddr> {
    config
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|address| address.trim().parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

fn ask(server: SocketAddr, name: &str) -> Result<Answer> {
    let id = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos() as u16;
    let question = question(id, name)?;
    let local: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(local)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(WAIT))?;
    let mut buffer = [0; 4096];
    for attempt in 0..2 {
        socket.send(&question)?;
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let message = &buffer[..length];
                if message.get(2).is_some_and(|flags| flags & 2 != 0) {
                    return read_answer(id, &ask_tcp(server, &question)?);
                }
                return read_answer(id, message);
            }
            Err(error) if attempt == 1 => return Err(error).context("waiting for the answer"),
            Err(_) => {}
        }
    }
    bail!("no answer")
}

fn ask_tcp(server: SocketAddr, question: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, WAIT)?;
    stream.set_read_timeout(Some(WAIT))?;
    stream.write_all(&(question.len() as u16).to_be_bytes())?;
    stream.write_all(question)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn question(id: u16, name: &str) -> Result<Vec<u8>> {
    let mut message = id.to_be_bytes().to_vec();
    // Recursion desired; one question.
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.trim_end_matches('.').split('.') {
        if label.is_empty() || label.len() > 63 {
            bail!("`{name}` is not a domain name");
        }
        message.push(label.len() as u8);
        message.extend(label.bytes());
    }
    message.push(0);
    message.extend(SRV.to_be_bytes());
    message.extend([0, 1]);
    Ok(message)
}

fn read_answer(id: u16, message: &[u8]) -> Result<Answer> {
    let word = |at: usize| -> Result<u16> {
        let bytes = message.get(at..at + 2).context("the answer is truncated")?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    if word(0)? != id {
        bail!("the answer is for another query");
    }
    match word(2)? & 15 {
        0 => {}
        3 => return Ok(Answer::NoSuchName),
        code => bail!("the name server answered with the error code {code}"),
    }
    let (questions, answers) = (word(4)?, word(6)?);
    let mut at = 12;
    for _ in 0..questions {
        at = read_name(message, at)?.1 + 4;
    }
    let mut records = Vec::new();
    for _ in 0..answers {
        at = read_name(message, at)?.1;
        let (kind, length) = (word(at)?, usize::from(word(at + 8)?));
        at += 10;
        if kind == SRV {
            let (priority, weight, port) = (word(at)?, word(at + 2)?, word(at + 4)?);
            records.push(Srv { target: read_name(message, at + 6)?.0, port, priority, weight });
        }
        at += length;
    }
    Ok(Answer::Records(records))
}

/// Reads the (possibly compressed) name at `at`; returns it with its final dot, and where it ends.
fn read_name(message: &[u8], mut at: usize) -> Result<(String, usize)> {
    let mut name = String::new();
    let mut end = None;
    // In a valid message each pointer goes backwards; the count ends loops in an invalid one.
    for _ in 0..128 {
        let length = usize::from(*message.get(at).context("the answer is truncated")?);
        match length {
            0 => {
                let name = if name.is_empty() { ".".to_owned() } else { name };
                return Ok((name, end.unwrap_or(at + 1)));
            }
            1..=63 => {
                let label = message.get(at + 1..at + 1 + length).context("the answer is truncated")?;
                name.push_str(&String::from_utf8_lossy(label));
                name.push('.');
                at += 1 + length;
            }
            192..=255 => {
                end.get_or_insert(at + 2);
                at = (length & 63) << 8 | usize::from(*message.get(at + 1).context("the answer is truncated")?);
            }
            _ => bail!("the answer holds a label of an unknown kind"),
        }
    }
    bail!("the answer holds a name without an end")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn record(message: &mut Vec<u8>, priority: u16, weight: u16, port: u16, host: &str) {
        message.extend([0xc0, 12]);
        message.extend(SRV.to_be_bytes());
        message.extend([0, 1, 0, 0, 0, 60]);
        // The host is a label before a pointer to the question's last two labels.
        message.extend((6 + 1 + host.len() as u16 + 2).to_be_bytes());
        for number in [priority, weight, port] {
            message.extend(number.to_be_bytes());
        }
        message.push(host.len() as u8);
        message.extend(host.bytes());
        message.extend([0xc0, 12 + 6 + 5]);
    }

    #[test]
    fn records_come_sorted_from_a_server_that_compresses() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 512];
            let (length, peer) = server.recv_from(&mut buffer).unwrap();
            let mut message = buffer[..length].to_vec();
            message[2..4].copy_from_slice(&[0x81, 0x80]);
            message[6..8].copy_from_slice(&[0, 2]);
            record(&mut message, 10, 5, 2379, "b");
            record(&mut message, 10, 9, 2380, "a");
            server.send_to(&message, peer).unwrap();
        });
        let records = lookup_srv_at(&[address], "_etcd._tcp.example.com").unwrap();
        assert_eq!(
            records,
            [
                Srv { target: "a.example.com.".into(), port: 2380, priority: 10, weight: 9 },
                Srv { target: "b.example.com.".into(), port: 2379, priority: 10, weight: 5 },
            ]
        );
    }

    #[test]
    fn a_message_that_points_at_itself_is_refused() {
        let mut message = question(7, "a.b").unwrap();
        message[2..4].copy_from_slice(&[0x81, 0x80]);
        message[6..8].copy_from_slice(&[0, 1]);
        let at = message.len() as u8;
        message.extend([0xc0, at]);
        assert!(read_answer(7, &message).is_err());
        assert!(question(1, "a..b").is_err());
    }

    #[test]
    fn the_name_servers_are_read() {
        assert_eq!(
            servers("# x\nnameserver 192.0.2.1\nsearch a\nnameserver ::1\n"),
            ["192.0.2.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()]
        );
    }
}
