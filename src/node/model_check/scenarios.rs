use super::decide::Decider;
use super::heal::Healer;
use super::moves::{Bugs, Model};
use super::search::{Limits, explore};
use super::world::{Budget, World};
use std::time::Duration;

pub fn main(arguments: &[String]) {
    let number = |at: usize| arguments.get(at).and_then(|it| it.parse::<u8>().ok()).unwrap_or(0);
    let lossy = number(0) > 0;
    let mut budget = Budget { total: number(1), ..Budget::default() };
    for kind in arguments.iter().skip(2) {
        let all = 9;
        match kind.as_str() {
            "cuts" => budget.cuts = all,
            "disks" => budget.disks = all,
            "orders" => budget.orders = all,
            "etcd" => budget.etcd_lost = all,
            "db" => budget.db_lost = all,
            "unread" => budget.unread = all,
            "damaged" => budget.damaged = all,
            "parts" => budget.parts = all,
            "letters" => budget.letters = all,
            "documents" => budget.documents = all,
            "commits" => budget.commits = 1,
            "claims" => budget.claims = all,
            "takes" => budget.takes = all,
            "state" => budget.state_lost = all,
            "emptied" => budget.emptied = all,
            _ => {}
        }
    }
    let patroni = arguments.iter().any(|it| it == "patroni");
    let documents: &[&[u8]] = match std::env::var("DOCS").as_deref() {
        Ok("digest") => &[&[0, 1, 2], &[0, 1, 2]],
        Ok("order") => &[&[0, 1, 2], &[1, 0, 2]],
        Ok("swap") => &[&[0, 1, 2], &[1, 2, 3]],
        Ok("less") => &[&[0, 1, 2], &[1, 2]],
        Ok("cross") => &[&[0, 1, 2], &[3, 2]],
        Ok("two") => &[&[0, 1]],
        Ok("one") => &[&[0]],
        _ => &[&[0, 1, 2]],
    };
    let starts: Vec<u8> = std::env::var("NODES").map_or(vec![0, 0, 0], |it| it.bytes().map(|b| b - b'0').collect());
    let model = Model { decider: Decider::new(documents), lossy, patroni, bugs: Bugs::default() };
    let start = World::fresh(&starts, budget);
    let seconds = std::env::var("SECONDS_").ok().and_then(|it| it.parse().ok()).unwrap_or(60);
    let limits = Limits { states: 60_000_000, time: Duration::from_secs(seconds) };
    let start = if arguments.iter().any(|it| it == "grown") {
        let grown = Healer::new(&model).grown(&start, 0).expect("a cluster");
        World { budget, ..grown }
    } else {
        start
    };
    if arguments.iter().any(|it| it == "show") {
        for node in start.all() {
            println!("{}", super::words::node(start.node(node)));
        }
        for inc in &start.incs {
            println!("{}", super::words::etcd(inc));
        }
    }
    let healer = Healer::new(&model);
    let heals = arguments.iter().any(|it| it == "heal");
    let report = explore(&model, &start, limits, |world| if heals { healer.wrong_with(world) } else { None });
    println!(
        "{arguments:?}: {} states, {} transitions, depth {}, {:?}, complete {}, {} questions",
        report.states,
        report.transitions,
        report.depth,
        report.took,
        report.complete,
        model.decider.questions()
    );
    if let Some(trace) = report.broken {
        println!("{}", trace.text);
    }
}

#[test]
fn by_hand() {
    if let Ok(text) = std::env::var("BY_HAND") {
        let arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        main(&arguments);
    }
}
