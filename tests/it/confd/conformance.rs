//! The shared set of upstream's integration tests, written again: basic, exists, iteration, manykeys (more keys than a
//! transaction of etcd takes) and nested, on every backend.

use super::{
    Confd,
    consul::FakeConsul,
    etcd::{Cluster, as_strs},
};
use crate::testing::require;
use std::{fmt::Write as _, net::UdpSocket, path::Path};

const KEYS: [(&str, &str); 12] = [
    ("/key", "foobar"),
    ("/database/host", "127.0.0.1"),
    ("/database/password", "p@sSw0rd"),
    ("/database/port", "3306"),
    ("/database/username", "confd"),
    ("/upstream/app1", "10.0.1.10:8080"),
    ("/upstream/app2", "10.0.1.11:8080"),
    ("/nested/east/app1", "10.0.1.10:8080"),
    ("/nested/east/app2", "10.0.1.11:8080"),
    ("/nested/west/app1", "10.0.2.10:8080"),
    ("/unrelated/key", "x"),
    ("/upstreamx/app3", "no"),
];

const BASIC: &str = "hostname: {{getenv \"CONFD_TEST_NAME\"}}\n[database]\nhost={{getv \"/database/host\"}}\n\
    password={{getv \"/database/password\"}}\nport={{getv \"/database/port\"}}\nusername={{getv \"/database/username\"}}\n";
const BASIC_DONE: &str =
    "hostname: localhost\n[database]\nhost=127.0.0.1\npassword=p@sSw0rd\nport=3306\nusername=confd\n";
const EXISTS: &str =
    "{{if exists \"/key\"}}value: {{getv \"/key\"}}{{end}}\n{{- if exists \"/doesnotexist\"}}never{{end}}\n";
const ITERATION: &str = "upstream app {\n{{- range gets \"/upstream/*\"}}\n  server {{.Value}};\n{{- end}}\n}\n";
const NESTED: &str = "{{range lsdir \"/nested\"}}{{$zone := .}}upstream {{$zone}} {\n\
    {{- range gets (printf \"/nested/%s/*\" $zone)}}\n  server {{.Value}};\n{{- end}}\n}\n{{end}}";

fn confd(flags: &[&str]) -> Confd {
    let fields = ["host", "password", "port", "username"];
    let quoted = |field: &&str| format!("\"/database/{field}\"");
    let basic = format!("[{}]", fields.iter().map(quoted).collect::<Vec<_>>().join(", "));
    // Some keys exist, most do not; etcd takes 128 operations in a transaction.
    let mut many = basic.trim_end_matches(']').to_owned();
    for number in 0..200 {
        write!(many, ", \"/many/key{number}\"").unwrap();
    }
    many.push(']');
    Confd::new(flags)
        .variable("CONFD_TEST_NAME", "localhost")
        .resource("basic", BASIC, &basic, "mode = \"0640\"")
        .resource("exists", EXISTS, "[\"/key\", \"/doesnotexist\"]", "")
        .resource("iteration", ITERATION, "[\"/upstream\"]", "")
        .resource("manykeys", BASIC, &many, "")
        .resource("nested", NESTED, "[\"/nested\"]", "")
}

fn check(confd: &Confd) {
    assert_eq!(confd.read("basic"), BASIC_DONE);
    assert_eq!(confd.read("manykeys"), BASIC_DONE);
    assert_eq!(confd.read("exists"), "value: foobar\n");
    assert_eq!(confd.read("iteration"), "upstream app {\n  server 10.0.1.10:8080;\n  server 10.0.1.11:8080;\n}\n");
    assert_eq!(
        confd.read("nested"),
        "upstream east {\n  server 10.0.1.10:8080;\n  server 10.0.1.11:8080;\n}\nupstream west {\n  server 10.0.2.10:8080;\n}\n"
    );
}

#[test]
fn etcdv3_shows_the_shared_set_and_follows_changes() {
    let Some(cluster) = Cluster::start(1) else { return };
    let client = cluster.client();
    for (key, value) in KEYS {
        client.put(key, value, 0).unwrap();
        client.put(&format!("/prefix{key}"), format!("{value}-prefixed"), 0).unwrap();
    }
    let confd = confd(&as_strs(&cluster.flags()));
    confd.once_well();
    check(&confd);
    let running = confd.start();
    client.put("/upstream/app3", "10.0.1.12:8080", 0).unwrap();
    confd.wait("iteration", |text| text.contains("10.0.1.12"));
    client.delete(&pgha_image::etcd::RangeRequest::key("/upstream/app1")).unwrap();
    confd.wait("iteration", |text| !text.contains("10.0.1.10"));
    drop(running);
    // The prefix of the command line overrides those of resources.
    let confd = confd.flag("-prefix=/prefix");
    confd.once_well();
    assert!(confd.read("basic").contains("port=3306-prefixed\n"), "{}", confd.read("basic"));
}

