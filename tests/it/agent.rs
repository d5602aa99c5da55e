//! The node's agent against real members of etcd.

use crate::confd::{etcd::Cluster, wait_for};
use pgha_image::node::{
    agent::{
        document::{Own, Place, count_in},
        store::{Limits, Store},
    },
    etcd::{Client, RangeRequest, Settings},
};
use std::time::{Duration, Instant};

const QUOTA: u64 = 16 << 20;

/// One agent beside each member.
struct Agents {
    agents: Vec<(Store, Client, String)>,
    now: Instant,
}

impl Agents {
    fn beside(cluster: &Cluster) -> Agents {
        let agent = |number| {
            let endpoint = cluster.url(number);
            let client = Client::new(Settings { endpoints: vec![endpoint.clone()], ..cluster.settings() }).unwrap();
            (Store::with(Limits { quota: QUOTA, floor: 2 << 20 }), client, endpoint)
        };
        Agents { agents: (0..cluster.members.len()).map(agent).collect(), now: Instant::now() }
    }

    /// Lets every agent look once, half a minute after the last time; returns all that is told.
    fn look(&mut self) -> Vec<String> {
        self.now += Duration::from_secs(30);
        let now = self.now;
        let looks =
            self.agents.iter_mut().filter_map(|(store, client, endpoint)| store.look(client, endpoint, now).ok());
        looks.flatten().map(|told| told.text).collect()
    }

    fn sizes(&self) -> Vec<u64> {
        self.agents
            .iter()
            .map(|(_, client, endpoint)| client.status(endpoint).map_or(0, |status| status.db_size))
            .collect()
    }
}

/// A cluster of `count` with a small quota.
fn small(count: usize) -> Option<Cluster> {
    Cluster::start_with(count, None, &["--quota-backend-bytes", &QUOTA.to_string()])
}

#[test]
fn a_store_that_is_full_is_writable_again_without_a_person() {
    for count in [1, 3] {
        let Some(cluster) = small(count) else { return };
        let client = cluster.client();
        let mut agents = Agents::beside(&cluster);
        assert_eq!(agents.look(), [""; 0]);
        let page = vec![7; 512 << 10];
        wait_for("the quota to be used up", || client.put("/history", &page, 0).is_err());
        wait_for("the alarm", || {
            client.alarms().is_ok_and(|alarms| alarms.iter().any(|alarm| alarm.kind == "NOSPACE"))
        });
        assert!(client.lease_grant(5).is_err(), "a lock could not be taken now");
        let told = agents.look();
        assert_eq!(told.iter().filter(|text| text.contains("space is used up")).count(), count, "{told:?}");
        wait_for("the store to take writes", || {
            agents.look();
            client.put("/again", "1", 0).is_ok()
        });
        assert!(client.alarms().unwrap().is_empty());
        assert!(agents.sizes().iter().all(|size| *size < QUOTA / 4), "{:?}", agents.sizes());
        assert_eq!(client.get("/history").unwrap().unwrap().value, page, "what is current is kept");
        assert_eq!(agents.look(), [""; 0]);
    }
}

#[test]
fn a_store_that_is_mostly_empty_is_made_small_before_it_is_full() {
    let Some(cluster) = small(3) else { return };
    let client = cluster.client();
    let page = vec![7; 64 << 10];
    for number in 0..100 {
        client.put(&format!("/bulk/{number}"), &page, 0).unwrap();
    }
    client.delete(&RangeRequest::prefix("/bulk/")).unwrap();
    let revision = client.put("/kept", "1", 0).unwrap();
    client.compact_physically(revision).unwrap();
    let mut agents = Agents::beside(&cluster);
    assert!(agents.sizes().iter().all(|size| *size > 4 << 20), "{:?}", agents.sizes());
    wait_for("the files to be small", || {
        // A member learns what is free with its next write.
        client.put("/tick", "1", 0).unwrap();
        agents.look();
        agents.sizes().iter().all(|size| *size < 1 << 20)
    });
    assert_eq!(client.get("/kept").unwrap().unwrap().value, b"1");
}

#[test]
fn nothing_is_defragmented_while_a_member_is_away() {
    let Some(mut cluster) = small(3) else { return };
    let client = cluster.client();
    let mut agents = Agents::beside(&cluster);
    let page = vec![7; 512 << 10];
    wait_for("the quota to be used up", || client.put("/history", &page, 0).is_err());
    let away = (cluster.leader() + 1) % 3;
    let name = cluster.members[away].name.clone();
    cluster.kill(away);
    wait_for("an agent that waits", || {
        agents.look().iter().any(|text| text.ends_with(&format!("when all members answer; not here: {name}")))
    });
    for _ in 0..5 {
        agents.look();
    }
    assert!(client.put("/again", "1", 0).is_err());
    cluster.launch(away);
    wait_for("the store to take writes", || {
        agents.look();
        client.put("/again", "1", 0).is_ok()
    });
}

#[test]
fn the_newest_document_is_known_to_all() {
    let Some(cluster) = Cluster::start(1) else { return };
    let client = cluster.client();
    let document = |name: &str| Own { digest: name.to_owned(), members: vec![name.to_owned()] };
    let count = |name: &str, on_purpose| count_in(&client, "/pgha/demo/document", &document(name), on_purpose).unwrap();
    assert_eq!(count("a", false).0, Place::Current);
    assert_eq!(count("a", false).1.generation, 1);
    assert_eq!(count("b", false).1.generation, 2);
    let (place, record) = count("a", false);
    assert_eq!((place, record.members), (Place::Older { generation: 1, newest: 2 }, vec!["b".to_owned()]));
    assert_eq!(count("a", true).1.generation, 3);
    assert_eq!(count("b", false).0, Place::Older { generation: 2, newest: 3 });
    // A value that is not understood is no reason to write another.
    client.put("/pgha/demo/document", "{", 0).unwrap();
    assert!(count_in(&client, "/pgha/demo/document", &document("c"), true).is_err());
    assert_eq!(client.get("/pgha/demo/document").unwrap().unwrap().value, b"{");
}
