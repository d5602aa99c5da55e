use super::super::{
    OverlayFiles, Place, compose,
    tests::{Base, base, path},
};
use super::*;
use crate::{error::report, exec::Run, testing::require_program};
use std::{fs, os::unix::fs::symlink};

const UNITS: &[(&str, &str)] = &[
    ("/usr/lib/systemd/system/plain.service", "[Unit]\nWantedBy=no.target\n[Install]\nWantedBy=multi-user.target\n"),
    (
        "/usr/lib/systemd/system/all.service",
        "[Service]\nExecStart=/x\n[Install]\n# WantedBy=not.target\nWantedBy=a.target \\\n  b.target\nRequiredBy=c.service\n\
         UpheldBy=d.service\nAlias=all-also.service %N-%p.service\nAlso=plain.service all.socket\n",
    ),
    ("/usr/lib/systemd/system/all.socket", "[Install]\nWantedBy=sockets.target\nAlso=all.service\n"),
    (
        "/usr/lib/systemd/system/tty@.service",
        "[Install]\nWantedBy=getty.target\nDefaultInstance=tty1\nAlias=con@.service\n",
    ),
    ("/usr/lib/systemd/system/db@.service", "[Install]\nWantedBy=multi-user.target\nRequiredBy=backup@%i.service\n"),
    ("/usr/lib/systemd/system/db@own.service", "[Install]\nWantedBy=own-%j.target\n"),
    ("/usr/lib/systemd/system/reset.service", "[Install]\nWantedBy=a.target\nWantedBy=\nWantedBy=b.target\n"),
    ("/usr/lib/systemd/system/dropped.service", "[Service]\nExecStart=/x\n"),
    ("/usr/lib/systemd/system/dropped.service.d/10-install.conf", "[Install]\nWantedBy=a.target\n"),
    ("/usr/lib/systemd/system/dropped.service.d/20-more.conf", "[Install]\nWantedBy=overridden.target\n"),
    ("/etc/systemd/system/dropped.service.d/20-more.conf", "[Install]\nWantedBy=b.target\n"),
    ("/etc/systemd/system/mine.service", "[Install]\nWantedBy=multi-user.target\n"),
    ("/usr/lib/systemd/system/mine.service", "[Install]\nWantedBy=hidden.target\n"),
    ("/usr/lib/systemd/system/static.service", "[Service]\nExecStart=/x\n"),
    ("/usr/lib/systemd/system/strange.service", "[Install]\nWantedBy=%H.target\n"),
];

const LINKS: &[&str] = &[
    "/usr/lib/systemd/system/other.service -> plain.service",
    "/etc/systemd/system/masked.service -> /dev/null",
    "/etc/systemd/system/old.target.wants/plain.service -> /usr/lib/systemd/system/plain.service",
    "/etc/systemd/system/old.target.requires/plain.service -> ../plain.service",
    "/etc/systemd/system/plain-alias.service -> /usr/lib/systemd/system/plain.service",
    "/etc/systemd/system/keep.target.wants/plainer.service -> /usr/lib/systemd/system/plainer.service",
    "/etc/systemd/system/getty.target.wants/tty@tty1.service -> /usr/lib/systemd/system/tty@.service",
    "/etc/systemd/system/getty.target.wants/tty@tty2.service -> /usr/lib/systemd/system/tty@.service",
    "/usr/lib/systemd/system/vendor.target.wants/plain.service -> ../plain.service",
];

fn machine(links: bool) -> Base {
    base(if links { LINKS } else { &[] }, UNITS)
}

