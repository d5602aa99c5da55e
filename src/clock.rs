//! Local time without a C library: the zone files of tzdata (RFC 9636), and times in the names of files.

pub use crate::calendar::{Civil, days_from_civil, utc};

use std::{env, fs, path::PathBuf};

/// The same for a file's name: `20261127T011500Z`.
pub fn stamp(seconds: i64) -> String {
    utc(seconds).replace(['-', ':'], "")
}

/// Reads what [`stamp`] writes.
pub fn from_stamp(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let digits = |text: &str, length: usize| text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(date, 8) || !digits(time, 6) {
        return None;
    }
    let number = |text: &str| text.parse::<i64>().ok();
    let (month, day) = (date[4..6].parse().ok()?, date[6..].parse().ok()?);
    let days = days_from_civil(number(&date[..4])?, month, day);
    let seconds = number(&time[..2])? * 3600 + number(&time[2..4])? * 60 + number(&time[4..])?;
    let read = days * 86_400 + seconds;
    // A month of 13 or a day of 31 in June is not a time.
    (stamp(read) == text).then_some(read)
}

/// The offset of a time zone: seconds east of UTC, and the zone's abbreviation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offset {
    /// Seconds east of UTC.
    pub seconds: i32,
    /// Such as `CET`; `UTC` for Greenwich without a zone.
    pub name: String,
}

/// The offset of this machine's local time at `unix` seconds: the zone of `TZ`, else of `/etc/localtime`, else UTC.
pub fn local_offset(unix: i64) -> Offset {
    let path = match env::var("TZ") {
        Ok(zone) if zone.is_empty() => None,
        Ok(zone) => Some(zone.trim_start_matches(':').to_owned()),
        Err(_) => Some("/etc/localtime".to_owned()),
    };
    path.map(
        |zone| {
            if zone.starts_with('/') { PathBuf::from(zone) } else { PathBuf::from("/usr/share/zoneinfo").join(zone) }
        },
    )
    .and_then(|path| fs::read(path).ok())
    .and_then(|bytes| Zone::read(&bytes)?.offset(unix))
    .unwrap_or(Offset { seconds: 0, name: "UTC".to_owned() })
}

/// A zone file: transitions, and a rule for the time after the last of them.
#[derive(Debug, Default)]
struct Zone {
    transitions: Vec<(i64, usize)>,
    offsets: Vec<Offset>,
    rule: Option<Rule>,
}

impl Zone {
    fn read(bytes: &[u8]) -> Option<Zone> {
        let (first, rest) = Header::read(bytes)?;
        if first.version < b'2' {
            return Zone::block(&first, rest, 4).map(|(zone, _)| zone);
        }
        let (second, rest) = Header::read(rest.get(first.length(4)..)?)?;
        let (mut zone, footer) = Zone::block(&second, rest, 8)?;
        let footer = std::str::from_utf8(footer).ok()?.trim_matches('\n');
        zone.rule = Rule::read(footer);
        Some(zone)
    }

    /// Reads a data block whose times take `width` bytes; returns what follows it.
    fn block<'a>(header: &Header, bytes: &'a [u8], width: usize) -> Option<(Zone, &'a [u8])> {
        let data = bytes.get(..header.length(width))?;
        let (times, data) = data.split_at(header.times * width);
        let (indices, data) = data.split_at(header.times);
        let (types, data) = data.split_at(header.types * 6);
        let names = data.get(..header.names)?;
        let transitions = times.chunks(width).zip(indices);
        let transitions = transitions.map(|(time, &index)| {
            let sign = if time[0] & 0x80 == 0 { 0 } else { -1 };
            (time.iter().fold(sign, |value: i64, &byte| value << 8 | i64::from(byte)), usize::from(index))
        });
        let offsets = types.chunks(6).map(|kind| {
            let name = names.get(usize::from(kind[5])..)?.split(|&byte| byte == 0).next()?;
            let seconds = i32::from_be_bytes([kind[0], kind[1], kind[2], kind[3]]);
            Some(Offset { seconds, name: String::from_utf8_lossy(name).into_owned() })
        });
        let zone = Zone { transitions: transitions.collect(), offsets: offsets.collect::<Option<_>>()?, rule: None };
        Some((zone, &bytes[header.length(width)..]))
    }

    fn offset(&self, unix: i64) -> Option<Offset> {
        let after = self.transitions.partition_point(|&(time, _)| time <= unix);
        match (&self.rule, after) {
            (Some(rule), after) if after == self.transitions.len() => Some(rule.offset(unix)),
            (_, 0) => self.offsets.first().cloned(),
            (_, after) => self.offsets.get(self.transitions[after - 1].1).cloned(),
        }
    }
}

