//! `datetime`: a time is the text that Go prints for it, and its methods read that text back.

use super::{Args, Function, Outcome, Scope, as_pair, error, text, type_name};
use crate::clock::{self, Civil, Offset, days_from_civil};
use gotmpl::Value;
use std::{
    fmt::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

pub const TABLE: &[(&str, Function)] =
    &[("datetime", datetime), (super::rewrite::FIELD, field), (super::rewrite::METHOD, method)];

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// The layout of Go's `Time.String`.
const STRING: &str = "2006-01-02 15:04:05.999999999 -0700 MST";

fn datetime(_: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(0)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix = now.as_secs() as i64;
    Ok(text(Time { unix, nanos: now.subsec_nanos(), offset: clock::local_offset(unix) }.format(STRING)))
}

/// Fields of fields. As in Go, a key that a map lacks is nothing, and so is each of its fields.
fn field(_: &Scope, args: &Args<'_>) -> Outcome {
    let mut value = args.value(0)?.clone();
    for name in 1..args.values.len() {
        let name = args.text(name)?;
        value = match &value {
            Value::Map(_) if as_pair(&value).is_some() && !matches!(name, "Key" | "Value") => {
                return Err(error(format!("can't evaluate field {name} in type memkv.KVPair")));
            }
            Value::Map(map) => map.get(name).cloned().unwrap_or(Value::Nil),
            Value::String(written) if Time::read(written).is_some() => of_time(written, name, &[])?,
            Value::Nil => Value::Nil,
            other => return Err(error(format!("can't evaluate field {name} in type {}", type_name(other)))),
        };
    }
    Ok(value)
}

fn method(_: &Scope, args: &Args<'_>) -> Outcome {
    let (receiver, name) = (args.value(0)?, args.text(1)?);
    match receiver {
        Value::String(written) if Time::read(written).is_some() => of_time(written, name, &args.values[2..]),
        _ => Err(error(format!("{name} is not a method but has arguments"))),
    }
}

fn of_time(written: &str, name: &str, arguments: &[Value]) -> Outcome {
    let Some(time) = Time::read(written) else { return Err(error(format!("{written:?} is not a time"))) };
    let civil = time.civil();
    match (name, arguments) {
        ("Format", [Value::String(layout)]) => Ok(text(time.format(layout))),
        ("String", []) => Ok(text(written)),
        ("Unix", []) => Ok(Value::Int(time.unix)),
        ("UnixNano", []) => Ok(Value::Int(time.unix.saturating_mul(1_000_000_000).saturating_add(time.nanos.into()))),
        ("UTC", []) => {
            let offset = Offset { seconds: 0, name: "UTC".to_owned() };
            Ok(text(Time { offset, ..time }.format(STRING)))
        }
        ("Local", []) => {
            let offset = clock::local_offset(time.unix);
            Ok(text(Time { offset, ..time }.format(STRING)))
        }
        ("Year", []) => Ok(Value::Int(civil.year)),
        ("Month", []) => Ok(text(MONTHS[usize::from(civil.month) - 1])),
        ("Weekday", []) => Ok(text(DAYS[usize::from(civil.weekday)])),
        ("Day", []) => Ok(Value::Int(civil.day.into())),
        ("YearDay", []) => Ok(Value::Int(civil.year_day.into())),
        ("Hour", []) => Ok(Value::Int(civil.hour.into())),
        ("Minute", []) => Ok(Value::Int(civil.minute.into())),
        ("Second", []) => Ok(Value::Int(civil.second.into())),
        ("Nanosecond", []) => Ok(Value::Int(time.nanos.into())),
        _ => Err(error(format!("the time method {name} with {} arguments is not supported", arguments.len()))),
    }
}

/// A point in time with the offset at which it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Time {
    unix: i64,
    nanos: u32,
    offset: Offset,
}

impl Time {
    fn civil(&self) -> Civil {
        Civil::from_unix(self.unix, self.offset.seconds)
    }

