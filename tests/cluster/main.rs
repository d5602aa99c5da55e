//! Clusters of real nodes, broken in every way that people fear.
//!
//! ```console
//! cargo test --release --test cluster                        # a representative part
//! cargo test --release --test cluster -- --include-ignored   # all of it
//! cargo test --release --test cluster -- switchover          # the scenarios with this in their names
//! ```
//!
//! Scenarios run one after the other, most of them on one cluster that each leaves as well as it found it. Those that
//! measure print their figures. The driver is `PGHA_TEST_DRIVER`, `docker` if it is not set.

#![allow(clippy::print_stdout, reason = "scenarios tell their figures and what they skip")]

#[path = "../it/support.rs"]
#[allow(dead_code, reason = "shared with tests that use more of it")]
mod support;

mod agent;
mod hosts;
mod recovery;
mod safety;
mod scenarios;
mod test_cluster;
#[path = "../../src/testing.rs"]
#[allow(dead_code, reason = "shared with tests that use more of it")]
mod testing;
mod writer;

use std::{
    env,
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
    time::Instant,
};
use test_cluster::TestCluster;

/// One scenario.
struct Scenario {
    /// What it proves, as a sentence.
    name: &'static str,
    /// Whether it runs only when it is asked for.
    ignored: bool,
    run: fn(&mut TestCluster),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let flag = |name: &str| arguments.iter().any(|argument| argument == name);
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let exact = flag("--exact");
    let wanted = |scenario: &Scenario| {
        let chosen = match (flag("--include-ignored"), flag("--ignored")) {
            (true, _) => true,
            (_, true) => scenario.ignored,
            _ => !scenario.ignored || !filters.is_empty(),
        };
        let named =
            |filter: &&String| if exact { scenario.name == **filter } else { scenario.name.contains(filter.as_str()) };
        chosen && (filters.is_empty() || filters.iter().any(named))
    };
    let all = scenarios::all().into_iter().chain(safety::all()).chain(recovery::all()).chain(agent::all());
    let scenarios: Vec<Scenario> = all.filter(wanted).collect();
    if flag("--list") {
        scenarios.iter().for_each(|scenario| println!("{}: test", scenario.name));
        return ExitCode::SUCCESS;
    }
    if scenarios.is_empty() || !TestCluster::is_possible() {
        return ExitCode::SUCCESS;
    }
    let mut cluster = TestCluster::new();
    let mut failed = Vec::new();
    println!("\nrunning {} scenarios", scenarios.len());
    for scenario in &scenarios {
        let began = Instant::now();
        println!("scenario {} ...", scenario.name);
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| (scenario.run)(&mut cluster)));
        let seconds = began.elapsed().as_secs_f64();
        if outcome.is_ok() {
            println!("scenario {} ... ok ({seconds:.1} s)", scenario.name);
        } else {
            println!("scenario {} ... FAILED ({seconds:.1} s)", scenario.name);
            failed.push(scenario.name);
            cluster.tell();
            cluster.start_afresh();
        }
    }
    drop(cluster);
    println!("\n{} passed, {} failed", scenarios.len() - failed.len(), failed.len());
    failed.iter().for_each(|name| println!("failed: {name}"));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