/// The counts that open a data block of a zone file.
#[derive(Debug)]
struct Header {
    version: u8,
    utc: usize,
    standard: usize,
    leaps: usize,
    times: usize,
    types: usize,
    names: usize,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<(Header, &[u8])> {
        let head = bytes.get(..44)?;
        if &head[..4] != b"TZif" {
            return None;
        }
        let count = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
        let [utc, standard, leaps, times, types, names] = [20, 24, 28, 32, 36, 40].map(count);
        // No zone has more than a few hundred of anything; a damaged file must not overflow the sums below.
        [utc, standard, leaps, times, types, names].iter().all(|&count| count < 1 << 20).then_some(())?;
        Some((Header { version: head[4], utc, standard, leaps, times, types, names }, &bytes[44..]))
    }

    fn length(&self, width: usize) -> usize {
        self.times * (width + 1) + self.types * 6 + self.names + self.leaps * (width + 4) + self.standard + self.utc
    }
}

/// A POSIX rule such as `CET-1CEST,M3.5.0,M10.5.0/3`.
#[derive(Debug, PartialEq, Eq)]
struct Rule {
    standard: Offset,
    summer: Option<(Offset, Change, Change)>,
}

/// The day and second of a year at which clocks change: week 1 to 5 (5 is the last) of a month, weekday 0 to 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    month: u8,
    week: u8,
    weekday: u8,
    seconds: i64,
}

impl Rule {
    fn read(text: &str) -> Option<Rule> {
        let mut parts = text.split(',');
        let (standard, rest) = zone_name(parts.next()?)?;
        let (west, rest) = clock_time(rest)?;
        let standard = Offset { seconds: -west as i32, name: standard };
        if rest.is_empty() {
            return Some(Rule { standard, summer: None });
        }
        let (name, rest) = zone_name(rest)?;
        let seconds = if rest.is_empty() { standard.seconds + 3600 } else { -clock_time(rest)?.0 as i32 };
        let (from, to) = (Change::read(parts.next()?)?, Change::read(parts.next()?)?);
        Some(Rule { standard, summer: Some((Offset { seconds, name }, from, to)) })
    }

    fn offset(&self, unix: i64) -> Offset {
        let Some((summer, from, to)) = &self.summer else { return self.standard.clone() };
        let year = Civil::from_unix(unix, self.standard.seconds).year;
        let start = from.seconds_in(year) - i64::from(self.standard.seconds);
        let end = to.seconds_in(year) - i64::from(summer.seconds);
        let is_summer = if start <= end { (start..end).contains(&unix) } else { !(end..start).contains(&unix) };
        if is_summer { summer.clone() } else { self.standard.clone() }
    }
}

impl Change {
    fn read(text: &str) -> Option<Change> {
        let (day, time) = text.split_once('/').unwrap_or((text, "2"));
        let mut numbers = day.strip_prefix('M')?.split('.').map(|number| number.parse::<u8>().ok());
        let (month, week, weekday) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let in_range = (1..=12).contains(&month) && (1..=5).contains(&week) && weekday < 7;
        in_range.then_some(Change { month, week, weekday, seconds: clock_time(time)?.0 })
    }

    /// Seconds since 1970 in local time.
    fn seconds_in(&self, year: i64) -> i64 {
        let first = days_from_civil(year, self.month, 1);
        let next_month =
            if self.month == 12 { days_from_civil(year + 1, 1, 1) } else { days_from_civil(year, self.month + 1, 1) };
        let to_weekday = (i64::from(self.weekday) - (first + 4)).rem_euclid(7);
        let mut day = first + to_weekday + 7 * (i64::from(self.week) - 1);
        while day >= next_month {
            day -= 7;
        }
        day * 86_400 + self.seconds
    }
}

/// Splits the zone's name, `<+03>` or letters, from `text`.
fn zone_name(text: &str) -> Option<(String, &str)> {
    if let Some(quoted) = text.strip_prefix('<') {
        let (name, rest) = quoted.split_once('>')?;
        return Some((name.to_owned(), rest));
    }
    let end = text.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(text.len());
    (end >= 3).then(|| (text[..end].to_owned(), &text[end..]))
}

