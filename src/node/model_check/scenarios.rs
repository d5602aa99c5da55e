//! What is explored, and how far.

use super::{
    decide::Decider,
    heal::Healer,
    moves::Model,
    mutations::Mutation,
    search::{Limits, Random, Report, explore, walk},
    world::{Budget, NODES, World},
};
use std::{env, time::Duration};

/// What a world begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Start {
    /// Machines without anything.
    Fresh,
    /// The cluster's etcd has formed, and nothing more.
    Formed,
    /// Everything runs and is complete.
    Complete,
}

/// What can go wrong, and be ordered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// The power of a machine is cut.
    Cut,
    /// All disks of a machine are new.
    Disk,
    /// The volume of etcd is new, or not mounted.
    EtcdLost,
    /// So is that of the database.
    DbLost,
    /// So is that on which the node remembers what it is.
    StateLost,
    /// The disks of a machine cannot be read.
    Unread,
    /// The database's control file is damaged.
    Damaged,
    /// A machine is cut off from the others.
    Part,
    /// A question arrives late.
    Letter,
    /// `form --without`.
    Order,
    /// A node gets another document.
    Document,
    /// Patroni's key `initialize` is emptied by hand.
    Emptied,
    /// It is deleted by hand.
    Deleted,
    /// `claim`.
    Claim,
    /// `first take`.
    Take,
    /// `aside make`.
    Aside,
}

use Kind::*;

/// Everything but [`Deleted`]: what comes of that is told where it is explored.
const ALL: &[Kind] = &[
    Cut, Disk, EtcdLost, DbLost, StateLost, Unread, Damaged, Part, Letter, Order, Document, Emptied, Claim, Take, Aside,
];

/// A world, and what may happen in it.
#[derive(Clone, Copy)]
struct Scenario<'a> {
    name: &'a str,
    /// The members of each document.
    documents: &'a [&'a [u8]],
    /// The document of each machine.
    given: &'a [u8],
    /// The documents that a person may settle on, when there is to be a way on.
    settles: &'a [u8],
    start: Start,
    /// Whether there is a database.
    patroni: bool,
    /// Whether messages are lost where nothing else is wrong.
    lossy: bool,
    kinds: &'a [Kind],
    /// How often altogether something of `kinds` happens.
    total: u8,
    /// How many commits are acknowledged.
    commits: u8,
}

const THREE: Scenario<'_> = Scenario {
    name: "three machines",
    documents: &[&[0, 1, 2]],
    given: &[0, 0, 0],
    settles: &[0, 1],
    start: Start::Fresh,
    patroni: false,
    lossy: true,
    kinds: ALL,
    total: 1,
    commits: 0,
};

/// Worlds of five are too many to explore.
const FIVE: Scenario<'_> = Scenario {
    name: "five machines",
    documents: &[&[0, 1, 2, 3, 4]],
    given: &[0; NODES],
    patroni: true,
    total: 40,
    commits: 3,
    ..THREE
};