    /// Reads what [`STRING`] writes.
    fn read(written: &str) -> Option<Time> {
        let mut words = written.split(' ');
        let (date, clock, offset, name) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let mut date = date.split('-').map(|part| part.parse::<i64>().ok());
        let (year, month, day) = (date.next()??, date.next()??, date.next()??);
        let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
        let mut clock = clock.split(':').map(|part| part.parse::<i64>().ok());
        let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
        let is_date = (1..=12).contains(&month) && (1..=31).contains(&day);
        let is_clock = (0..24).contains(&hour) && (0..60).contains(&minute) && (0..60).contains(&second);
        let is_offset = offset.len() == 5 && offset.is_ascii() && matches!(offset.as_bytes()[0], b'+' | b'-');
        if !(is_date && is_clock && is_offset && words.next().is_none() && (0..=9999).contains(&year)) {
            return None;
        }
        let (hours, minutes) = (offset[1..3].parse::<i32>().ok()?, offset[3..].parse::<i32>().ok()?);
        let seconds = (hours * 3600 + minutes * 60) * if offset.starts_with('-') { -1 } else { 1 };
        let nanos = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
        let days = days_from_civil(year, month as u8, day as u8);
        let unix = days * 86_400 + hour * 3600 + minute * 60 + second - i64::from(seconds);
        Some(Time { unix, nanos, offset: Offset { seconds, name: name.to_owned() } })
    }

    /// Formats by Go's layouts: the reference time is Mon Jan 2 15:04:05 MST 2006.
    fn format(&self, layout: &str) -> String {
        let mut out = String::new();
        let mut rest = layout;
        while !rest.is_empty() {
            match CHUNKS.iter().find(|chunk| chunk_fits(chunk, rest)) {
                Some(chunk) => {
                    self.chunk(chunk, &mut out);
                    rest = &rest[chunk.len()..];
                }
                None if is_fraction(rest) => {
                    let digits = 1 + rest[1..].bytes().take_while(|byte| *byte == rest.as_bytes()[1]).count();
                    self.fraction(&rest[..digits], &mut out);
                    rest = &rest[digits..];
                }
                None => {
                    let c = rest.chars().next().unwrap_or_default();
                    out.push(c);
                    rest = &rest[c.len_utf8()..];
                }
            }
        }
        out
    }

    fn chunk(&self, chunk: &str, out: &mut String) {
        let civil = self.civil();
        let (month, weekday) = (MONTHS[usize::from(civil.month) - 1], DAYS[usize::from(civil.weekday)]);
        let hour12 = (civil.hour + 11) % 12 + 1;
        // Writing to a String cannot fail.
        let _ = match chunk {
            "January" => write!(out, "{month}"),
            "Jan" => write!(out, "{}", &month[..3]),
            "Monday" => write!(out, "{weekday}"),
            "Mon" => write!(out, "{}", &weekday[..3]),
            "01" => write!(out, "{:02}", civil.month),
            "02" => write!(out, "{:02}", civil.day),
            "03" => write!(out, "{hour12:02}"),
            "04" => write!(out, "{:02}", civil.minute),
            "05" => write!(out, "{:02}", civil.second),
            "06" => write!(out, "{:02}", civil.year.rem_euclid(100)),
            "002" => write!(out, "{:03}", civil.year_day),
            "__2" => write!(out, "{:>3}", civil.year_day),
            "1" => write!(out, "{}", civil.month),
            "15" => write!(out, "{:02}", civil.hour),
            "2006" => write!(out, "{:04}", civil.year),
            "_2006" => write!(out, "_{:04}", civil.year),
            "2" => write!(out, "{}", civil.day),
            "_2" => write!(out, "{:>2}", civil.day),
            "3" => write!(out, "{hour12}"),
            "4" => write!(out, "{}", civil.minute),
            "5" => write!(out, "{}", civil.second),
            "PM" => write!(out, "{}", if civil.hour < 12 { "AM" } else { "PM" }),
            "pm" => write!(out, "{}", if civil.hour < 12 { "am" } else { "pm" }),
            "MST" => write!(out, "{}", self.offset.name),
            offset => self.write_offset(offset, out),
        };
    }

