//! Clusters of real nodes, broken in every way that people fear.
//!
//! ```console
//! cargo test --release --test cluster                        # a representative part
//! cargo test --release --test cluster -- --include-ignored   # all of it
//! cargo test --release --test cluster -- switchover scaled   # the scenarios with one of these in their names
//! ```
//!
//! Scenarios run one after the other, most of them on one cluster that each leaves as well as it found it. Those that
//! measure print their figures at once. Scenarios that are ignored run when they are named. All are ignored, with the
//! reason, on a machine that lacks what they need. The driver is `PGHA_TEST_DRIVER`, `docker` if it is not set.

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

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::{
    env,
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};
use test_cluster::TestCluster;

/// One scenario.
#[derive(Clone)]
struct Scenario {
    /// What it proves, as a sentence.
    name: &'static str,
    /// Whether it runs only when it is asked for.
    ignored: bool,
    run: fn(&mut TestCluster),
}

fn main() -> ExitCode {
    let (mut arguments, filters) = arguments(env::args());
    // There is one cluster for all.
    arguments.test_threads = Some(1);
    let is_named = |scenario: &Scenario| {
        let matches = |filter: &String| match arguments.exact {
            true => scenario.name == filter,
            false => scenario.name.contains(filter.as_str()),
        };
        filters.is_empty() || filters.iter().any(matches)
    };
    let shared = Arc::new(Mutex::new(None));
    let all = [scenarios::all(), safety::all(), recovery::all(), agent::all()].concat();
    for (at, scenario) in all.iter().enumerate() {
        assert!(
            all[..at].iter().all(|other| other.name != scenario.name),
            "two scenarios are called {}",
            scenario.name
        );
    }
    let trials = all.into_iter().filter(is_named).map(|scenario| {
        let shared = Arc::clone(&shared);
        // `--ignored` alone means those that are ignored.
        let ignored = scenario.ignored && (filters.is_empty() || arguments.ignored);
        Trial::ignorable_test(scenario.name, move || run(&scenario, &shared)).with_ignored_flag(ignored)
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    // Removes the cluster.
    shared.lock().unwrap_or_else(PoisonError::into_inner).take();
    conclusion.exit_code()
}

/// Runs a scenario on the shared cluster, which is made when the first scenario needs it.
fn run(scenario: &Scenario, shared: &Mutex<Option<TestCluster>>) -> Result<Completion, Failed> {
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    if shared.is_none() && !TestCluster::is_possible() {
        return Ok(Completion::ignored_with("this machine lacks what scenarios need"));
    }
    let cluster = shared.get_or_insert_with(TestCluster::new);
    // Figures stand below the scenario's name.
    println!();
    let began = Instant::now();
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| (scenario.run)(cluster)));
    println!("    took: {:.1} s", began.elapsed().as_secs_f64());
    outcome.map(|()| Completion::Completed).map_err(|panic| {
        cluster.tell();
        cluster.start_afresh();
        let message = panic.downcast_ref::<String>().map(String::as_str);
        message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").into()
    })
}

/// The arguments but the names of scenarios, and these: libtest takes several, libtest-mimic one.
fn arguments(all: impl Iterator<Item = String>) -> (Arguments, Vec<String>) {
    const WITH_VALUE: [&str; 6] = ["--test-threads", "--logfile", "--skip", "--color", "--format", "-Z"];
    let (mut options, mut filters) = (Vec::new(), Vec::new());
    let mut is_value = true;
    for argument in all {
        if is_value || argument.starts_with('-') {
            // The first is the program's name.
            is_value = !options.is_empty() && !is_value && WITH_VALUE.contains(&argument.as_str());
            options.push(argument);
        } else {
            filters.push(argument);
        }
    }
    (Arguments::from_iter(options), filters)
}