impl Scenario<'_> {
    fn budget(&self) -> Budget {
        let mut budget = Budget { total: self.total, commits: self.commits, ..Budget::default() };
        for kind in self.kinds {
            let count = match kind {
                Cut => &mut budget.cuts,
                Disk => &mut budget.disks,
                EtcdLost => &mut budget.etcd_lost,
                DbLost => &mut budget.db_lost,
                StateLost => &mut budget.state_lost,
                Unread => &mut budget.unread,
                Damaged => &mut budget.damaged,
                Part => &mut budget.parts,
                Letter => &mut budget.letters,
                Order => &mut budget.orders,
                Document => &mut budget.documents,
                Emptied => &mut budget.emptied,
                Deleted => &mut budget.deleted,
                Claim => &mut budget.claims,
                Take => &mut budget.takes,
                Aside => &mut budget.asides,
            };
            *count = self.total;
        }
        budget
    }

    fn model(&self, mutation: Option<Mutation>) -> Model {
        Model { decider: Decider::new(self.documents, mutation), lossy: self.lossy, patroni: self.patroni }
    }

    fn start(&self) -> World {
        let fresh = World::fresh(self.given, Budget::default());
        let model = Model { patroni: self.start == Start::Complete, ..self.model(None) };
        let grown = match self.start {
            Start::Fresh => fresh,
            Start::Formed | Start::Complete => {
                Healer::new(&model).grown(&fresh, self.given[0]).expect("a world in which all is well")
            }
        };
        World { budget: self.budget(), ..grown }
    }

    /// Explores it, with the rule that there is a way on if `heals`, and prints what was explored.
    fn explore(&self, mutation: Option<Mutation>, heals: bool, states: usize) -> Report {
        let model = self.model(mutation);
        let healer = Healer::new(&model).under(self.settles);
        let limits = Limits { states, time: Duration::from_secs(24 * 3600) };
        let way_on = |world: &World| if heals { healer.wrong_with(world) } else { None };
        let report = explore(&model, &self.start(), limits, way_on);
        self.print(
            &model,
            &healer,
            &report,
            if report.complete { "all of them" } else { "as many as the limit allows" },
        );
        report
    }

    fn print(&self, model: &Model, healer: &Healer<'_>, report: &Report, how: &str) {
        println!(
            "{}: {} states ({how}) by {} transitions, at most {} one after the other; {} decisions asked; a way on \
             through {} more states, not found out {} times; {:.1} s",
            self.name,
            report.states,
            report.transitions,
            report.depth,
            model.decider.questions(),
            healer.states(),
            healer.unknown(),
            report.took.as_secs_f64(),
        );
    }

    /// Proves that every state keeps the rules. A longer run lets one thing more go wrong.
    fn prove(self) {
        let (scenario, states) = match env::var("PGHA_MODEL_STATES") {
            Ok(text) => (Scenario { total: self.total + 1, ..self }, text.parse().expect("a number of states")),
            Err(_) => (self, usize::MAX),
        };
        let report = scenario.explore(None, true, states);
        if let Some(trace) = &report.broken {
            panic!("{}: {}\n{}", self.name, trace.rule, trace.text);
        }
        assert!(report.complete || report.states >= states, "{} states", report.states);
    }

    /// Shows that a mistake is found, and prints what happens.
    fn finds(self, mutation: Mutation, rule: &str) {
        let is_about_ways = rule.contains("no way on");
        let name = format!("{mutation:?}");
        let report = Scenario { name: &name, ..self }.explore(Some(mutation), is_about_ways, 3_000_000);
        let Some(trace) = report.broken else { panic!("{mutation:?} is not found") };
        println!("{mutation:?}: found after {} moves\n{}", trace.moves.len(), trace.text);
        assert!(trace.rule.contains(rule), "{mutation:?} breaks another rule: {}", trace.rule);
        // Without the mistake the same world keeps the rules.
        assert!(
            Scenario { name: "the same without the mistake", ..self }
                .explore(None, is_about_ways, 60_000)
                .broken
                .is_none(),
            "{mutation:?} is not the reason"
        );
    }
}

#[test]
fn three_machines_form_a_cluster_once() {
    Scenario { name: "three fresh machines form etcd", ..THREE }.prove();
    Scenario { name: "three machines whose etcd has formed", start: Start::Formed, total: 2, ..THREE }.prove();
}

#[test]
fn three_machines_make_one_database() {
    let formed = Scenario { patroni: true, start: Start::Formed, lossy: false, ..THREE };
    Scenario { name: "three machines make the first database", ..formed }.prove();
}

#[test]
fn a_complete_cluster_of_three_loses_nothing() {
    let complete = Scenario { patroni: true, start: Start::Complete, total: 2, ..THREE };
    Scenario { name: "a complete cluster of three", commits: 1, ..complete }.prove();
    let replaced = Scenario { kinds: &[Cut, Disk], total: 3, lossy: false, ..complete };
    Scenario { name: "two of three replaced while the third is off", ..replaced }.prove();
}

