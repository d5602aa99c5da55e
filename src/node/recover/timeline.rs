//! Compares two copies of a database: which has more, or whether each has what the other has not.
//!
//! A position alone does not say it. Each promotion begins a timeline, and the history of a timeline (the files
//! `pg_wal/*.history`; PostgreSQL, «Timelines») says at which positions those before it were left. A copy on an older
//! timeline is behind one on a newer only if it has not gone past the position at which that one left its timeline; if it
//! has, both have WAL that the other has not, however large the numbers are. Where a history is not known, this is not
//! known either, and is not guessed.

use crate::node::database::Lsn;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A position in the WAL of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The timeline.
    pub timeline: u32,
    /// The position.
    #[serde(with = "text")]
    pub position: Lsn,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on timeline {}", self.position, self.timeline)
    }
}

/// The timelines before one, oldest first, each with the position at which it was left.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History(pub Vec<Place>);

impl History {
    /// Reads the history file of the timeline `of`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, of: u32) -> Result<History, String> {
        let mut places: Vec<Place> = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let mut fields = line.split_whitespace();
            let timeline = fields.next().and_then(|field| field.parse::<u32>().ok());
            let position = fields.next().and_then(parse_position);
            let (Some(timeline), Some(position)) = (timeline, position) else {
                return Err(format!("`{line}` is not a line of a timeline's history"));
            };
            if timeline >= of || places.last().is_some_and(|last| last.timeline >= timeline) {
                return Err(format!("timeline {timeline} is out of order in the history of timeline {of}"));
            }
            places.push(Place { timeline, position });
        }
        Ok(History(places))
    }

    /// Where `timeline` was left.
    pub fn left(&self, timeline: u32) -> Option<Lsn> {
        self.0.iter().find(|place| place.timeline == timeline).map(|place| place.position)
    }

    /// The history file's text; `why` is told in each line.
    pub fn text(&self, why: &str) -> String {
        self.0.iter().map(|place| format!("{}\t{}\t{why}\n", place.timeline, place.position)).collect()
    }
}

/// How far one copy of a database has come.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Reach {
    /// The system identifier: that of all copies of one database.
    pub system: String,
    /// The end of its WAL.
    pub end: Place,
    /// Whether the WAL is known to end there; otherwise there may be more.
    pub exact: bool,
    /// The history of its timeline, if that is known; empty for timeline 1.
    pub history: Option<History>,
}

/// How one copy stands to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relation {
    /// Both have the same.
    Same,
    /// It has less: the other has everything that it has.
    Behind,
    /// It has more.
    Ahead,
    /// Each has WAL that the other has not.
    Parted(Parting),
    /// They are copies of different databases.
    Strange,
    /// It is not known, and why.
    Unknown(String),
}

/// Where two copies parted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parting {
    /// The last place that both have.
    pub at: Place,
    /// Whether the first one's timeline began by leaving the other's: a promotion has given the other's WAL up.
    pub given_up: bool,
}

/// How `one` stands to `other`.
pub fn relation(one: &Reach, other: &Reach) -> Relation {
    use std::cmp::Ordering::*;
    if one.system != other.system {
        return Relation::Strange;
    }
    match one.end.timeline.cmp(&other.end.timeline) {
        Equal => same_timeline(one, other),
        Less => older(one, other),
        Greater => match older(other, one) {
            Relation::Behind => Relation::Ahead,
            Relation::Parted(Parting { at, .. }) => {
                let given_up = one.history.as_ref().is_some_and(|history| history.left(other.end.timeline).is_some());
                Relation::Parted(Parting { at, given_up })
            }
            relation => relation,
        },
    }
}

fn same_timeline(one: &Reach, other: &Reach) -> Relation {
    if let (Some(own), Some(others)) = (&one.history, &other.history)
        && own != others
    {
        // The same number was given twice, by nodes that did not know of each other.
        return Relation::Parted(Parting { at: common(own, others), given_up: false });
    }
    let (end, others) = (one.end.position, other.end.position);
    match (one.exact, other.exact) {
        (true, true) if end == others => Relation::Same,
        (true, _) if end < others => Relation::Behind,
        (_, true) if end > others => Relation::Ahead,
        _ => Relation::Unknown("not all of the WAL has been looked through".to_owned()),
    }
}

/// `one` is on an older timeline than `other`.
fn older(one: &Reach, other: &Reach) -> Relation {
    let Some(history) = &other.history else {
        return Relation::Unknown(format!("the history of timeline {} is not known", other.end.timeline));
    };
    let timeline = one.end.timeline;
    match history.left(timeline) {
        // The same number was given twice, or the older timeline was left before it was given.
        _ if is_another(one.history.as_ref(), history, timeline) => Relation::Parted(Parting {
            at: one.history.as_ref().map_or_else(Place::origin, |own| common(own, history)),
            given_up: false,
        }),
        None => Relation::Parted(Parting {
            at: one.history.as_ref().map_or_else(Place::origin, |own| common(own, history)),
            given_up: false,
        }),
        Some(left) if one.end.position > left => {
            Relation::Parted(Parting { at: Place { timeline, position: left }, given_up: false })
        }
        Some(_) if one.exact => Relation::Behind,
        Some(_) => Relation::Unknown("not all of the WAL has been looked through".to_owned()),
    }
}

