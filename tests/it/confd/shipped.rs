//! Templates of others, as they ship them: Patroni's samples and the HAProxy template of the ancestor project. Their texts
//! are not ours to keep; `PGHA_CONFD_TEMPLATES` names a folder with `haproxy.tmpl`, `haproxy-citus.tmpl` and
//! `pgbouncer.tmpl` of Patroni and `ancestor-haproxy.tmpl`; what is not there is skipped.

use super::Confd;
use crate::testing::require;
use std::path::PathBuf;

const KEYS: &str = r#"
service:
  demo:
    leader: pg-2
    config: '{"ttl": 30}'
    members:
      pg-1: '{"conn_url":"postgres://10.0.0.11:5432/postgres","api_url":"https://10.0.0.11:8008/patroni","role":"replica"}'
      pg-2: '{"conn_url":"postgres://user:word@10.0.0.12:5433/postgres","api_url":"https://10.0.0.12:8009/patroni","role":"primary"}'
  citus:
    "0":
      members:
        coord: '{"conn_url":"postgres://10.0.1.1:5432/postgres","api_url":"https://10.0.1.1:8008/patroni"}'
    "1":
      members:
        work: '{"conn_url":"postgres://10.0.1.2:5432/postgres","api_url":"https://10.0.1.2:8008/patroni"}'
"#;

/// Renders the template `name` with the keys of a cluster; nothing if it is not there.
fn render(name: &str, scope: &str) -> Option<String> {
    let path = std::env::var_os("PGHA_CONFD_TEMPLATES").map(|folder| PathBuf::from(folder).join(name));
    let Some(text) = path.and_then(|path| std::fs::read_to_string(path).ok()) else {
        require("confd-templates", false, format_args!("PGHA_CONFD_TEMPLATES names no folder with {name}"));
        return None;
    };
    let confd = Confd::new(&["-backend", "file"]);
    confd.write("keys.yaml", KEYS);
    let keys = confd.path("keys.yaml").display().to_string();
    confd.add_resource("out", &text, "[\"/\"]", &format!("prefix = \"/service/{scope}\""));
    let confd = confd.flag("-file").flag(&keys);
    confd.once_well();
    Some(confd.read("out"))
}

/// The servers of a listener, as written.
fn servers<'a>(text: &'a str, listener: &str) -> Vec<&'a str> {
    let heading = format!("listen {listener}");
    let section = text.lines().map(str::trim).skip_while(|line| *line != heading).skip(1);
    section.take_while(|line| !line.starts_with("listen ")).filter(|line| line.starts_with("server ")).collect()
}

#[test]
fn patronis_load_balancer_lists_every_member() {
    let Some(text) = render("haproxy.tmpl", "demo") else { return };
    for listener in ["primary", "replicas"] {
        let found = servers(&text, listener);
        assert_eq!(found.len(), 2, "{text}");
        assert!(
            found[0].starts_with("server pg-1 10.0.0.11:5432 ") && found[0].ends_with("check port 8008"),
            "{}",
            found[0]
        );
        // The user and password of the address are left out.
        assert!(
            found[1].starts_with("server pg-2 10.0.0.12:5433 ") && found[1].ends_with("check port 8009"),
            "{}",
            found[1]
        );
    }
}

#[test]
fn patronis_citus_load_balancer_keeps_the_coordinator_apart() {
    let Some(text) = render("haproxy-citus.tmpl", "citus") else { return };
    let (coordinator, workers) = (servers(&text, "coordinator"), servers(&text, "workers"));
    assert!(coordinator.len() == 1 && coordinator[0].starts_with("server coord 10.0.1.1:5432 "), "{text}");
    assert!(workers.len() == 1 && workers[0].starts_with("server work 10.0.1.2:5432 "), "{text}");
    assert!(workers[0].contains("check-ssl port 8008"));
}

#[test]
fn patronis_pooler_points_to_the_leader() {
    let Some(text) = render("pgbouncer.tmpl", "demo") else { return };
    assert!(text.starts_with("[databases]\n* = host=10.0.0.12 port=5433 pool_size=10\n"), "{text}");
}

#[test]
fn the_ancestors_load_balancer_lists_every_member() {
    let Some(text) = render("ancestor-haproxy.tmpl", "demo") else { return };
    for listener in ["master", "replicas", "replicas_sync", "replicas_async"] {
        let found = servers(&text, listener);
        assert_eq!(found.len(), 2, "{listener}: {text}");
        assert!(
            found[0].starts_with("server pg-1 10.0.0.11:") && found[0].ends_with("check port 8008"),
            "{}",
            found[0]
        );
    }
}