#[test]
fn nodes_with_different_documents_form_one_cluster() {
    let with = |name, documents, given| Scenario { name, documents, given, ..THREE };
    with("the same members, and another document", &[&[0, 1, 2], &[0, 1, 2]], &[0, 0, 1]).prove();
    with("another founder", &[&[0, 1, 2], &[1, 0, 2]], &[0, 0, 1]).prove();
    with("a document without a member", &[&[0, 1, 2], &[1, 2]], &[0, 0, 0]).prove();
    // Whoever gives all machines a document that does not name those that have formed stops what they have formed. A node that
    // is in both documents and loses its promise lets both form, as no other node knows of both; so does a
    // person who orders one half to form without it.
    let cross: Scenario<'_> = with("two halves with one node in both", &[&[0, 1, 2], &[3, 2]], &[0, 0, 0, 1]);
    Scenario { kinds: &[Cut, Letter, Document], settles: &[0], lossy: false, ..cross }.prove();
    let complete = Scenario { patroni: true, start: Start::Complete, total: 2, lossy: false, ..THREE };
    let swap = Scenario { documents: &[&[0, 1, 2], &[1, 2, 3]], given: &[0, 0, 0, 0], ..complete };
    Scenario { name: "one member takes another's place", kinds: &[Cut, Disk, Document], ..swap }.prove();
}

#[test]
fn small_clusters_go_on_too() {
    let one = Scenario { documents: &[&[0]], given: &[0], patroni: true, total: 4, ..THREE };
    Scenario { name: "a machine alone", ..one }.prove();
    let two = Scenario { documents: &[&[0, 1]], given: &[0, 0], patroni: true, lossy: false, total: 2, ..THREE };
    Scenario { name: "two machines make the first database", start: Start::Formed, ..two }.prove();
    Scenario { name: "a complete cluster of two", start: Start::Complete, commits: 1, total: 3, ..two }.prove();
}

#[test]
fn five_machines_wherever_chance_leads() {
    let number = |key: &str, otherwise| env::var(key).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    let seed = number("PGHA_MODEL_SEED", 20);
    let walks = number("PGHA_MODEL_WALKS", 60) as usize;
    let five = FIVE;
    for (name, start) in [("five fresh machines", Start::Fresh), ("a complete cluster of five", Start::Complete)] {
        let scenario = Scenario { name, start, ..five };
        let model = scenario.model(None);
        let healer = Healer::new(&model).limited(5_000);
        let mut random = Random::new(seed);
        let report = walk(&model, &scenario.start(), (walks, 400, 40), &mut random, |world| healer.wrong_with(world));
        scenario.print(&model, &healer, &report, &format!("{walks} random walks, seed {seed}"));
        if let Some(trace) = &report.broken {
            panic!("{name}, seed {seed}: {}\n{}", trace.rule, trace.text);
        }
    }
}

#[test]
fn a_founder_that_takes_silence_for_a_promise_is_found() {
    let cross = Scenario { documents: &[&[0, 1, 2], &[3, 2]], given: &[0, 0, 1, 1], total: 0, ..THREE };
    cross.finds(Mutation::SilentIsFresh, "two clusters");
    let world = Scenario { kinds: &[Disk], ..THREE };
    world.finds(Mutation::SilentIsFresh, "a cluster forms while a node of its document has another one's data");
}

#[test]
fn a_promise_that_is_told_before_it_is_written_is_found() {
    let cross = Scenario { documents: &[&[0, 1, 2], &[3, 2]], given: &[0, 0, 0, 1], total: 2, ..THREE };
    Scenario { kinds: &[Cut, Document], lossy: false, ..cross }.finds(Mutation::ToldUnwritten, "two clusters");
}

#[test]
fn a_node_that_promises_twice_is_found() {
    let cross = Scenario { documents: &[&[0, 1, 2], &[3, 2]], given: &[0, 0, 0, 1], total: 1, ..THREE };
    Scenario { kinds: &[Document], ..cross }.finds(Mutation::PromisesTwice, "two clusters");
}

#[test]
fn an_error_that_counts_as_an_absence_is_found() {
    let two = Scenario { documents: &[&[0, 1]], given: &[0, 0], start: Start::Complete, patroni: true, ..THREE };
    let world = Scenario { kinds: &[Cut, Disk, StateLost, Unread], total: 4, lossy: false, ..two };
    world.finds(Mutation::UnreadIsAbsent, "a cluster forms while a node of its document has another one's data");
}

