//! The settings by file, environment and flag.

use super::*;

fn layer(pairs: &[(&'static str, &str)]) -> Layer {
    pairs.iter().map(|(flag, text)| (*flag, Raw { texts: vec![(*text).into()], source: format!("-{flag}") })).collect()
}

fn gather(file: &str, environment: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Result<Settings> {
    gather_layer(file, environment, layer(flags))
}

fn gather_layer(file: &str, environment: &[(&str, &str)], mut flags: Layer) -> Result<Settings> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("confd.toml");
    std::fs::write(&path, file).unwrap();
    flags.insert("config-file", Raw { texts: vec![path.to_string_lossy().into()], source: "x".into() });
    let environment: BTreeMap<String, String> =
        environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    Settings::gather(flags, |name| environment.get(name).cloned())
}

#[test]
fn flags_override_the_environment_and_that_the_file() {
    let file = "interval = 10\nprefix = \"/file\"\nwatch = true\nlog-level = \"debug\"\n";
    let settings = gather(file, &[("CONFD_PREFIX", "/env"), ("CONFD_INTERVAL", "20")], &[("interval", "30")]).unwrap();
    assert_eq!((settings.interval, settings.prefix.as_str()), (Duration::from_secs(30), "/env"));
    assert!(settings.watch);
    assert_eq!(settings.log_level, log::Level::Debug);
}

/// A value for a setting that is not its default, and what must stand beside it.
fn sample(key: &Key) -> (&'static str, &'static [(&'static str, &'static str)]) {
    match (key.flag, key.kind) {
        ("backend", _) => ("file", &[]),
        ("log-level", _) => ("debug", &[]),
        ("scheme", _) => ("https", &[]),
        ("failure-mode", _) => ("fail-fast", &[]),
        ("metrics-addr", _) => ("127.0.0.1:9100", &[]),
        ("client-cert", _) => ("/own", &[("client-key", "/key")]),
        ("client-key", _) => ("/own", &[("client-cert", "/certificate")]),
        ("basic-auth", _) => ("false", &[("username", "patroni")]),
        ("password", _) => ("geheim", &[("username", "patroni")]),
        (_, Kind::Bool) => ("true", &[]),
        (_, Kind::Int) => ("17", &[]),
        (_, Kind::Time) => ("1m30s", &[]),
        (_, Kind::List) => ("/one,/two", &[]),
        (_, Kind::Text | Kind::Unused) => ("own", &[]),
    }
}

/// A line of a settings file.
fn line(flag: &str, text: &str) -> String {
    let key = KEYS.iter().find(|key| key.flag == flag).unwrap();
    match key.kind {
        Kind::Bool | Kind::Int => format!("{} = {text}\n", key.key),
        Kind::List => format!("{} = {:?}\n", key.key, text.split(',').collect::<Vec<_>>()),
        Kind::Text | Kind::Time | Kind::Unused => format!("{} = {text:?}\n", key.key),
    }
}

#[test]
fn every_setting_means_the_same_in_file_environment_and_flag() {
    let said = |settings: Result<Settings>| match settings {
        // Passwords are not printed.
        Ok(settings) => {
            format!("{settings:?} {:?}", settings.backend.user.as_ref().map(|(_, password)| &password.0))
        }
        Err(error) => format!("{error:#}"),
    };
    for key in KEYS.iter().filter(|key| key.flag != "config-file") {
        let (value, beside) = sample(key);
        let beside_file: String = beside.iter().map(|(flag, text)| line(flag, text)).collect();
        let name = variable_of(key.flag);
        let by_variable = said(gather(&beside_file, &[(&name, value)], &[]));
        let texts = if key.kind == Kind::List { value.split(',').collect() } else { vec![value] };
        let raw = Raw { texts: texts.into_iter().map(str::to_owned).collect(), source: name.clone() };
        let by_flag = said(gather_layer(&beside_file, &[], [(key.flag, raw)].into()));
        assert_eq!(by_flag, by_variable, "-{} and {name}", key.flag);
        if !key.key.is_empty() {
            let by_file = said(gather(&format!("{beside_file}{}", line(key.flag, value)), &[], &[]));
            assert_eq!(by_file, by_flag, "-{} and `{}`", key.flag, key.key);
        }
        let without = said(gather(&beside_file, &[], &[]));
        let does_nothing = key.kind == Kind::Unused || key.flag == "systemd-notify";
        assert_eq!(by_flag == without, does_nothing, "-{}: {without}", key.flag);
    }
}

#[test]
fn everything_that_upstream_can_be_told_is_known() {
    let keys = "auth_token auth_type basic_auth backend client_cakeys client_cert client_key confdir interval \
        log-level nodes noop password prefix scheme srv_domain srv_record sync-only table separator username app_id \
        user_id role_id secret_id path file filter watch";
    for key in keys.split_whitespace() {
        assert!(by_key(key).is_some(), "{key}");
    }
    let flags = "auth-token auth-type app-id user-id role-id secret-id basic-auth client-ca-keys client-cert client-key \
        log-level srv-domain srv-record sync-only watch interval prefix scheme table separator username password path \
        file filter noop confdir backend config-file onetime keep-stage-file secret-keyring client-insecure node";
    for flag in flags.split_whitespace() {
        assert!(KEYS.iter().any(|key| key.flag == flag), "-{flag}");
    }
    assert_eq!(variable_of("client-ca-keys"), "CONFD_CLIENT_CAKEYS");
    assert_eq!(variable_of("client-cert"), "CONFD_CLIENT_CERT");
    assert_eq!(variable_of("client-key"), "CONFD_CLIENT_KEY");
}

#[test]
fn what_a_backend_is_called_tells_whether_it_can_be_had() {
    for (name, opened) in
        [("etcd", "etcdv3"), ("etcdv3", "etcdv3"), ("consul", "consul"), ("file", "file"), ("env", "env")]
    {
        assert_eq!(gather("", &[], &[("backend", name)]).unwrap().backend.name, opened);
    }
    let refused = "zookeeper rancher redis vault dynamodb ssm stackengine acm secretsmanager imds";
    for name in refused.split_whitespace() {
        let error = gather("", &[], &[("backend", name)]).unwrap_err();
        assert_eq!(error.to_string(), format!("the backend `{name}` is not supported"));
    }
}

#[test]
fn the_ancestors_file_is_understood() {
    let file = r#"
        backend = "etcdv3"
        nodes = ["https://10.0.0.11:2379", "10.0.0.12:2379"]
        scheme = "https"
        client_cakeys = "/etc/confd/tls/etcd/ca.crt"
        client_cert = "/etc/confd/tls/etcd/server.crt"
        client_key = "/etc/confd/tls/etcd/server.key"
        basic_auth = true
        username = "patroni"
        password = "geheim"
        watch = true
        interval = 10
    "#;
    let settings = gather(file, &[], &[]).unwrap();
    assert_eq!(settings.backend.urls("x"), ["https://10.0.0.11:2379", "https://10.0.0.12:2379"]);
    assert_eq!(settings.backend.user.as_ref().map(|(name, _)| name.as_str()), Some("patroni"));
    assert!(!format!("{settings:?}").contains("geheim"));
}

#[test]
fn nodes_without_a_scheme_get_the_one_that_fits() {
    let plain = gather("", &[], &[]).unwrap().backend;
    assert_eq!(plain.urls("127.0.0.1:2379"), ["http://127.0.0.1:2379"]);
    let tls = gather("", &[("CONFD_CLIENT_CAKEYS", "/ca"), ("CONFD_NODES", "a:1, b:2")], &[]).unwrap().backend;
    assert_eq!(tls.urls("x"), ["https://a:1", "https://b:2"]);
    assert_eq!(gather("", &[("ETCDCTL_PEERS", "http://c:3")], &[]).unwrap().backend.urls("x"), ["http://c:3"]);
    let srv = gather("srv_domain = \"example.com\"\nbackend = \"etcdv3\"", &[], &[]).unwrap().backend;
    assert_eq!(srv.srv_record.as_deref(), Some("_etcdv3._tcp.example.com."));
}

#[test]
fn wrong_values_are_named_and_unknown_keys_pass() {
    for (file, reason) in [
        ("interval = \"ten\"", "`interval` must be a whole number"),
        ("interval = 0", "at least 1"),
        ("backend = \"vault\"", "`vault` is not supported"),
        ("client_cert = \"/a\"", "without client_key"),
        ("scheme = \"ftp\"", "neither http nor https"),
        ("failure_mode = \"perhaps\"", "neither best-effort nor fail-fast"),
        ("debounce = \"soon\"", "is not a time"),
        ("log-level = \"loud\"", "not a log level"),
        ("watch = 1", "must be true or false"),
    ] {
        let error = format!("{:#}", gather(file, &[], &[]).unwrap_err());
        assert!(error.contains(reason), "{file}: {error}");
    }
    assert!(gather("no_such_key = 1\nsync_only = true", &[], &[]).unwrap().sync_only);
    assert!(gather("", &[("CONFD_NOOP", "perhaps")], &[]).is_err());
    assert!(gather("", &[], &[("secret-keyring", "/ring")]).is_err());
}

#[test]
fn metrics_are_on_loopback_unless_an_address_is_given() {
    assert_eq!(gather("metrics_addr = \":9100\"", &[], &[]).unwrap().metrics, Some("127.0.0.1:9100".parse().unwrap()));
    assert!(gather("metrics_addr = \"nowhere\"", &[], &[]).is_err());
}