    fn write_offset(&self, chunk: &str, out: &mut String) -> std::fmt::Result {
        let seconds = self.offset.seconds;
        if chunk.starts_with('Z') && seconds == 0 {
            return out.write_char('Z');
        }
        let (sign, seconds) = (if seconds < 0 { '-' } else { '+' }, seconds.unsigned_abs());
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        match &chunk[1..] {
            "07" => write!(out, "{sign}{hours:02}"),
            "0700" => write!(out, "{sign}{hours:02}{minutes:02}"),
            "07:00" => write!(out, "{sign}{hours:02}:{minutes:02}"),
            "070000" => write!(out, "{sign}{hours:02}{minutes:02}{seconds:02}"),
            _ => write!(out, "{sign}{hours:02}:{minutes:02}:{seconds:02}"),
        }
    }

    /// `.000` or `,000` keeps zeros, `.999` drops those at the end.
    fn fraction(&self, chunk: &str, out: &mut String) {
        let digits = format!("{:09}", self.nanos);
        let shown = &digits[..(chunk.len() - 1).min(9)];
        let shown = if chunk.as_bytes()[1] == b'9' { shown.trim_end_matches('0') } else { shown };
        if !shown.is_empty() {
            out.push_str(&chunk[..1]);
            out.push_str(shown);
        }
    }
}

/// The chunks of layouts; longer ones come before those that they begin with.
const CHUNKS: [&str; 34] = [
    "January",
    "Jan",
    "Monday",
    "Mon",
    "MST",
    "002",
    "01",
    "02",
    "03",
    "04",
    "05",
    "06",
    "2006",
    "2",
    "_2006",
    "_2",
    "__2",
    "15",
    "1",
    "3",
    "4",
    "5",
    "PM",
    "pm",
    "-07:00:00",
    "-070000",
    "-07:00",
    "-0700",
    "-07",
    "Z07:00:00",
    "Z070000",
    "Z07:00",
    "Z0700",
    "Z07",
];

fn chunk_fits(chunk: &str, rest: &str) -> bool {
    let Some(after) = rest.strip_prefix(chunk) else { return false };
    // `Janet` and `Monk` are words, not a month and a weekday.
    !(matches!(chunk, "Jan" | "Mon") && after.starts_with(|c: char| c.is_ascii_lowercase()))
}

/// A point or comma, then zeros or nines, then no further digit.
fn is_fraction(rest: &str) -> bool {
    let bytes = rest.as_bytes();
    if !matches!(bytes.first(), Some(b'.' | b',')) {
        return false;
    }
    let Some(digit @ (b'0' | b'9')) = bytes.get(1) else { return false };
    let after = bytes[1..].iter().find(|byte| *byte != digit);
    !after.is_some_and(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time() -> Time {
        // 2015-01-23 13:34:56.09325 -0800 PST, the example of confd's documentation.
        Time::read("2015-01-23 13:34:56.09325 -0800 PST").unwrap()
    }

    #[test]
    fn layouts_are_as_in_go() {
        assert_eq!(time().unix, 1_422_048_896);
        for (layout, expected) in [
            (STRING, "2015-01-23 13:34:56.09325 -0800 PST"),
            ("Jan 2, 2006 at 3:04pm (MST)", "Jan 23, 2015 at 1:34pm (PST)"),
            ("Mon, 02 Jan 2006 15:04:05 -0700", "Fri, 23 Jan 2015 13:34:56 -0800"),
            ("Monday, 02-Jan-06 15:04:05 MST", "Friday, 23-Jan-15 13:34:56 PST"),
            ("2006-01-02T15:04:05Z07:00", "2015-01-23T13:34:56-08:00"),
            ("2006-01-02T15:04:05.999999999Z07:00", "2015-01-23T13:34:56.09325-08:00"),
            ("15:04:05.000", "13:34:56.093"),
            ("3:04PM", "1:34PM"),
            ("_2 002 __2", "23 023  23"),
            ("Janet Monk 20060102150405", "Janet Monk 20150123133456"),
        ] {
            assert_eq!(time().format(layout), expected, "{layout}");
        }
        let utc = Time { offset: Offset { seconds: 0, name: "UTC".into() }, ..time() };
        assert_eq!(utc.format("15:04Z07:00"), "21:34Z");
    }

    #[test]
    fn texts_that_are_no_times_are_known() {
        for other in ["", "a b c d", "2015-01-23", "2015-13-23 13:34:56 -0800 PST", "2015-01-23 13:34:56 é0800 PST"] {
            assert_eq!(Time::read(other), None, "{other}");
        }
    }
}
