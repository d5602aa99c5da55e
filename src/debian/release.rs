//! `Release` files: what a suite of an archive holds (Debian wiki, "DebianRepository/Format").

use super::deb822;
use crate::{calendar, error::UserError, model::Digest};
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;

/// How far in the future an archive may be dated, in seconds: clocks differ.
const CLOCK_SKEW: i64 = 24 * 3600;

/// What a suite of an archive holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Its role, such as `stable`.
    pub suite: Option<String>,
    /// Its name, such as `trixie`.
    pub codename: Option<String>,
    /// When it was made, in seconds since 1970.
    pub date: i64,
    /// When it must no longer be used, in seconds since 1970.
    pub valid_until: Option<i64>,
    /// The architectures it has packages for.
    pub architectures: Vec<String>,
    /// Whether packages for all architectures have indices of their own, `binary-all`.
    pub all_apart: bool,
    /// Its components, such as `main`.
    pub components: Vec<String>,
    /// Whether files are available under the name of their digest.
    pub by_hash: bool,
    /// SHA-256 and size in bytes of every index, by path below the suite's folder.
    pub files: BTreeMap<String, (Digest, u64)>,
}

impl Release {
    /// Reads the text of a `Release` file, or what an `InRelease` file signs.
    ///
    /// # Errors
    /// When a field is missing or wrong.
    pub fn parse(text: &str) -> Result<Release> {
        let fields: BTreeMap<String, &str> =
            deb822::single(text)?.into_iter().map(|field| (field.name.to_ascii_lowercase(), field.value)).collect();
        let get = |name: &str| fields.get(&name.to_ascii_lowercase()).copied();
        let words = |name: &str| -> Vec<String> {
            get(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
        };
        let time = |name: &str| -> Result<Option<i64>> {
            get(name).map(|text| parse_time(text).with_context(|| format!("the field `{name}`"))).transpose()
        };
        let sums = get("SHA256").context(UserError::runtime("there are no SHA-256 sums in it"))?;
        Ok(Release {
            suite: get("Suite").map(str::to_owned),
            codename: get("Codename").map(str::to_owned),
            date: time("Date")?.context(UserError::runtime("the field `Date` is missing"))?,
            valid_until: time("Valid-Until")?,
            architectures: words("Architectures"),
            all_apart: words("Architectures").iter().any(|arch| arch == "all")
                && !words("No-Support-for-Architecture-all").iter().any(|index| index == "Packages"),
            // The security archive names them `updates/main`, but in paths they are plain.
            components: words("Components").iter().map(|name| plain_component(name)).collect(),
            by_hash: get("Acquire-By-Hash").is_some_and(|text| text.eq_ignore_ascii_case("yes")),
            files: sums.lines().filter(|line| !line.trim().is_empty()).map(parse_sum).collect::<Result<_>>()?,
        })
    }

    /// Checks that this is the requested suite, and that at the time `now` (in seconds since 1970) it is neither
    /// outdated nor from the future. `may_be_old` is for archives of past days, which are not updated.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self, asked: &str, now: i64, may_be_old: bool) -> Result<()> {
        let names: Vec<&str> = [&self.suite, &self.codename].into_iter().flatten().map(String::as_str).collect();
        // `trixie/updates`, as the security archive's suites were once named, has the codename `trixie`.
        let folder = asked.trim_matches('/');
        if !names.contains(&folder)
            && !names.iter().any(|name| folder.strip_prefix(name).is_some_and(|rest| rest.starts_with('/')))
        {
            return Err(UserError::runtime(format!(
                "`{asked}` was requested, but it is of the suite {}",
                quoted(&names)
            ))
            .hint("check the suite's name, and that the mirror has it")
            .into());
        }
        if self.date > now + CLOCK_SKEW {
            return Err(UserError::runtime(format!(
                "it is of {}, but here it is {}",
                show_time(self.date),
                show_time(now)
            ))
            .hint("set this machine's clock")
            .into());
        }
        if let Some(end) = self.valid_until.filter(|&end| end < now && !may_be_old) {
            return Err(UserError::runtime(format!("it is outdated: it was valid until {}", show_time(end)))
                .hint("use another mirror, because this one is no longer updated; or set this machine's clock if it is wrong")
                .into());
        }
        Ok(())
    }

    /// Checks that the archive did not go back in time since it was seen with the date `last`.
    ///
    /// # Errors
    /// When it did.
    pub fn check_order(&self, last: i64) -> Result<()> {
        if self.date < last {
            return Err(UserError::runtime(format!(
                "it goes back in time: it is of {}, but one of {} has been seen",
                show_time(self.date),
                show_time(last)
            ))
            .hint("the mirror is behind, or updates are being withheld; use another mirror, or try again later")
            .into());
        }
        Ok(())
    }
}

fn plain_component(name: &str) -> String {
    name.rsplit('/').next().unwrap_or(name).to_owned()
}

fn quoted(names: &[&str]) -> String {
    if names.is_empty() {
        return "without a name".into();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", codename ")
}

