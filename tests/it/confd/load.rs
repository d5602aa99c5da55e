//! Figures under load: 10,000 keys, 100 changes a second. Not among the tests that always run:
//! `cargo test --release --test it load -- --ignored --nocapture`; `PGHA_LOAD_SECONDS` shortens it (600), `PGHA_NODE` names
//! the program to measure.

use super::{
    Confd,
    etcd::{Cluster, as_strs},
    wait_for,
};
use pgha_image::etcd::Op;
use std::{
    collections::VecDeque,
    fs,
    io::Read as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const KEYS: usize = 10_000;
const PER_SECOND: u64 = 100;

/// The change that the file shows: its number stands in the first line.
fn shown(path: &std::path::Path) -> u64 {
    let mut head = [0; 32];
    let length = fs::File::open(path).and_then(|mut file| file.read(&mut head)).unwrap_or(0);
    let text = String::from_utf8_lossy(&head[..length]).into_owned();
    text.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Resident memory in KiB and processor seconds of a process.
fn usage(pid: i32) -> (u64, f64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().split(' ').next()?.parse().ok());
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<f64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse().ok())
        .collect();
    (resident.unwrap_or(0), fields.iter().sum::<f64>() / 100.0)
}

#[test]
#[ignore = "takes eleven minutes and prints figures"]
#[allow(clippy::print_stderr, reason = "the figures are what it is for")]
fn load() {
    let seconds: u64 = std::env::var("PGHA_LOAD_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(600);
    let Some(cluster) = Cluster::start(1) else { return };
    let client = cluster.client();
    let put = |number: usize, value: u64| {
        Op::Put(format!("/load/keys/{number:05}").into(), format!("10.0.0.1:{value}").into(), 0)
    };
    for first in (0..KEYS).step_by(100) {
        let operations: Vec<Op> = (first..first + 100).map(|number| put(number, 0)).collect();
        client.txn(&[], &operations, &[]).unwrap();
    }
    let template =
        "seq {{getv \"/load/seq\" \"0\"}} \n{{range gets \"/load/keys/*\"}}server {{base .Key}} {{.Value}}\n{{end}}";
    let confd =
        Confd::new(&as_strs(&cluster.flags())).resource("load", template, "[\"/load\"]", "reload_cmd = \"true\"");
    let running = confd.start();
    let path = confd.out("load");
    wait_for("the first file", || path.exists());
    thread::sleep(Duration::from_secs(3));
    let (memory_before, cpu_before) = usage(running.pid());

    let waiting: Arc<Mutex<VecDeque<(u64, Instant)>>> = Arc::default();
    let (stop, queue, file) = (Arc::new(AtomicBool::new(false)), Arc::clone(&waiting), path.clone());
    let stopped = Arc::clone(&stop);
    let observer = thread::spawn(move || {
        let mut delays = Vec::new();
        while !stopped.load(Ordering::SeqCst) || !queue.lock().unwrap().is_empty() {
            let now_shown = shown(&file);
            let now = Instant::now();
            let mut queue = queue.lock().unwrap();
            while queue.front().is_some_and(|(number, _)| *number <= now_shown) {
                delays.extend(queue.pop_front().map(|(_, at)| now - at));
            }
            drop(queue);
            thread::sleep(Duration::from_micros(500));
        }
        delays
    });
    let begun = Instant::now();
    for number in 1..=seconds * PER_SECOND {
        let due = begun + Duration::from_millis(number * 1000 / PER_SECOND);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        waiting.lock().unwrap().push_back((number, Instant::now()));
        let seq = Op::Put(b"/load/seq".to_vec(), number.to_string().into(), 0);
        client.txn(&[], &[put(number as usize * 7919 % KEYS, number), seq], &[]).unwrap();
        if number % (60 * PER_SECOND) == 0 {
            let (memory, cpu) = usage(running.pid());
            eprintln!(
                "{:>4} s: {memory} KiB resident, {:.1} % of a processor",
                begun.elapsed().as_secs(),
                (cpu - cpu_before) * 100.0 / begun.elapsed().as_secs_f64()
            );
        }
    }
    let took = begun.elapsed();
    stop.store(true, Ordering::SeqCst);
    let mut delays = observer.join().unwrap();
    delays.sort_unstable();
    let at = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize];
    let (memory_after, cpu_after) = usage(running.pid());
    eprintln!(
        "{} changes in {took:.0?}: put to applied file p50 {:?}, p99 {:?}, max {:?}",
        delays.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    eprintln!(
        "memory {memory_before} KiB before, {memory_after} KiB after; processor {:.1} %",
        (cpu_after - cpu_before) * 100.0 / took.as_secs_f64()
    );
    thread::sleep(Duration::from_secs(5));
    let (_, cpu_idle) = usage(running.pid());
    thread::sleep(Duration::from_secs(60));
    let (_, cpu_end) = usage(running.pid());
    eprintln!("idle: {:.2} % of a processor over 60 s", (cpu_end - cpu_idle) * 100.0 / 60.0);
    assert_eq!(delays.len() as u64, seconds * PER_SECOND);
}
