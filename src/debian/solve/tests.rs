use super::*;
use crate::{
    error::{ErrorKind, kind_of, report},
    model::Arch,
};

/// An index of packages written `name version: Field: value; Field: value`.
fn index(origin: usize, lines: &str) -> Index {
    let mut text = String::new();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (head, fields) = line.split_once(": ").unwrap_or((line.trim_end_matches(':'), ""));
        let (name, version) = head.split_once(' ').unwrap();
        text += &format!("Package: {name}\nVersion: {version}\nArchitecture: amd64\nPriority: optional\n");
        for field in fields.split("; ").filter(|field| !field.is_empty()) {
            text += &format!("{field}\n");
        }
        text += &format!("Filename: pool/{name}.deb\nSize: 1\nSHA256: {}\n\n", "0".repeat(64));
    }
    Index::parse(text, Arch::Amd64, origin).unwrap()
}

fn request(packages: &str) -> Request {
    Request { packages: packages.split(", ").map(str::to_owned).collect(), ..Request::default() }
}

fn chosen(lines: &str, request: &Request) -> Vec<String> {
    let choices = solve(&[index(0, lines)], request).unwrap();
    choices
        .iter()
        .map(|choice| format!("{} {}: {}", choice.package.name, choice.package.version, choice.reason))
        .collect()
}

fn refused(lines: &str, request: &Request) -> String {
    let error = solve(&[index(0, lines)], request).unwrap_err();
    assert_eq!(kind_of(&error), ErrorKind::Usage);
    report(&error)
}

#[test]
fn each_package_says_why_it_is_there() {
    let lines = "
        base 1: Essential: yes; Depends: libc
        libc 1
        app 1: Pre-Depends: libc; Depends: helper; Recommends: extra, nowhere; Suggests: toy
        helper 1
        extra 1: Depends: more
        more 1
        toy 1";
    assert_eq!(
        chosen(lines, &request("app")),
        ["app 1: requested", "base 1: essential", "helper 1: app depends on it", "libc 1: app depends on it"]
    );
    let with = Request { recommends: true, ..request("app") };
    assert_eq!(chosen(lines, &with)[2..4], ["extra 1: app recommends it", "helper 1: app depends on it"]);
    let without = Request { exclude: vec!["extra".into()], ..with };
    assert!(!chosen(lines, &without).concat().contains("extra"));
    let none = Request { without_essential: true, ..request("libc") };
    assert_eq!(chosen(lines, &none), ["libc 1: requested"]);
}

#[test]
fn the_first_alternative_is_taken_unless_another_is_there_already() {
    let lines = "
        a 1: Depends: x | y
        b 1: Depends: y
        x 1
        y 1";
    assert_eq!(chosen(lines, &request("a")), ["a 1: requested", "x 1: a depends on it"]);
    assert_eq!(chosen(lines, &request("b, a")), ["a 1: requested", "b 1: requested", "y 1: b depends on it"]);
    assert_eq!(chosen(lines, &request("a, y")), ["a 1: requested", "y 1: requested"]);
}

#[test]
fn providers_are_ranked_as_apt_ranks_them() {
    let lines = "
        a 1: Depends: mail
        one 1: Provides: mail
        two 1: Provides: mail; Priority: important
        three 1: Provides: mail";
    // `index` writes the priority first, so the second one counts for nothing: of equals, the last mentioned wins.
    let names = |lines: &str| chosen(lines, &request("a"))[1].split(' ').next().unwrap().to_owned();
    assert_eq!(names(lines), "two");
    assert_eq!(names(&lines.replace("; Priority: important", "")), "three");
    assert_eq!(
        names(
            &lines
                .replace("; Priority: important", "")
                .replace("a 1: Depends: mail", "a 1: Suggests: three; Depends: mail")
        ),
        "two"
    );
}