/// Whether what `own` says of the time before `timeline` is not what `history` says.
fn is_another(own: Option<&History>, history: &History, timeline: u32) -> bool {
    let before = history.0.iter().take_while(|place| place.timeline < timeline);
    own.is_some_and(|own| !before.eq(own.0.iter()))
}

/// The last place that two histories, of which neither begins with the other, have in common.
fn common(one: &History, other: &History) -> Place {
    let mut at = Place::origin();
    for (own, others) in one.0.iter().zip(&other.0) {
        if own.timeline != others.timeline {
            break;
        }
        at = *own.min(others);
        if own != others {
            break;
        }
    }
    at
}

impl Place {
    /// The beginning of all WAL.
    fn origin() -> Place {
        Place { timeline: 1, position: Lsn(0) }
    }
}

/// Reads a position as PostgreSQL writes it.
pub fn parse_position(text: &str) -> Option<Lsn> {
    let (high, low) = text.split_once('/')?;
    let digits = |text: &str| (1..=8).contains(&text.len()).then(|| u64::from_str_radix(text, 16).ok()).flatten();
    Some(Lsn((digits(high)? << 32) | digits(low)?))
}

/// Positions as text.
pub mod text {
    use super::{Lsn, parse_position};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    /// Writes a position.
    ///
    /// # Errors
    /// As the serializer.
    pub fn serialize<S: Serializer>(position: &Lsn, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(position)
    }