/// A name server on 127.9.9.9 that answers every question with one SRV record: `localhost` and this port.
fn name_server(port: u16) -> Option<()> {
    let socket = UdpSocket::bind("127.9.9.9:53").ok()?;
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            // The header with its flags and counts, the question as it came, the record: its name points to the question.
            let mut answer = [&question[..2], &[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0], &question[12..length]].concat();
            answer.extend([0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 5, 0, 17, 0, 0, 0, 0]);
            answer.extend(port.to_be_bytes());
            answer.extend(b"\x09localhost\0");
            let _ = socket.send_to(&answer, from);
        }
    });
    Some(())
}

#[test]
fn the_nodes_that_an_srv_record_lists_are_asked() {
    let Some(cluster) = Cluster::start(1) else { return };
    cluster.client().put("/key", "by name", 0).unwrap();
    if name_server(cluster.members[0].client_port).is_none() {
        require("name-server", false, "no name server can listen on 127.9.9.9");
        return;
    }
    let confd = Confd::new(&["-backend", "etcdv3", "-srv-domain", "example.test"]).resource(
        "key",
        "{{getv \"/key\"}}",
        "[\"/key\"]",
        "",
    );
    confd.write("resolv.conf", "nameserver 127.9.9.9\n");
    let resolver = confd.path("resolv.conf");
    let Some(output) = confd.once_with_mount(&resolver, Path::new("/etc/resolv.conf"), &[]) else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(confd.read("key"), "by name");
}

#[test]
fn more_keys_than_an_answer_holds_are_read() {
    let Some(cluster) = Cluster::start(1) else { return };
    let client = cluster.client();
    // Values make the answer larger than the gateway passes on at once, and keys more than a page.
    let value = "x".repeat(1500);
    let operations: Vec<_> = (0..4500)
        .map(|number| pgha_image::etcd::Op::Put(format!("/big/{number:05}").into(), value.clone().into(), 0))
        .collect();
    for operations in operations.chunks(100) {
        client.txn(&[], operations, &[]).unwrap();
    }
    let confd = Confd::new(&as_strs(&cluster.flags())).resource(
        "big",
        "{{len (gets \"/big/*\")}} {{(get \"/big/04499\").Key}}",
        "[\"/big\"]",
        "",
    );
    confd.once_well();
    assert_eq!(confd.read("big"), "4500 /big/04499");
}

#[test]
fn files_show_the_shared_set_and_follow_changes() {
    let yaml = "key: foobar\ndatabase: {host: 127.0.0.1, password: p@sSw0rd, port: 3306, username: confd}\n\
        nested:\n  east: {app1: '10.0.1.10:8080', app2: '10.0.1.11:8080'}\n  west: {app1: '10.0.2.10:8080'}\n";
    let json = r#"{"upstream": {"app1": "10.0.1.10:8080", "app2": "10.0.1.11:8080"}}"#;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("a.yaml"), yaml).unwrap();
    std::fs::create_dir(path("sub")).unwrap();
    std::fs::write(path("sub/b.json"), json).unwrap();
    std::fs::write(path("sub/c.txt"), "{ not: read").unwrap();
    let (first, second) = (path("a.yaml"), path("sub"));
    let confd = confd(&[
        "-backend",
        "file",
        "-file",
        first.to_str().unwrap(),
        "-file",
        second.to_str().unwrap(),
        "-filter",
        "*.json",
    ]);
    confd.once_well();
    check(&confd);
    let _running = confd.start();
    // Written again, replaced by another, and one that was not there before.
    std::fs::write(path("sub/b.json"), json.replace("1.11", "1.12")).unwrap();
    confd.wait("iteration", |text| text.contains("10.0.1.12"));
    std::fs::write(path("new"), yaml.replace("foobar", "other")).unwrap();
    std::fs::rename(path("new"), path("a.yaml")).unwrap();
    confd.wait("exists", |text| text == "value: other\n");
    std::fs::write(path("sub/d.json"), r#"{"upstream": {"app4": "10.0.1.14:8080"}}"#).unwrap();
    confd.wait("iteration", |text| text.contains("10.0.1.14"));
}

#[test]
fn the_environment_shows_the_shared_set() {
    let mut confd = confd(&["-backend", "env"]);
    for (key, value) in KEYS {
        confd = confd.variable(&key[1..].to_uppercase().replace('/', "_"), value);
    }
    confd.once_well();
    check(&confd);
}

#[test]
fn consul_shows_the_shared_set_and_follows_changes() {
    let consul = FakeConsul::start();
    for (key, value) in KEYS {
        consul.put(key, Some(value));
    }
    let confd = confd(&["-backend", "consul", "-node", &consul.address(), "-auth-token", "t0k3n"]);
    confd.once_well();
    check(&confd);
    let _running = confd.start();
    confd.wait("iteration", |text| text.contains("10.0.1.11"));
    consul.put("/upstream/app3", Some("10.0.1.12:8080"));
    confd.wait("iteration", |text| text.contains("10.0.1.12"));
    consul.put("/upstream/app1", None);
    confd.wait("iteration", |text| !text.contains("10.0.1.10"));
    assert!(consul.tokens().iter().all(|token| token == "t0k3n"));
}