#[test]
fn versions_and_provided_versions_are_heeded() {
    let lines = "
        a 1: Depends: lib (>= 2), python:any
        lib 1
        new 1: Provides: lib (= 3)
        old 1: Provides: lib
        python 3: Multi-Arch: allowed";
    assert_eq!(chosen(lines, &request("a"))[1], "new 1: a depends on it");
    assert!(refused(&lines.replace("allowed", "foreign"), &request("a")).contains("depends on python:any"));
}

#[test]
fn of_several_indices_the_highest_version_is_chosen() {
    let indices = [
        index(0, "a 1: Depends: b\nb 1"),
        index(1, "b 2~rc1: Depends: c"),
        index(2, "b 2~rc1: Depends: c\nc 1\nb 1.5"),
    ];
    let choices = solve(&indices, &request("a")).unwrap();
    let told: Vec<_> = choices
        .iter()
        .map(|choice| (choice.package.name.as_str(), choice.package.version.as_str(), choice.origin))
        .collect();
    assert_eq!(told, [("a", "1", 0), ("b", "2~rc1", 1), ("c", "1", 2)]);
    let choices = solve(&indices, &request("a, b (<< 2~)")).unwrap();
    assert_eq!(choices[1].package.version, "1.5");
}

#[test]
fn where_apts_walk_fails_another_way_is_found() {
    // The walk takes x first, then meets y, which x does not bear.
    let lines = "
        a 1: Depends: x | z
        b 1: Depends: y
        x 1: Recommends: toy
        y 1: Conflicts: x
        z 1: Recommends: toy2
        toy 1
        toy2 1";
    let request = Request { recommends: true, ..request("a, b") };
    assert_eq!(
        chosen(lines, &request),
        ["a 1: requested", "b 1: requested", "toy2 1: z recommends it", "y 1: b depends on it", "z 1: a depends on it"]
    );
}

#[test]
fn an_older_version_is_taken_where_the_newest_does_not_fit() {
    let indices = [index(0, "a 1: Depends: b (= 1)\nb 1"), index(1, "b 2")];
    let choices = solve(&indices, &request("a")).unwrap();
    assert_eq!(choices[1].package.version, "1");
}

#[test]
fn a_package_may_refuse_what_it_provides_itself() {
    let lines = "
        a 1: Provides: mta; Conflicts: mta
        b 1: Provides: mta; Conflicts: mta";
    assert_eq!(chosen(lines, &request("a")), ["a 1: requested"]);
    insta::assert_snapshot!(refused(lines, &request("a, b")));
}

#[test]
fn the_chain_of_reasons_is_told() {
    let lines = "
        app 2.0: Depends: web (>= 1), db | db-compat
        web 1.1: Depends: libssl (>= 3)
        db 15: Depends: libssl (<< 3)
        db-compat 1: Depends: db (>= 15)
        libssl 3.0";
    insta::assert_snapshot!(refused(lines, &request("app")));
}

#[test]
fn a_version_that_nobody_has_is_told() {
    insta::assert_snapshot!(refused("postgresql-17 17.2-1", &request("postgresql-17 (>= 18)")));
    insta::assert_snapshot!(refused("a 1: Depends: gone (>= 3) | lost", &request("a")));
}

#[test]
fn an_unknown_package_gives_near_names() {
    let lines = "haproxy 1\nhaproxy-doc 1\nmawk 1: Provides: awk\ngawk 1: Provides: awk\nsendmail 1: Provides: mta";
    insta::assert_snapshot!(refused(lines, &request("happroxy, mawk")));
    insta::assert_snapshot!(refused(lines, &request("awk")));
    insta::assert_snapshot!(refused(lines, &request("zzzzzz, not a name")));
    assert_eq!(chosen(lines, &request("mta")), ["sendmail 1: requested"]);
    let excluded = Request { exclude: vec!["haproxy".into()], ..request("haproxy") };
    insta::assert_snapshot!(refused(lines, &excluded));
}
