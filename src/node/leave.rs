//! A node leaves its cluster for good, so that the others need not find out that it is gone.

use super::{init::Node, peers::Material, state::State, units};
use crate::{
    error::Fault,
    etcd::{Client, RangeRequest},
    exec::Run,
    log,
    model::scope::{client_url, peer_url},
};
use anyhow::{Context as _, Result};
use std::{
    thread,
    time::{Duration, Instant},
};

/// The units that go, in this order: clients first, the store of the cluster's truth last.
const UNITS: [&str; 6] =
    ["keepalived.service", "haproxy.service", "confd.service", "patroni.service", "pgbouncer.service", "etcd.service"];
/// How long a primary may take to hand over and stop.
const STOP_WITHIN: Duration = Duration::from_secs(150);
/// How long etcd may take to let a member go.
const REMOVED_WITHIN: Duration = Duration::from_secs(60);
/// How long to wait before etcd is asked again.
const PAUSE: Duration = Duration::from_secs(2);

/// Stops the node's services in order and takes it out of Patroni's and etcd's lists. Its data stays. May be run again.
///
/// # Errors
/// When it is the last member, no other member of etcd answers, or a service does not stop.
pub fn leave(state: &State) -> Result<()> {
    let node = Node::find()?;
    let me = &node.spec.members[node.own];
    let others: Vec<_> = node.spec.members.iter().filter(|member| member.name != me.name).map(client_url).collect();
    if others.is_empty() {
        return Err(Fault::request(format!("{} is the last member of its cluster", me.name))
            .hint("stop the machine: there is nobody to tell")
            .into());
    }
    let client = Material::of_the_node().etcd(others)?;
    let members = client.members().context("asking the other members of etcd")?;
    for unit in &UNITS[..UNITS.len() - 1] {
        log::info!("leaving: stopping {unit}");
        stop(unit)?;
    }
    // Otherwise the others' front doors learn of it when the key's lease has ended.
    let key = format!("/service/{}/members/{}", state.cluster, me.name);
    client.delete(&RangeRequest::key(key)).context("taking the node out of Patroni's list")?;
    if let Some(own) = members.iter().find(|member| member.peer_urls.contains(&peer_url(me))) {
        log::info!("leaving: taking {} out of etcd", me.name);
        remove(&client, own.id, REMOVED_WITHIN, PAUSE).context("taking the node out of etcd's members")?;
    }
    stop(UNITS[UNITS.len() - 1])
}

/// Removes a member of etcd, and asks again for as long as `within`.
///
/// etcd refuses while another member has not been connected for five seconds, and a busy one acts without answering in
/// time. An id is never used again, so that asking twice does no harm.
fn remove(client: &Client, id: u64, within: Duration, pause: Duration) -> Result<()> {
    let deadline = Instant::now() + within;
    loop {
        let Err(error) = client.member_remove(id) else { return Ok(()) };
        if client.members().is_ok_and(|members| members.iter().all(|member| member.id != id)) {
            return Ok(());
        }
        if error.denied() || Instant::now() >= deadline {
            return Err(error.into());
        }
        log::info!("leaving: {error}; asking again");
        thread::sleep(pause);
    }
}

fn stop(unit: &str) -> Result<()> {
    Run::new("systemctl").args(["stop", unit]).limit(STOP_WITHIN).capture().map(drop)?;
    let now = units::show(unit)?;
    if now.active == "active" {
        return Err(Fault::work(format!("{unit} does not stop: {}", now.words())).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::Settings;
    use std::{
        io::{BufRead as _, BufReader, Read as _, Write as _},
        net::{TcpListener, TcpStream},
        sync::mpsc,
    };

    const MEMBER: &str = r#"{"members":[{"ID":"7"},{"ID":"8"}]}"#;
    const NO_MEMBER: &str = r#"{"members":[{"ID":"8"}]}"#;
    const UNHEALTHY: &str = r#"{"code":14,"message":"etcdserver: unhealthy cluster"}"#;

    /// An etcd that answers request after request as it is told: a status and a body, or nothing but the end of the
    /// connection. Returns a client of it and the paths that are asked for.
    fn etcd(answers: Vec<Option<(u16, &'static str)>>) -> (Client, mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::new(Settings::new([format!("http://{}", listener.local_addr().unwrap())])).unwrap();
        let (tell, paths) = mpsc::channel();
        thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                tell.send(read_request(&stream)).unwrap();
                if let Some((status, body)) = answer {
                    let head =
                        format!("HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
                    stream.write_all((head + body).as_bytes()).unwrap();
                }
            }
        });
        (client, paths)
    }

    /// The path of a request that is read whole.
    fn read_request(stream: &TcpStream) -> String {
        let mut reader = BufReader::new(stream);
        let (mut first, mut length) = (String::new(), 0);
        reader.read_line(&mut first).unwrap();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        reader.take(length).read_to_end(&mut Vec::new()).unwrap();
        first.split(' ').nth(1).unwrap().rsplit('/').next().unwrap().to_owned()
    }

    fn removing(
        answers: Vec<Option<(u16, &'static str)>>,
        within: Duration,
    ) -> (std::result::Result<(), String>, Vec<String>) {
        let (client, paths) = etcd(answers);
        let outcome = remove(&client, 7, within, Duration::ZERO).map_err(|error| error.to_string());
        (outcome, paths.try_iter().collect())
    }

    #[test]
    fn a_removal_that_was_not_answered_is_looked_up() {
        let (outcome, paths) = removing(vec![None, Some((200, NO_MEMBER))], Duration::from_secs(60));
        assert_eq!((outcome, paths), (Ok(()), vec!["remove".into(), "list".into()]));
    }

    #[test]
    fn a_removal_that_is_refused_for_now_is_asked_for_again() {
        let answers = vec![Some((503, UNHEALTHY)), Some((200, MEMBER)), Some((200, "{}"))];
        let (outcome, paths) = removing(answers, Duration::from_secs(60));
        assert_eq!((outcome, paths), (Ok(()), vec!["remove".into(), "list".into(), "remove".into()]));
    }

    #[test]
    fn a_removal_that_does_not_come_about_is_told() {
        let (outcome, paths) = removing(vec![Some((503, UNHEALTHY)), Some((200, MEMBER))], Duration::ZERO);
        assert!(outcome.unwrap_err().ends_with("unhealthy cluster"));
        assert_eq!(paths.len(), 2);
    }
}