fn parse_sum(line: &str) -> Result<(String, (Digest, u64))> {
    let read = || {
        let mut words = line.split_whitespace();
        let digest = words.next()?.parse().ok()?;
        let size = words.next()?.parse().ok()?;
        let path = words.next().filter(|path| !path.starts_with('/') && !path.split('/').any(|part| part == ".."))?;
        words.next().is_none().then(|| (path.to_owned(), (digest, size)))
    };
    read().ok_or_else(|| UserError::runtime(format!("`{}` is not a SHA-256 sum", line.trim())).into())
}

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Reads a time such as `Sat, 12 Sep 2026 07:55:41 UTC` (RFC 1123); the result is in seconds since 1970.
///
/// # Errors
/// When it is not one, or not in UTC.
pub fn parse_time(text: &str) -> Result<i64> {
    let read = || {
        let mut words = text.split_once(',')?.1.split_whitespace();
        let day: u8 = words.next()?.parse().ok().filter(|day| (1..=31).contains(day))?;
        let name = words.next()?;
        let month = MONTHS.iter().position(|month| month.eq_ignore_ascii_case(name))? as u8 + 1;
        let year: i64 = words.next()?.parse().ok().filter(|year| (1970..10_000).contains(year))?;
        let mut clock = words.next()?.split(':').map(|part| part.parse::<i64>().ok().filter(|n| (0..=60).contains(n)));
        let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
        matches!(words.next()?, "UTC" | "GMT" | "Z" | "+0000")
            .then(|| calendar::days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
    };
    read().ok_or_else(|| {
        UserError::runtime(format!("`{text}` is not a time, such as `Sat, 12 Sep 2026 07:55:41 UTC`")).into()
    })
}

/// A time as people read it, such as `2026-09-12 07:55:41 UTC`.
pub fn show_time(seconds: i64) -> String {
    calendar::utc(seconds).replace('T', " ").replace('Z', " UTC")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;

    const TEXT: &str = "Suite: stable\nCodename: trixie\nDate: Sat, 12 Sep 2026 07:55:41 UTC\n\
        Valid-Until: Sat, 19 Sep 2026 07:55:41 UTC\nAcquire-By-Hash: yes\nArchitectures: all amd64\n\
        Components: updates/main contrib\nMD5Sum:\n 00 1 x\nSHA256:\n \
        e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855        0 main/binary-amd64/Packages.xz\n";
    const DAY: i64 = 86_400;

    #[test]
    fn a_release_reads() {
        let release = Release::parse(TEXT).unwrap();
        assert_eq!(release.date, 1_789_199_741);
        assert_eq!(release.components, ["main", "contrib"]);
        assert!(release.by_hash);
        assert_eq!(release.files["main/binary-amd64/Packages.xz"], (Digest::of(""), 0));
        for wrong in [TEXT.replace("Date:", "Dote:"), TEXT.replace("SHA256:", "SHA1:"), TEXT.replace("main/b", "../b")]
        {
            assert!(Release::parse(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_release_of_another_suite_is_refused() {
        let release = Release::parse(TEXT).unwrap();
        for name in ["stable", "trixie", "trixie/updates"] {
            release.check(name, release.date, false).unwrap();
        }
        assert_eq!(
            report(&release.check("bookworm", release.date, false).unwrap_err()),
            "error: `bookworm` was requested, but it is of the suite `stable`, codename `trixie`\n\n\
             hint: check the suite's name, and that the mirror has it"
        );
        assert!(release.check("trixie-updates", release.date, false).is_err());
    }

    #[test]
    fn an_outdated_release_is_refused_unless_it_may_be_old() {
        let release = Release::parse(TEXT).unwrap();
        release.check("trixie", release.date + 6 * DAY, false).unwrap();
        release.check("trixie", release.date + 8 * DAY, true).unwrap();
        assert_eq!(
            report(&release.check("trixie", release.date + 8 * DAY, false).unwrap_err()),
            "error: it is outdated: it was valid until 2026-09-19 07:55:41 UTC\n\n\
             hint: use another mirror, because this one is no longer updated; or set this machine's clock if it is wrong"
        );
    }

    #[test]
    fn a_release_from_the_future_is_refused() {
        let release = Release::parse(TEXT).unwrap();
        release.check("trixie", release.date - DAY / 2, false).unwrap();
        assert_eq!(
            report(&release.check("trixie", release.date - 2 * DAY, true).unwrap_err()),
            "error: it is of 2026-09-12 07:55:41 UTC, but here it is 2026-09-10 07:55:41 UTC\n\n\
             hint: set this machine's clock"
        );
    }

    #[test]
    fn a_release_that_goes_back_in_time_is_refused() {
        let release = Release::parse(TEXT).unwrap();
        release.check_order(release.date).unwrap();
        assert_eq!(
            report(&release.check_order(release.date + DAY).unwrap_err()),
            "error: it goes back in time: it is of 2026-09-12 07:55:41 UTC, but one of 2026-09-13 07:55:41 UTC has been \
             seen\n\nhint: the mirror is behind, or updates are being withheld; use another mirror, or try again later"
        );
    }

    proptest::proptest! {
        #[test]
        fn times_read_back_what_they_show(seconds in 0i64..250_000_000_000) {
            let shown = show_time(seconds);
            let (date, clock) = shown.trim_end_matches(" UTC").split_once(' ').unwrap();
            let parts: Vec<_> = date.split('-').collect();
            let month = MONTHS[parts[1].parse::<usize>().unwrap() - 1];
            let text = format!("Xxx, {} {month} {} {clock} UTC", parts[2], parts[0]);
            proptest::prop_assert_eq!(parse_time(&text).unwrap(), seconds);
        }
    }
}