    /// Reads a position.
    ///
    /// # Errors
    /// When it is not one.
    pub fn deserialize<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Lsn, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_position(&text).ok_or_else(|| D::Error::custom(format!("`{text}` is not a position of WAL")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(places: &[(u32, u64)]) -> Option<History> {
        Some(History(
            places.iter().map(|(timeline, position)| Place { timeline: *timeline, position: Lsn(*position) }).collect(),
        ))
    }

    fn reach(timeline: u32, position: u64, history: Option<History>) -> Reach {
        Reach { system: "7".into(), end: Place { timeline, position: Lsn(position) }, exact: true, history }
    }

    fn parted(timeline: u32, position: u64, given_up: bool) -> Relation {
        Relation::Parted(Parting { at: Place { timeline, position: Lsn(position) }, given_up })
    }

    #[test]
    fn a_history_file_is_read_and_written() {
        let text = "1\t0/2000090\tno recovery target specified\n\n3\t1/A0\tbefore 2000-01-01 00:00:00+00\n";
        let read = History::parse(text, 6).unwrap();
        assert_eq!(Some(&read), history(&[(1, 0x2000090), (3, 0x1_0000_00a0)]).as_ref());
        assert_eq!(History::parse(&read.text("why"), 6), Ok(read));
        assert_eq!(History::parse("", 1), Ok(History::default()));
        for (wrong, of) in
            [("1 0/1\n1 0/2", 3), ("2 0/1\n1 0/2", 3), ("3 0/1", 3), ("1", 2), ("a 0/1", 2), ("1 0-1", 2)]
        {
            assert!(History::parse(wrong, of).is_err(), "{wrong}");
        }
        assert_eq!(parse_position("0/123456789"), None);
        assert_eq!(parse_position("/1"), None);
    }

    #[test]
    fn on_one_timeline_the_position_decides() {
        let at = |position| reach(1, position, history(&[]));
        assert_eq!(relation(&at(5), &at(5)), Relation::Same);
        assert_eq!(relation(&at(5), &at(6)), Relation::Behind);
        assert_eq!(relation(&at(6), &at(5)), Relation::Ahead);
        let strange = Reach { system: "8".into(), ..at(5) };
        assert_eq!(relation(&at(5), &strange), Relation::Strange);
    }

    #[test]
    fn a_newer_timeline_is_ahead_only_of_what_had_not_gone_past_its_beginning() {
        let new = reach(3, 50, history(&[(1, 10), (2, 20)]));
        let old = |timeline, position| reach(timeline, position, history(if timeline == 2 { &[(1, 10)] } else { &[] }));
        assert_eq!(relation(&old(1, 10), &new), Relation::Behind);
        assert_eq!(relation(&new, &old(1, 10)), Relation::Ahead);
        assert_eq!(relation(&old(1, 11), &new), parted(1, 10, false));
        assert_eq!(relation(&new, &old(1, 99)), parted(1, 10, true));
        assert_eq!(relation(&new, &old(2, 20)), Relation::Ahead);
        assert_eq!(relation(&new, &old(2, 21)), parted(2, 20, true));
        // Timeline 2 began elsewhere there.
        let other = reach(2, 20, history(&[(1, 9)]));
        assert_eq!(relation(&other, &new), parted(1, 9, false));
        // A timeline that the newer one has never been on.
        let skips = reach(5, 50, history(&[(1, 10), (4, 30)]));
        assert_eq!(relation(&skips, &old(2, 15)), parted(1, 10, false));
        assert_eq!(relation(&old(2, 15), &skips), parted(1, 10, false));
    }

    #[test]
    fn the_same_number_given_twice_is_seen() {
        let one = reach(2, 50, history(&[(1, 10)]));
        let other = reach(2, 40, history(&[(1, 12)]));
        assert_eq!(relation(&one, &other), parted(1, 10, false));
        assert_eq!(relation(&other, &one), parted(1, 10, false));
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        let new = reach(3, 50, None);
        assert!(matches!(relation(&reach(1, 10, history(&[])), &new), Relation::Unknown(_)));
        assert!(matches!(relation(&new, &reach(1, 10, history(&[]))), Relation::Unknown(_)));
        let least = |position| Reach { exact: false, ..reach(1, position, history(&[])) };
        let at = |position| reach(1, position, history(&[]));
        assert_eq!(relation(&least(6), &at(5)), Relation::Ahead);
        assert_eq!(relation(&at(5), &least(6)), Relation::Behind);
        assert!(matches!(relation(&least(5), &at(5)), Relation::Unknown(_)));
        assert!(matches!(relation(&least(5), &at(6)), Relation::Unknown(_)));
        let newer = reach(2, 50, history(&[(1, 10)]));
        assert!(matches!(relation(&least(5), &newer), Relation::Unknown(_)));
        assert_eq!(relation(&least(11), &newer), parted(1, 10, false));
    }

    /// Three nodes write, replicate, fail over and forget each other in every way of so many steps; what was decided from
    /// histories and ends must be what the sets of written records say.
    #[test]
    fn relations_agree_with_what_was_written() {
        #[derive(Clone)]
        struct Node {
            reach: Reach,
            // Which record is at each position.
            wal: Vec<u32>,
            // Whether it has begun its timeline, so that it may write.
            primary: bool,
        }
        fn step(nodes: &[Node; 2], next: u32, depth: usize, checked: &mut u64) {
            check(nodes, checked);
            if depth == 0 {
                return;
            }
            for node in 0..2 {
                let mut written = nodes.clone();
                if nodes[node].primary {
                    written[node].wal.push(next);
                    written[node].reach.end.position.0 += 1;
                    step(&written, next + 1, depth - 1, checked);
                }

                // To a number that nobody has had. Where two give the same number at the same position, nothing tells them
                // apart; this is why what recovers skips numbers.
                let mut promoted = nodes.clone();
                let fresh = nodes.iter().map(|node| node.reach.end.timeline).max().unwrap_or_default() + 1;
                let reach = &mut promoted[node].reach;
                let left = reach.end;
                if let Some(history) = &mut reach.history {
                    history.0.push(left);
                }
                reach.end.timeline = fresh;
                promoted[node].primary = true;
                step(&promoted, next, depth - 1, checked);

                let mut copied = nodes.clone();
                copied[node] = Node { primary: false, ..nodes[1 - node].clone() };
                step(&copied, next, depth - 1, checked);
            }
        }
        fn check(nodes: &[Node; 2], checked: &mut u64) {
            let [one, other] = nodes;
            let begins = |long: &Node, short: &Node| long.wal.starts_with(&short.wal);
            let found = relation(&one.reach, &other.reach);
            *checked += 1;
            match &found {
                Relation::Same => assert_eq!(one.wal, other.wal, "{:?} {:?}", one.reach, other.reach),
                Relation::Behind => assert!(begins(other, one), "{:?} {:?}", one.reach, other.reach),
                Relation::Ahead => assert!(begins(one, other), "{:?} {:?}", one.reach, other.reach),
                Relation::Parted(_) | Relation::Strange | Relation::Unknown(_) => {}
            }
            let turned = relation(&other.reach, &one.reach);
            let expected = match &found {
                Relation::Behind => Relation::Ahead,
                Relation::Ahead => Relation::Behind,
                other => other.clone(),
            };
            match (&expected, &turned) {
                (Relation::Parted(one), Relation::Parted(other)) => assert_eq!(one.at, other.at),
                _ => assert_eq!(expected, turned),
            }
        }
        let start = |primary| Node { reach: reach(1, 0, history(&[])), wal: Vec::new(), primary };
        let mut checked = 0;
        step(&[start(true), start(false)], 0, 7, &mut checked);
        assert!(checked > 50_000, "{checked}");
    }
}
