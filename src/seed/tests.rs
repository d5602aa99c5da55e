use super::{
    compose::{Compose, ControlGroups},
    *,
};
use crate::model::Secret;
use std::{fs, os::unix::fs::PermissionsExt as _};

const DEMO: &str = "\
schema: 1
cluster: demo
# A comment stays.
members:
  - {name: pg-1, address: 10.0.0.11}
  - {name: pg-2, address: 10.0.0.12}
  - {name: pg-3, address: 10.0.0.13, instance-id: i-3}
vip: {address: 10.0.0.10/24}
";

const SECRET: &str = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=";

fn document(text: &str) -> Document {
    Document::new("demo.yaml", text)
}

fn demo(extras: Extras) -> Seeds {
    Seeds::new(document(&format!("{DEMO}secret: {SECRET}\n")), extras).unwrap()
}

#[test]
fn a_missing_secret_is_made_and_kept() {
    let (made, new) = with_secret(document(DEMO), None).unwrap();
    assert!(new && made.text.starts_with(DEMO) && made.text.lines().last().unwrap().starts_with("secret: "));
    assert!(made.cluster().is_ok());
    let (again, new) = with_secret(document(DEMO), Some(&made)).unwrap();
    assert!(!new && again.text == made.text);
    let (own, new) = with_secret(made.clone(), None).unwrap();
    assert!(!new && own.text == made.text);
    let (other, _) = with_secret(document(DEMO), None).unwrap();
    assert_ne!(other.text, made.text);
}

#[test]
fn the_secret_of_another_cluster_is_not_taken() {
    let (made, _) = with_secret(document(DEMO), None).unwrap();
    let (other, new) = with_secret(document(&DEMO.replace("demo", "other")), Some(&made)).unwrap();
    assert!(new && other.text.lines().last() != made.text.lines().last());
}

#[test]
fn a_document_in_flow_style_takes_a_secret_too() {
    let (made, _) = with_secret(document("{\"schema\": 1, \"cluster\": \"demo\",\n}\n"), None).unwrap();
    assert!(made.parse::<serde_json::Value>().unwrap()["secret"].is_string(), "{}", made.text);
}

#[test]
fn seeds_are_what_cloud_init_reads() {
    let extras = Extras {
        ssh_keys: vec!["ssh-ed25519 AAAA someone's \"key\"".into()],
        addressing: Addressing::Static {
            prefix: 24,
            gateway: Some("10.0.0.1".parse().unwrap()),
            nameservers: vec!["10.0.0.2".parse().unwrap()],
        },
    };
    let seeds = demo(extras);
    let seed = seeds.seed(1);
    let text: String = seed.files.iter().map(|(name, text)| format!("=== {name}\n{text}")).collect();
    insta::assert_snapshot!(text);
    let user_data: serde_json::Value = document(&seed.files[1].1).parse().unwrap();
    assert_eq!(user_data["write_files"][0]["content"], seeds.document.text);
    assert_eq!(user_data["ssh_authorized_keys"][0], seeds.extras.ssh_keys[0]);
    assert!(seeds.seed(2).files[0].1.contains("instance-id: i-3\n"));
    let all: Vec<_> = seeds.all().map(|seed| seed.files[1].1.clone()).collect();
    assert!(all.iter().all(|text| *text == all[0]), "user data is the same everywhere");
}

#[test]
fn addresses_outside_the_network_are_refused() {
    let seeds = |prefix, gateway: Option<&str>| {
        let gateway = gateway.map(|address| address.parse().unwrap());
        let addressing = Addressing::Static { prefix, gateway, nameservers: vec![] };
        Seeds::new(document(&format!("{DEMO}secret: {SECRET}\n")), Extras { addressing, ..Extras::default() })
    };
    let message = |outcome: Result<Seeds>| outcome.unwrap_err().to_string();
    assert_eq!(message(seeds(31, None)), "the member pg-2 at 10.0.0.12 is outside the network 10.0.0.11/31");
    assert_eq!(
        message(seeds(24, Some("192.0.2.1"))),
        "the gateway 192.0.2.1 is outside the nodes' network 10.0.0.11/24"
    );
}

#[test]
fn folders_are_written_for_their_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("seeds");
    let folders = demo(Extras::default()).write(&target).unwrap();
    assert_eq!(folders.len(), 3);
    for path in [target.join("cluster.yaml"), target.join("pg-2/user-data"), target.join("pg-3/meta-data")] {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
    }
    assert_eq!(fs::metadata(target.join("pg-1")).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn the_compose_file_is_what_it_was() {
    let seeds = demo(Extras { addressing: Addressing::Preset, ..Extras::default() });
    let text = |groups| Compose { image: "ha-postgres".into(), prefix: 24, groups }.text(&seeds).unwrap();
    insta::assert_snapshot!(text(ControlGroups::Unified));
    let hybrid = text(ControlGroups::Hybrid);
    assert!(hybrid.contains("/sys/fs/cgroup/unified:/sys/fs/cgroup") && !hybrid.contains("cgroup: host"), "{hybrid}");
}

#[test]
fn previews_hide_what_is_secret() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let recipe = crate::recipe::load(project, "ha-postgres", &[]).unwrap();
    let programs = tempfile::tempdir().unwrap();
    fs::write(programs.path().join("pgha-node"), "").unwrap();
    let plan = crate::plan::Draft::new(recipe, programs.path(), None).unwrap().plan().clone();
    let seeds = demo(Extras::default());
    let files = preview::files(&seeds, 0, &plan, &crate::model::scope::Machine::sample()).unwrap();
    assert!(files.len() > 8);
    let patroni = files.iter().find(|file| file.path.as_str() == "/etc/patroni/config.yml").unwrap();
    assert!(patroni.text.contains("***"), "{}", patroni.text);
    let password: Secret = Keys::new(&seeds.spec).superuser();
    assert!(files.iter().all(|file| !file.text.contains(password.expose())));
}