fn with<T>(base: &Base, work: impl FnOnce(&mut OverlayView<'_>) -> T) -> T {
    work(&mut OverlayView::new(&base.store, &base.tree, &BTreeMap::new()))
}

/// The same units as files below a folder, for `systemctl --root`.
fn on_disk(folder: &std::path::Path, links: bool) {
    let place = |at: &str| {
        let path = folder.join(&at[1..]);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    UNITS.iter().for_each(|(at, text)| fs::write(place(at), text).unwrap());
    for line in LINKS.iter().filter(|_| links) {
        let (at, target) = line.split_once(" -> ").unwrap();
        symlink(target, place(at)).unwrap();
    }
}

/// All links below `/etc` of such a folder.
fn links_on_disk(folder: &std::path::Path) -> BTreeMap<GuestPath, String> {
    let listing =
        Run::new("find").arg(folder.join("etc")).args(["-type", "l", "-printf", "/etc/%P %l\n"]).text().unwrap();
    listing
        .lines()
        .map(|line| {
            let (at, target) = line.split_once(' ').unwrap();
            (path(at), target.to_owned())
        })
        .collect()
}

fn systemctl(folder: &std::path::Path, verb: &str, unit: &str) {
    Run::new("systemctl").arg(format!("--root={}", folder.display())).args([verb, unit]).capture().unwrap();
}

#[test]
fn enabling_makes_the_links_that_systemctl_makes() {
    let base = machine(false);
    let mut made = Vec::new();
    for unit in [
        "plain.service",
        "all.service",
        "all.socket",
        "tty@.service",
        "tty@tty5.service",
        "db@17-main.service",
        "db@own.service",
        "reset.service",
        "dropped.service",
        "mine.service",
    ] {
        let links = with(&base, |view| enable(view, unit).unwrap());
        let text: Vec<_> = links.iter().map(|(path, target)| format!("{path} -> {target}")).collect();
        made.push(format!("{unit}\n{}\n", text.join("\n")));
        if !require_program("systemctl") {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        on_disk(folder.path(), false);
        systemctl(folder.path(), "enable", unit);
        let mut theirs = links_on_disk(folder.path());
        let mut ours = links;
        // UpheldBy= is newer than systemd 249.
        for links in [&mut ours, &mut theirs] {
            links.retain(|path, _| !path.as_str().contains(".upholds/"));
        }
        assert_eq!(ours, theirs, "{unit}");
    }
    insta::assert_snapshot!(made.join("\n"), @r#"
    plain.service
    /etc/systemd/system/multi-user.target.wants/plain.service -> /usr/lib/systemd/system/plain.service

    all.service
    /etc/systemd/system/a.target.wants/all.service -> /usr/lib/systemd/system/all.service
    /etc/systemd/system/all-all.service -> /usr/lib/systemd/system/all.service
    /etc/systemd/system/all-also.service -> /usr/lib/systemd/system/all.service
    /etc/systemd/system/b.target.wants/all.service -> /usr/lib/systemd/system/all.service
    /etc/systemd/system/c.service.requires/all.service -> /usr/lib/systemd/system/all.service
    /etc/systemd/system/d.service.upholds/all.service -> /usr/lib/systemd/system/all.service
    /etc/systemd/system/multi-user.target.wants/plain.service -> /usr/lib/systemd/system/plain.service
    /etc/systemd/system/sockets.target.wants/all.socket -> /usr/lib/systemd/system/all.socket

    all.socket
    /etc/systemd/system/a.target.wants/all.service -> /usr/lib/systemd/system/all.service
    /etc/systemd/system/all-all.service -> /usr/lib/systemd/system/all.service
    /etc/systemd/system/all-also.service -> /usr/lib/systemd/system/all.service
    /etc/systemd/system/b.target.wants/all.service -> /usr/lib/systemd/system/all.service
    /etc/systemd/system/c.service.requires/all.service -> /usr/lib/systemd/system/all.service
    /etc/systemd/system/d.service.upholds/all.service -> /usr/lib/systemd/system/all.service
    /etc/systemd/system/multi-user.target.wants/plain.service -> /usr/lib/systemd/system/plain.service
    /etc/systemd/system/sockets.target.wants/all.socket -> /usr/lib/systemd/system/all.socket

    tty@.service
    /etc/systemd/system/con@.service -> /usr/lib/systemd/system/tty@.service
    /etc/systemd/system/getty.target.wants/tty@tty1.service -> /usr/lib/systemd/system/tty@.service

    tty@tty5.service
    /etc/systemd/system/con@tty5.service -> /usr/lib/systemd/system/tty@.service
    /etc/systemd/system/getty.target.wants/tty@tty5.service -> /usr/lib/systemd/system/tty@.service

    db@17-main.service
    /etc/systemd/system/backup@17-main.service.requires/db@17-main.service -> /usr/lib/systemd/system/db@.service
    /etc/systemd/system/multi-user.target.wants/db@17-main.service -> /usr/lib/systemd/system/db@.service

    db@own.service
    /etc/systemd/system/own-db.target.wants/db@own.service -> /usr/lib/systemd/system/db@own.service

    reset.service
    /etc/systemd/system/b.target.wants/reset.service -> /usr/lib/systemd/system/reset.service

    dropped.service
    /etc/systemd/system/a.target.wants/dropped.service -> /usr/lib/systemd/system/dropped.service
    /etc/systemd/system/b.target.wants/dropped.service -> /usr/lib/systemd/system/dropped.service

    mine.service
    /etc/systemd/system/multi-user.target.wants/mine.service -> /etc/systemd/system/mine.service
    "#);
}

#[test]
fn disabling_removes_the_links_that_systemctl_removes() {
    let base = machine(true);
    for unit in ["plain.service", "tty@.service", "tty@tty2.service", "mine.service", "all.service"] {
        let gone = with(&base, |view| disable(view, unit).unwrap());
        if !require_program("systemctl") {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        on_disk(folder.path(), true);
        let before = links_on_disk(folder.path());
        systemctl(folder.path(), "disable", unit);
        let after = links_on_disk(folder.path());
        let theirs: Vec<_> = before.into_keys().filter(|path| !after.contains_key(path)).collect();
        assert_eq!(gone, theirs, "{unit}");
    }
    let gone = with(&base, |view| disable(view, "plain.service").unwrap());
    assert_eq!(
        gone.iter().map(GuestPath::as_str).collect::<Vec<_>>(),
        [
            "/etc/systemd/system/old.target.requires/plain.service",
            "/etc/systemd/system/old.target.wants/plain.service",
            "/etc/systemd/system/plain-alias.service",
        ]
    );
}

#[test]
fn what_cannot_be_enabled_is_refused_with_the_reason() {
    let base = machine(true);
    let said: Vec<_> = [
        "plian.service",
        "nothing-like-it.timer",
        "plain",
        "../evil.service",
        "other.service",
        "masked.service",
        "static.service",
        "db@.service",
        "strange.service",
    ]
    .map(|unit| report(&with(&base, |view| enable(view, unit)).unwrap_err()))
    .into();
    insta::assert_snapshot!(said.join("\n\n"), @r#"
    error: the image has no unit `plian.service`

    hint: did you mean `plain.service`?

    error: the image has no unit `nothing-like-it.timer`

    hint: a package or an overlay must bring it

    error: `plain` is not a unit name

    hint: a unit name ends in its type, such as haproxy.service or postgresql@17-main.service

    error: `../evil.service` is not a unit name

    hint: a unit name ends in its type, such as haproxy.service or postgresql@17-main.service

    error: `other.service` is another name of the unit `plain.service`

    hint: write `plain.service`

    error: the unit `masked.service` is masked

    error: the unit `static.service` has no [Install] section that says how it is enabled

    hint: it may be started by another unit already; add WantedBy= to an [Install] section, or do not enable it

    error: the unit `db@.service` is a template without a default instance

    hint: name an instance: db@INSTANCE.service

    error: the unit `strange.service` has `%H.target` in its [Install] section, but `%H` is known only on a running machine
    "#);
}

#[test]
fn an_overlay_enables_its_own_unit_and_silences_others() {
    let mut base = machine(true);
    let unit = Place::File {
        bytes: super::super::Bytes::Here(b"[Install]\nWantedBy=multi-user.target\n".into()),
        owner: super::super::Owner::root(),
        mode: 0o644,
    };
    let overlay = OverlayFiles {
        name: "demo".to_owned(),
        places: BTreeMap::from([(path("/usr/lib/systemd/system/new.service"), unit)]),
        enable: vec!["new.service".to_owned()],
        disable: vec!["plain.service".to_owned()],
        mask: vec!["static.service".to_owned(), "elsewhere.service".to_owned(), "masked.service".to_owned()],
    };
    let composed = compose(&base.store, &mut base.tree, &overlay, 0).unwrap().unwrap();
    let link = |at: &str| base.tree.get(&format!("/etc/systemd/system/{at}")).map(|entry| entry.to_string());
    assert_eq!(
        link("multi-user.target.wants/new.service").unwrap(),
        "l 0777 0:0 0 -> /usr/lib/systemd/system/new.service"
    );
    assert_eq!(link("static.service").unwrap(), "l 0777 0:0 0 -> /dev/null");
    assert_eq!(link("plain-alias.service"), None);
    assert_eq!(link("masked.service").unwrap(), "l 0777 0:0 7 -> /dev/null", "it was before, and is left alone");
    assert_eq!(composed.overridden.len(), 3, "{:?}", composed.overridden);

    // Once more changes nothing.
    let again = OverlayFiles { places: BTreeMap::new(), ..overlay };
    assert!(compose(&base.store, &mut base.tree, &again, 0).unwrap().is_none());
}

#[test]
fn a_unit_file_is_not_masked_away() {
    let base = machine(true);
    let error = with(&base, |view| mask(view, "mine.service")).unwrap_err();
    assert_eq!(error.to_string(), "`/etc/systemd/system/mine.service` is the unit itself, which a mask would replace");
}
