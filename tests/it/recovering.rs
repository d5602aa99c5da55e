//! Clusters whose etcd has lost its majority for good, or all of its addresses: a person says from which node they go on,
//! and the others join it. Machines are those of [`super::forming`]; PostgreSQL is not there, etcds are real.

use super::forming::{Machine, all_serve, has_etcd, spec, start_all, wait_for};
use pgha_image::{
    model::{ClusterSpec, Node},
    node::{
        etcd_data::EtcdData,
        join::{Aside, Step},
        recover::{
            act::{self, Outcome},
            look::Here,
            order::{self, RecoveryOrder},
            plan::{self, Advice, Refusal},
        },
        state::ETCD_DATA,
    },
};
use std::{thread, time::Duration};

const KEYS: [(&str, &str); 3] = [
    ("/service/demo/config", r#"{"ttl":30}"#),
    ("/service/demo/initialize", "7712652082925278041"),
    ("/pgha/demo/document", r#"{"generation":2}"#),
];

/// Three machines that serve, with keys.
fn cluster(spec: &ClusterSpec) -> Vec<Machine> {
    let mut machines = Machine::all(spec);
    machines.iter().for_each(Machine::certify);
    start_all(&mut machines);
    all_serve(&machines);
    for (key, value) in KEYS {
        machines[0].client().put(key, value, 0).unwrap();
    }
    // A member that is cut off too early lacks what the others have acknowledged.
    machines.iter().for_each(has_the_keys);
    // A member writes down with the next entry that those before are committed, and forcing a new cluster drops what is
    // not known to be.
    machines[0].client().put("/after", "", 0).unwrap();
    machines.iter().for_each(|machine| assert!(machine.client().get("/after").unwrap().is_some()));
    machines
}

fn here(machine: &Machine) -> Here<'_> {
    let (root, credentials) = (machine.path(""), machine.credentials());
    Here { node: &machine.node, root, version: 17, credentials }
}

/// Goes on from a machine that is off.
fn recover(machine: &Machine) -> RecoveryOrder {
    let here = here(machine);
    let (view, contents) = here.view();
    // A machine that is off here still refuses connections, as one does that is on and has nothing to say.
    let plan = plan::plan(&view, true).unwrap();
    let order = act::order(&here, &view, &plan, &contents, true).unwrap();
    order.store(&here.below(order::PATH)).unwrap();
    match act::carry_out(&here, order, || Ok(()), |_| {}).unwrap() {
        Outcome::Done(order) => *order,
        Outcome::Dropped(refusal) => panic!("{refusal}"),
    }
}

fn has_the_keys(machine: &Machine) {
    for (key, value) in KEYS {
        let found = machine.client().get(key).unwrap();
        assert_eq!(found.map(|found| String::from_utf8(found.value).unwrap()).as_deref(), Some(value), "{key}");
    }
}

#[test]
fn one_of_three_goes_on_and_the_others_join_it_with_their_data_set_aside() {
    if !has_etcd() {
        return;
    }
    let spec = spec(3);
    let mut machines = cluster(&spec);
    let old = machines[0].ids().cluster;
    machines.iter_mut().for_each(Machine::cut);
    // What is there is shown, and changes nothing.
    let (view, _) = here(&machines[0]).view();
    assert_eq!(plan::advise(&view), Advice::NoDatabase(vec!["pg-1".into()]));
    assert_eq!(machines[0].ids().cluster, old);

    let order = recover(&machines[0]);
    machines[0].start();
    wait_for("the first to serve alone", || machines[0].serves().then_some(()));
    has_the_keys(&machines[0]);
    assert_ne!(order.ids.unwrap().cluster, old);
    // Now there is nothing to recover.
    let refusal = plan::plan(&here(&machines[1]).view().0, true).unwrap_err();
    assert_eq!(refusal, Refusal::Quorum(vec!["pg-1".into()]));

    // One comes back with its old data, the other with an empty disk.
    machines[2].replace();
    machines[1].start();
    machines[2].start();
    all_serve(&machines);
    assert!(machines[1].did(|step| matches!(step, Step::SetAside(Aside::OtherCluster))));
    assert_eq!(machines[0].client().cluster().unwrap().1.len(), 3);
    machines.iter().for_each(has_the_keys);
    let found = std::fs::read_dir(machines[1].path("var/lib/etcd")).unwrap();
    let names: Vec<String> = found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let kept: Vec<&String> = names.iter().filter(|name| name.ends_with("-other-cluster")).collect();
    assert_eq!(kept.len(), 1, "{names:?}");
    let kept = EtcdData::look(&machines[1].path("var/lib/etcd").join(kept[0]));
    assert!(matches!(kept, EtcdData::Data(ids) if ids.cluster == old), "{kept:?}");
}

#[test]
fn all_addresses_change() {
    if !has_etcd() {
        return;
    }
    let old = spec(3);
    let mut machines = cluster(&old);
    machines.iter_mut().for_each(Machine::cut);
    let new = spec(3);
    for machine in &mut machines {
        machine.node = Node::new(new.clone(), machine.node.index());
    }
    start_all(&mut machines);
    thread::sleep(Duration::from_secs(5));
    assert!(machines.iter().all(|machine| !machine.serves()), "their etcds look for the old addresses");
    machines[1].cut();
    let (view, _) = here(&machines[1]).view();
    assert_eq!(view.quorums, []);
    assert!(view.nodes.iter().all(|node| node.silent.is_none()), "{view:?}");
    // The others do not tell what database they have: their etcds have the port, and no `init` runs here.
    recover(&machines[1]);
    machines[1].start();
    all_serve(&machines);
    machines.iter().for_each(has_the_keys);
}

#[test]
fn a_recovered_node_does_not_go_back_to_the_old_majority_by_itself() {
    if !has_etcd() {
        return;
    }
    let spec = spec(3);
    let mut machines = cluster(&spec);
    machines.iter_mut().for_each(Machine::cut);
    recover(&machines[0]);
    let ids = machines[0].ids();
    machines[1].start();
    machines[2].start();
    wait_for("the old majority", || machines[1..].iter().all(Machine::serves).then_some(()));
    machines[0].start();
    wait_for("the first to say why it waits", || {
        machines[0].waits().contains("two clusters of one name").then_some(())
    });
    assert_eq!(EtcdData::look(&machines[0].path(ETCD_DATA)), EtcdData::Data(ids));
    // When the others are off, it goes on.
    machines[1].cut();
    machines[2].cut();
    wait_for("the first to serve", || machines[0].serves().then_some(()));
    has_the_keys(&machines[0]);
}
