//! Users and groups as `/etc/passwd` and `/etc/group` list them (passwd(5), group(5)).
//!
//! Both files have the name in the first field and the number in the third, separated by colons.

/// The names in `text` with their numbers; `None` where a line has no valid number.
pub fn entries(text: &str) -> impl Iterator<Item = (&str, Option<u32>)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        Some((name, fields.nth(1).and_then(|number| number.parse().ok())))
    })
}

/// The number of `name`.
pub fn number_of(text: &str, name: &str) -> Option<u32> {
    entries(text).find_map(|(other, number)| number.filter(|_| other == name))
}

/// The first name with this number.
pub fn name_of(text: &str, number: u32) -> Option<&str> {
    entries(text).find_map(|(name, other)| (other == Some(number)).then_some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\n+::::::\npostgres:x:940:940:PostgreSQL:/:/bin/sh\n";

    #[test]
    fn names_and_numbers_are_found() {
        assert_eq!(number_of(PASSWD, "postgres"), Some(940));
        assert_eq!(number_of(PASSWD, "broken"), None);
        assert_eq!(number_of("postgres:x:942:\n", "postgres"), Some(942), "a group has fewer fields");
        assert_eq!(name_of(PASSWD, 0), Some("root"));
        assert_eq!(name_of(PASSWD, 1), None);
        assert_eq!(entries(PASSWD).count(), 4);
    }
}