/// Splits `[+-]hh[:mm[:ss]]` from `text`, as seconds.
fn clock_time(text: &str) -> Option<(i64, &str)> {
    let (sign, text) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let end = text.find(|c: char| !c.is_ascii_digit() && c != ':').unwrap_or(text.len());
    let mut seconds = 0;
    for (unit, number) in [3600, 60, 1].iter().zip(text[..end].split(':')) {
        seconds += unit * number.parse::<i64>().ok().filter(|&number| number < 168)?;
    }
    Some((sign * seconds, &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_back_and_nothing_else_is() {
        assert_eq!(utc(1_795_741_749), "2026-11-27T01:09:09Z");
        assert_eq!(stamp(1_795_741_749), "20261127T010909Z");
        assert_eq!(from_stamp("20261127T010909Z"), Some(1_795_741_749));
        for text in ["", "20261127T010909", "20261327T010909Z", "20260631T010909Z", "2026112\u{660}T010909Z", "x"] {
            assert_eq!(from_stamp(text), None, "{text}");
        }
    }

    #[test]
    fn days_and_dates_agree() {
        for (days, expected) in
            [(0, (1970, 1, 1)), (11_016, (2000, 2, 29)), (-1, (1969, 12, 31)), (20_780, (2026, 11, 23))]
        {
            let civil = Civil::from_unix(days * 86_400, 0);
            assert_eq!((civil.year, civil.month, civil.day), expected);
            assert_eq!(days_from_civil(civil.year, civil.month, civil.day), days);
        }
        let civil = Civil::from_unix(1_795_392_000 + 3_723, 3600);
        assert_eq!((civil.weekday, civil.year_day, civil.hour, civil.minute, civil.second), (1, 327, 2, 2, 3));
    }

    #[test]
    fn a_rule_knows_summer_and_winter_on_both_halves_of_the_globe() {
        let berlin = Rule::read("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        // 2026-03-29T01:00:00Z and 2026-10-25T01:00:00Z are the changes.
        let spring = days_from_civil(2026, 3, 29) * 86_400 + 3600;
        let autumn = days_from_civil(2026, 10, 25) * 86_400 + 3600;
        assert_eq!(berlin.offset(spring - 1).name, "CET");
        assert_eq!(berlin.offset(spring), Offset { seconds: 7200, name: "CEST".into() });
        assert_eq!(berlin.offset(autumn - 1).name, "CEST");
        assert_eq!(berlin.offset(autumn).name, "CET");
        let sydney = Rule::read("AEST-10AEDT,M10.1.0,M4.1.0/3").unwrap();
        assert_eq!(sydney.offset(days_from_civil(2026, 1, 1) * 86_400).seconds, 39_600);
        assert_eq!(sydney.offset(days_from_civil(2026, 7, 1) * 86_400).name, "AEST");
        assert_eq!(Rule::read("<+03>-3").unwrap().offset(0), Offset { seconds: 10_800, name: "+03".into() });
    }

    #[test]
    fn a_zone_file_is_read() {
        let block = |times: &[i64], width: usize| {
            let mut bytes = b"TZif2".to_vec();
            bytes.extend([0; 15]);
            for count in [0, 0, 0, times.len(), 2, 8] {
                bytes.extend((count as u32).to_be_bytes());
            }
            for time in times {
                bytes.extend(&time.to_be_bytes()[8 - width..]);
            }
            bytes.extend((0..times.len()).map(|index| (index % 2) as u8));
            bytes.extend([0, 0, 0, 0, 0, 0]);
            bytes.extend([0, 0, 14, 16, 1, 4]);
            bytes.extend(b"GMT\0BST\0");
            bytes
        };
        let mut file = block(&[], 4);
        file.extend(block(&[-100, 100], 8));
        file.extend(b"\nGMT0\n");
        let zone = Zone::read(&file).unwrap();
        assert_eq!(zone.offset(0).unwrap(), Offset { seconds: 0, name: "GMT".into() });
        assert_eq!(zone.offset(200).unwrap().name, "GMT");
        assert_eq!(zone.transitions, [(-100, 0), (100, 1)]);
        assert!(Zone::read(&file[..60]).is_none());
    }
}
