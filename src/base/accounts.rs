//! Users and groups with fixed numbers, put into the root before the packages that would otherwise take the next free
//! ones.

use super::root::Root;
use crate::{
    accounts::{entries, number_of},
    error::UserError,
    model::GuestPath,
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A group (group(5)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub name: String,
    /// Its number.
    pub gid: u32,
}

/// A user that cannot log in with a password (passwd(5)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// The name of its primary group.
    pub group: String,
    /// The names of its other groups.
    pub groups: Vec<String>,
    /// Its home directory; who needs it makes it.
    pub home: GuestPath,
    pub shell: GuestPath,
    /// The comment field.
    pub comment: String,
}

/// The four files, by what they hold.
#[derive(Debug, Default, PartialEq, Eq)]
struct Files {
    passwd: String,
    shadow: String,
    group: String,
    gshadow: String,
}

const FILES: [&str; 4] = ["/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow"];

impl Files {
    fn all(&mut self) -> [&mut String; 4] {
        [&mut self.passwd, &mut self.shadow, &mut self.group, &mut self.gshadow]
    }
}

/// Adds `groups` and `users` to the root; `epoch` is the day of their passwords' last change.
///
/// # Errors
/// When a name or number is taken, or a group is not there.
pub fn add(root: &Root, users: &[User], groups: &[Group], epoch: i64) -> Result<()> {
    if users.is_empty() && groups.is_empty() {
        return Ok(());
    }
    let mut files = Files::default();
    for (text, path) in files.all().into_iter().zip(FILES) {
        *text = root.read(&path.parse()?)?.unwrap_or_default();
    }
    extend(&mut files, users, groups, epoch)?;
    for (text, path) in files.all().into_iter().zip(FILES) {
        let path: GuestPath = path.parse()?;
        if let Some(stat) = root.stat(&path)? {
            let attributes = super::root::Attributes {
                mode: stat.st_mode & 0o7777,
                uid: stat.st_uid,
                gid: stat.st_gid,
                mtime: None,
            };
            root.write(&path, attributes, text.as_bytes())?;
        }
    }
    Ok(())
}

fn extend(files: &mut Files, users: &[User], groups: &[Group], epoch: i64) -> Result<()> {
    for group in groups {
        check_name(&group.name)?;
        free(&files.group, "group", &group.name, group.gid)?;
        files.group.push_str(&format!("{}:x:{}:\n", group.name, group.gid));
        files.gshadow.push_str(&format!("{}:!::\n", group.name));
    }
    let mut members: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for user in users {
        check_name(&user.name)?;
        free(&files.passwd, "user", &user.name, user.uid)?;
        let gid = number_of(&files.group, &user.group).with_context(|| {
            UserError::usage(format!("the user `{}` is in the group `{}`, which does not exist", user.name, user.group))
        })?;
        let User { name, uid, home, shell, comment, .. } = user;
        if comment.contains([':', '\n']) || shell.as_str().contains(':') || home.as_str().contains(':') {
            return Err(UserError::usage(format!("the user `{name}` has a colon in a field")).into());
        }
        files.passwd.push_str(&format!("{name}:x:{uid}:{gid}:{comment}:{home}:{shell}\n"));
        files.shadow.push_str(&format!("{name}:!:{}::::::\n", epoch / 86400));
        for group in &user.groups {
            number_of(&files.group, group).with_context(|| {
                UserError::usage(format!("the user `{name}` is in the group `{group}`, which does not exist"))
            })?;
            members.entry(group).or_default().push(name);
        }
    }
    for (group, names) in members {
        files.group = with_members(&files.group, group, &names);
        files.gshadow = with_members(&files.gshadow, group, &names);
    }
    Ok(())
}

fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
    if name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') && name.chars().all(plain) && name.len() <= 32 {
        return Ok(());
    }
    Err(UserError::usage(format!("`{name}` is not a name for a user or group"))
        .hint("use lower-case letters, digits, `_` and `-`, at most 32")
        .into())
}

fn free(text: &str, what: &str, name: &str, id: u32) -> Result<()> {
    for (other, other_id) in entries(text) {
        if other == name || other_id == Some(id) {
            let taken = format!("the {what} `{name}` cannot have the number {id}: `{other}` is there already");
            let number = other_id.map_or(String::new(), |id: u32| format!(" and has the number {id}"));
            return Err(UserError::usage(taken + &number).into());
        }
    }
    Ok(())
}

/// `text` with `names` added to the last field of the line of `group`.
fn with_members(text: &str, group: &str, names: &[&str]) -> String {
    text.lines()
        .map(|line| {
            let comma = if line.ends_with(':') { "" } else { "," };
            match line.split(':').next() == Some(group) {
                true => format!("{line}{comma}{}\n", names.join(",")),
                false => format!("{line}\n"),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Files {
        Files {
            passwd: "root:x:0:0:root:/root:/bin/bash\n".into(),
            shadow: "root:*:20000:0:99999:7:::\n".into(),
            group: "root:x:0:\nssl-cert:x:104:ann\n".into(),
            gshadow: "root:*::\nssl-cert:!::ann\n".into(),
        }
    }

    fn postgres() -> User {
        User {
            name: "postgres".into(),
            uid: 999,
            group: "postgres".into(),
            groups: vec!["ssl-cert".into()],
            home: "/var/lib/postgresql".parse().unwrap(),
            shell: "/bin/bash".parse().unwrap(),
            comment: "PostgreSQL administrator".into(),
        }
    }

    #[test]
    fn users_and_groups_are_added_with_their_numbers() {
        let mut files = files();
        let groups = [Group { name: "postgres".into(), gid: 999 }];
        extend(&mut files, &[postgres()], &groups, 86400 * 20_000 + 5).unwrap();
        let added = "postgres:x:999:999:PostgreSQL administrator:/var/lib/postgresql:/bin/bash\n";
        assert!(files.passwd.ends_with(added), "{}", files.passwd);
        assert!(files.shadow.ends_with("postgres:!:20000::::::\n"));
        assert_eq!(files.group, "root:x:0:\nssl-cert:x:104:ann,postgres\npostgres:x:999:\n");
        assert_eq!(files.gshadow, "root:*::\nssl-cert:!::ann,postgres\npostgres:!::\n");
    }

    #[test]
    fn what_is_taken_or_missing_is_named() {
        let error = |users: &[User], groups: &[Group]| extend(&mut files(), users, groups, 0).unwrap_err().to_string();
        assert_eq!(
            error(&[], &[Group { name: "ssl-cert".into(), gid: 7 }]),
            "the group `ssl-cert` cannot have the number 7: `ssl-cert` is there already and has the number 104"
        );
        assert_eq!(error(&[postgres()], &[]), "the user `postgres` is in the group `postgres`, which does not exist");
        assert_eq!(error(&[], &[Group { name: "Bad:x".into(), gid: 7 }]), "`Bad:x` is not a name for a user or group");
    }
}