#[test]
fn a_member_that_starts_again_without_its_log_is_found() {
    let world = Scenario { kinds: &[Cut, EtcdLost], total: 2, ..THREE };
    world.finds(Mutation::MarkUnlooked, "a member that has voted starts again without its log");
}

#[test]
fn damage_that_counts_as_half_of_a_copy_is_found() {
    let complete = Scenario { patroni: true, start: Start::Complete, lossy: false, ..THREE };
    let world = Scenario { kinds: &[Cut, Damaged], total: 2, ..complete };
    world.finds(Mutation::DamagedIsHalf, "a database was set aside that was in use");
}

#[test]
fn a_key_without_a_value_that_counts_as_no_data_is_found() {
    let complete = Scenario { patroni: true, start: Start::Complete, lossy: false, ..THREE };
    let world = Scenario { kinds: &[Cut, Disk, Deleted], total: 3, ..complete };
    world.finds(Mutation::EmptiedIsUnbegun, "a first database is made while a node of the document has one");
}

#[test]
fn a_patroni_that_waits_in_vain_is_found() {
    let two = Scenario { documents: &[&[0, 1]], given: &[0, 0], start: Start::Formed, patroni: true, ..THREE };
    let world = Scenario { kinds: &[Cut, Take], total: 2, lossy: false, ..two };
    world.finds(Mutation::WaitsInVain, "there is no way on");
}

#[test]
fn a_promise_that_is_never_released_is_found() {
    let world = Scenario { kinds: &[Disk], ..THREE };
    world.finds(Mutation::NeverReleases, "there is no way on");
}

#[test]
fn a_member_whose_vote_is_not_written_down_before_its_data_go_is_found() {
    // Three machines do not show it: no old log is left that names the member.
    let model = FIVE.model(Some(Mutation::SeenUnwritten));
    let report = walk(&model, &FIVE.start(), (60, 400, usize::MAX), &mut Random::new(2), |_| None);
    let trace = report.broken.expect("it is not found");
    println!("SeenUnwritten: found after {} moves\n{}", trace.moves.len(), trace.text);
    assert!(trace.rule.contains("a member that has voted starts again without its log"), "{}", trace.rule);
}

/// Explores one world that is described by words, such as
/// `PGHA_MODEL="complete patroni lossy Cut Disk total=2 states=100000"`; `all` is for every kind but `Deleted`.
#[test]
fn a_world_of_somebody_s_own() {
    let Ok(text) = env::var("PGHA_MODEL") else { return };
    let words: Vec<&str> = text.split_whitespace().collect();
    let has = |word: &str| words.contains(&word);
    let value = |key: &str| words.iter().find_map(|it| it.strip_prefix(key));
    let number = |key: &str, otherwise| value(key).and_then(|it| it.parse::<usize>().ok()).unwrap_or(otherwise);
    let mut kinds: Vec<Kind> = ALL.iter().chain([&Deleted]).copied().filter(|it| has(&format!("{it:?}"))).collect();
    if has("all") {
        kinds.extend(ALL);
    }
    // Documents and machines as digits: `docs=012,123 given=0001`.
    let digits = |text: &str| -> Vec<u8> { text.bytes().map(|byte| byte - b'0').collect() };
    let documents: Vec<Vec<u8>> = value("docs=").unwrap_or("012").split(',').map(digits).collect();
    let documents: Vec<&[u8]> = documents.iter().map(Vec::as_slice).collect();
    let given = digits(value("given=").unwrap_or("000"));
    let scenario = Scenario {
        name: &text,
        documents: &documents,
        given: &given,
        settles: &[0, 1, 2, 3],
        start: match (has("complete"), has("formed")) {
            (true, _) => Start::Complete,
            (_, true) => Start::Formed,
            _ => Start::Fresh,
        },
        patroni: has("patroni"),
        lossy: has("lossy"),
        kinds: &kinds,
        total: number("total=", 0) as u8,
        commits: number("commits=", 0) as u8,
    };
    let report = scenario.explore(None, !has("unhealed"), number("states=", 5_000_000));
    if let Some(trace) = report.broken {
        panic!("{} after {} moves\n{}", trace.rule, trace.moves.len(), trace.text);
    }
}
