//! Every state that can be reached, in the order of how many things must happen for it.

use super::{
    moves::{Model, Move},
    world::World,
};
use std::{
    collections::{HashSet, VecDeque},
    fmt::Write as _,
    hash::{BuildHasherDefault, Hash as _, Hasher},
    time::{Duration, Instant},
};

/// What a search has found.
pub(super) struct Report {
    pub(super) states: usize,
    pub(super) transitions: usize,
    /// How many things happen at most before a state that was reached.
    pub(super) depth: usize,
    pub(super) took: Duration,
    /// Whether there was nothing left to explore.
    pub(super) complete: bool,
    /// The shortest way to a state that breaks a rule.
    pub(super) broken: Option<Trace>,
}

impl Report {
    fn new() -> Report {
        Report { states: 0, transitions: 0, depth: 0, took: Duration::ZERO, complete: true, broken: None }
    }
}

/// What happens, and the rule that is broken then.
pub(super) struct Trace {
    pub(super) rule: String,
    pub(super) text: String,
    pub(super) moves: Vec<Move>,
}

/// When a search ends that has not found everything.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) states: usize,
    pub(super) time: Duration,
}

/// A quick hasher of small numbers.
#[derive(Default)]
pub(super) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ self.0 >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        mixed ^ mixed >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number ^ 0x9e37_79b9_7f4a_7c15) * 0xa076_1d64_78bd_642f;
        self.0 = (product as u64) ^ (product >> 64) as u64 ^ self.0.rotate_left(29);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
}

/// A hasher of numbers that are hashes already.
#[derive(Default)]
pub(super) struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 ^= u64::from_le_bytes(word);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

pub(super) type Prints = HashSet<u64, BuildHasherDefault<Same>>;

/// A number that no two states of a search share, as likely as matters.
pub(super) fn fingerprint(world: &World) -> u64 {
    let mut hasher = Mix::default();
    world.hash(&mut hasher);
    hasher.finish()
}

/// Explores everything that can come of `start`. `way_on` is asked about each state for what is wrong with it, and
/// counts the states that it has tried.
pub(super) fn explore(
    model: &Model,
    start: &World,
    limits: Limits,
    mut way_on: impl FnMut(&World) -> Option<String>,
) -> Report {
    let began = Instant::now();
    let start = start.clone().canonical();
    let mut known = Prints::default();
    known.insert(fingerprint(&start));
    // For each state the one before it, and what happened then.
    let mut parents: Vec<(u32, Move)> = vec![(0, Move::Deliver)];
    let mut waiting: VecDeque<(u32, u32, World)> = VecDeque::from([(0, 0, start.clone())]);
    let mut report = Report { states: 1, transitions: 0, depth: 0, took: Duration::ZERO, complete: true, broken: None };
    while let Some((at, depth, world)) = waiting.pop_front() {
        report.depth = report.depth.max(depth as usize);
        if report.states > limits.states || began.elapsed() > limits.time {
            report.complete = false;
            break;
        }
        if let Some(wrong) = way_on(&world) {
            report.broken = Some(trace(model, &start, path(&parents, at), wrong));
            break;
        }
        let mut stop = false;
        for happens in model.moves(&world) {
            report.transitions += 1;
            let next = model.after(&world, happens);
            if !known.insert(fingerprint(&next)) {
                continue;
            }
            let number = parents.len() as u32;
            parents.push((at, happens));
            report.states += 1;
            if let Some(rule) = next.broken {
                report.broken = Some(trace(model, &start, path(&parents, number), rule.to_owned()));
                stop = true;
                break;
            }
            waiting.push_back((number, depth + 1, next));
        }
        if stop {
            break;
        }
    }
    report.took = began.elapsed();
    report
}

/// A generator of numbers that look random (George Marsaglia, "Xorshift RNGs", 2003).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * end as u128) >> 64) as usize
    }
}

/// Goes from `start` wherever chance leads, `walks` times, for `steps` things that happen. What nobody wants happens
/// rarely. `way_on` is asked after every `pause` of them.
pub(super) fn walk(
    model: &Model,
    start: &World,
    (walks, steps, pause): (usize, usize, usize),
    random: &mut Random,
    mut way_on: impl FnMut(&World) -> Option<String>,
) -> Report {
    let began = Instant::now();
    let start = start.clone().canonical();
    let mut known = Prints::default();
    let mut report = Report { complete: false, ..Report::new() };
    for _ in 0..walks {
        let (mut world, mut moves) = (start.clone(), Vec::new());
        while moves.len() < steps {
            let (bad, good): (Vec<Move>, Vec<Move>) = model.moves(&world).into_iter().partition(|it| it.is_fault());
            let from = if good.is_empty() || (!bad.is_empty() && random.below(12) == 0) { bad } else { good };
            let Some(happens) = from.get(random.below(from.len())) else { break };
            world = model.after(&world, *happens);
            moves.push(*happens);
            report.transitions += 1;
            report.depth = report.depth.max(moves.len());
            report.states += usize::from(known.insert(fingerprint(&world)));
            let rule = world.broken.map(str::to_owned);
            let asked = rule.or_else(|| if moves.len() % pause == 0 { way_on(&world) } else { None });
            if let Some(rule) = asked {
                report.broken = Some(trace(model, &start, moves, rule));
                report.took = began.elapsed();
                return report;
            }
        }
    }
    report.took = began.elapsed();
    report
}

/// What happened on the way to a state.
fn path(parents: &[(u32, Move)], mut at: u32) -> Vec<Move> {
    let mut moves = Vec::new();
    while at != 0 {
        let (before, happened) = parents[at as usize];
        moves.push(happened);
        at = before;
    }
    moves.reverse();
    moves
}

/// What happens from `start` on, in words.
pub(super) fn trace(model: &Model, start: &World, moves: Vec<Move>, rule: String) -> Trace {
    let mut text = String::new();
    let mut before = start.clone();
    for (number, happens) in moves.iter().enumerate() {
        let world = model.after(&before, *happens);
        let _ = writeln!(text, "{:>3}. {happens}", number + 1);
        describe(&before, &world, &mut text);
        before = world;
    }
    let _ = writeln!(text, "=> {rule}");
    Trace { rule, text, moves }
}

/// What has changed from one state to the next.
fn describe(before: &World, after: &World, text: &mut String) {
    for node in after.all() {
        let (old, new) = (before.node(node), after.node(node));
        if old != new {
            let _ = writeln!(text, "       {}: {}", super::world::name(node), super::words::node(new));
        }
    }
    for (no, inc) in after.incs.iter().enumerate() {
        if before.incs.get(no) != Some(inc) {
            let _ = writeln!(text, "       I{no}: {}", super::words::etcd(inc));
        }
    }
    if before.letter != after.letter {
        let letter = after.letter.as_ref().map_or("nothing".to_owned(), super::words::letter);
        let _ = writeln!(text, "       on its way: {letter}");
    }
}
