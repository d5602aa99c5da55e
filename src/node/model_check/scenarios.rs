//! What is explored, and how far.

use super::{
    decide::Decider,
    heal::Healer,
    moves::Model,
    mutations::Mutation,
    search::{Limits, Report, explore},
    world::{Budget, World},
};
use std::time::Duration;

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
    Cut,
    Disk,
    EtcdLost,
    DbLost,
    StateLost,
    Unread,
    Damaged,
    Part,
    Letter,
    Order,
    Document,
    Emptied,
    Claim,
    Take,
    Aside,
}

const ALL: [Kind; 15] = [
    Kind::Cut,
    Kind::Disk,
    Kind::EtcdLost,
    Kind::DbLost,
    Kind::StateLost,
    Kind::Unread,
    Kind::Damaged,
    Kind::Part,
    Kind::Letter,
    Kind::Order,
    Kind::Document,
    Kind::Emptied,
    Kind::Claim,
    Kind::Take,
    Kind::Aside,
];

struct Scenario {
    name: &'static str,
    /// The members of each document; the nodes begin with the first.
    documents: &'static [&'static [u8]],
    /// The document of each node.
    given: &'static [u8],
    start: Start,
    patroni: bool,
    /// Whether messages are lost that nothing is wrong with.
    lossy: bool,
    /// What can happen that should not, and how often altogether.
    kinds: &'static [Kind],
    total: u8,
    commits: u8,
    /// How many states are explored at most.
    states: usize,
}

impl Scenario {
    fn budget(&self) -> Budget {
        let mut budget = Budget { total: self.total, commits: self.commits, ..Budget::default() };
        for kind in self.kinds {
            let count = match kind {
                Kind::Cut => &mut budget.cuts,
                Kind::Disk => &mut budget.disks,
                Kind::EtcdLost => &mut budget.etcd_lost,
                Kind::DbLost => &mut budget.db_lost,
                Kind::StateLost => &mut budget.state_lost,
                Kind::Unread => &mut budget.unread,
                Kind::Damaged => &mut budget.damaged,
                Kind::Part => &mut budget.parts,
                Kind::Letter => &mut budget.letters,
                Kind::Order => &mut budget.orders,
                Kind::Document => &mut budget.documents,
                Kind::Emptied => &mut budget.emptied,
                Kind::Claim => &mut budget.claims,
                Kind::Take => &mut budget.takes,
                Kind::Aside => &mut budget.asides,
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

    fn explore(&self, mutation: Option<Mutation>, states: usize) -> Report {
        let model = self.model(mutation);
        let healer = Healer::new(&model);
        let limits = Limits { states, time: Duration::from_secs(3600) };
        let report = explore(&model, &self.start(), limits, |world| healer.wrong_with(world));
        println!(
            "{}: {} states, {} transitions, depth {}, {:?}, {}, {} questions, {} healed",
            self.name,
            report.states,
            report.transitions,
            report.depth,
            report.took,
            if report.complete { "all of them" } else { "as many as the limit allows" },
            model.decider.questions(),
            healer.states(),
        );
        report
    }
}

#[test]
fn by_hand() {
    let Ok(text) = std::env::var("BY_HAND") else { return };
    let words: Vec<&str> = text.split_whitespace().collect();
    let has = |word: &str| words.contains(&word);
    let kinds: Vec<Kind> = ALL.iter().copied().filter(|it| has("all") || has(&format!("{it:?}"))).collect();
    let value = |key: &str| words.iter().find_map(|it| it.strip_prefix(key)?.parse::<usize>().ok());
    let documents: &[&[u8]] = match words.iter().find_map(|it| it.strip_prefix("docs=")) {
        Some("digest") => &[&[0, 1, 2], &[0, 1, 2]],
        Some("order") => &[&[0, 1, 2], &[1, 0, 2]],
        Some("swap") => &[&[0, 1, 2], &[1, 2, 3]],
        Some("less") => &[&[0, 1, 2], &[1, 2]],
        Some("cross") => &[&[0, 1, 2], &[3, 2]],
        Some("two") => &[&[0, 1]],
        Some("one") => &[&[0]],
        _ => &[&[0, 1, 2]],
    };
    let given: Vec<u8> =
        words.iter().find_map(|it| it.strip_prefix("given=")).unwrap_or("000").bytes().map(|b| b - b'0').collect();
    let scenario = Scenario {
        name: Box::leak(text.clone().into_boxed_str()),
        documents,
        given: Box::leak(given.into_boxed_slice()),
        start: if has("complete") {
            Start::Complete
        } else if has("formed") {
            Start::Formed
        } else {
            Start::Fresh
        },
        patroni: has("patroni"),
        lossy: has("lossy"),
        kinds: Box::leak(kinds.into_boxed_slice()),
        total: value("total=").unwrap_or(0) as u8,
        commits: value("commits=").unwrap_or(0) as u8,
        states: value("states=").unwrap_or(5_000_000),
    };
    let mutation = [
        Mutation::SilentIsFresh,
        Mutation::ToldUnwritten,
        Mutation::PromisesTwice,
        Mutation::UnreadIsAbsent,
        Mutation::MarkUnlooked,
        Mutation::HalfIsOwn,
        Mutation::EmptiedIsUnbegun,
        Mutation::ListedWithoutQuorum,
        Mutation::NeverGivesUp,
        Mutation::NeverReleases,
    ];
    let mutation = mutation.into_iter().find(|it| has(&format!("{it:?}")));
    let report = scenario.explore(mutation, scenario.states);
    if let Some(trace) = &report.broken {
        println!("{} after {} moves", trace.rule, trace.moves.len());
    }
    if let Some(trace) = report.broken {
        println!("{}", trace.text);
    }
}
