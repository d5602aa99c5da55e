//! Lengths of time as people write them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr, time::Duration};

/// A length of time, written as a whole number and its unit: `250ms`, `30s`, `5m`, `12h`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub Duration);

/// Why a string is not a length of time.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a length of time (write a whole number and ms, s, m, h or d, such as 30s)")]
pub struct TimeError(String);

const UNITS: [(&str, u64); 5] = [("ms", 1), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];

impl FromStr for Time {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Time, TimeError> {
        let milliseconds = UNITS
            .iter()
            .find_map(|(unit, factor)| text.strip_suffix(unit)?.trim_end().parse::<u64>().ok()?.checked_mul(*factor));
        milliseconds.map(|count| Time(Duration::from_millis(count))).ok_or_else(|| TimeError(text.to_owned()))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_millis();
        for (unit, factor) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)] {
            if milliseconds > 0 && milliseconds.is_multiple_of(factor) {
                return write!(f, "{}{unit}", milliseconds / factor);
            }
        }
        write!(f, "{milliseconds}ms")
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(feature = "builder")]
impl schemars::JsonSchema for Time {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A length of time: a whole number and ms, s, m, h or d.",
            "pattern": "^[0-9]+ *(ms|s|m|h|d)$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_back_what_they_print() {
        for (text, milliseconds) in [("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("12h", 43_200_000), ("0ms", 0)]
        {
            let time: Time = text.parse().unwrap();
            assert_eq!(time.0.as_millis(), milliseconds);
            assert_eq!(time.to_string(), text);
        }
        assert_eq!("90s".parse::<Time>().unwrap().to_string(), "90s");
        assert_eq!("60s".parse::<Time>().unwrap().to_string(), "1m");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["", "5", "s", "-1s", "1.5s", "99999999999999999999s", "999999999999999999d"] {
            assert!(text.parse::<Time>().is_err(), "{text}");
        }
    }
}
