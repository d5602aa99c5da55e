use super::{releases::releases_at, *};
use crate::{
    debian::{
        Source,
        deb::{ExpandedDeb, tests as debs},
        index::Index,
        release::show_time,
        signature::tests::{NOW, TestKey},
    },
    error::report,
    http::{
        Client,
        tests::{Server, hasty, ok},
    },
    model::Arch,
    progress::{Progress, Style},
};
use std::{
    collections::HashMap,
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;

const DAY: i64 = 86_400;

/// An archive with one suite and one package, and what is needed to fetch from it.
struct World {
    files: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    server: Server,
    key: TestKey,
    _folder: TempDir,
    store: Store,
    http: Client,
    progress: Progress,
    deb: Vec<u8>,
}

impl World {
    fn new() -> World {
        let files: Arc<Mutex<HashMap<String, Vec<u8>>>> = Arc::default();
        let served = files.clone();
        let server = Server::new(move |_, request, stream| {
            let path = request.split(' ').nth(1).unwrap().trim_start_matches("/debian/").to_owned();
            let answer = match served.lock().unwrap().get(&path) {
                Some(body) => ok(body),
                None => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
            };
            let _ = stream.write_all(&answer);
        });
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let world = World {
            files,
            server,
            key: TestKey::new(1, NOW - 100 * DAY),
            _folder: folder,
            store,
            http: Client::new(hasty()),
            progress: Progress::new(Style::Silent),
            deb: debs::deb_of(&[debs::file("./usr", b"content")]),
        };
        world.put("pool/demo.deb", world.deb.clone());
        world.publish(NOW - DAY, Some(NOW + DAY));
        world
    }

    fn put(&self, path: &str, body: impl Into<Vec<u8>>) {
        self.files.lock().unwrap().insert(path.to_lowercase(), body.into());
    }

    /// Signs a release of the given date.
    fn publish(&self, date: i64, valid_until: Option<i64>) {
        let packages = format!(
            "Package: demo\nVersion: 1.0\nArchitecture: all\nFilename: pool/demo.deb\nSize: {}\nSHA256: {}\n",
            self.deb.len(),
            Digest::of(&self.deb).hex()
        );
        let mut packed = Vec::new();
        let mut encoder = liblzma::write::XzEncoder::new(&mut packed, 1);
        encoder.write_all(packages.as_bytes()).unwrap();
        encoder.finish().unwrap();
        let time = |seconds: i64| {
            let shown = show_time(seconds);
            let (day, month, year) = (&shown[8..10], &shown[5..7], &shown[..4]);
            let month = ["Aug", "Sep", "Oct"][month.parse::<usize>().unwrap() - 8];
            format!("Xxx, {day} {month} {year} {}", &shown[11..])
        };
        let valid = valid_until.map_or(String::new(), |end| format!("Valid-Until: {}\n", time(end)));
        let release = format!(
            "Suite: stable\nCodename: trixie\nDate: {}\n{valid}Acquire-By-Hash: yes\nArchitectures: amd64 arm64\n\
             Components: main\nSHA256:\n {digest} {size} main/binary-amd64/Packages.xz\n {digest} {size} \
             main/binary-arm64/Packages.xz\n",
            time(date),
            digest = Digest::of(&packed).hex(),
            size = packed.len()
        );
        for arch in ["amd64", "arm64"] {
            let path = format!("dists/trixie/main/binary-{arch}/by-hash/SHA256/{}", Digest::of(&packed).hex());
            self.put(&path, packed.clone());
        }
        self.put("dists/trixie/InRelease", self.key.sign(&release, date));
    }

    fn source(&self) -> Source {
        Source {
            mirrors: vec![self.server.uri.clone()],
            suite: "trixie".into(),
            components: vec!["main".into()],
            keys: vec![self.key.public(None)],
            arch: Arch::HOST,
            check_valid_until: true,
        }
    }

    fn indices_of(&self, source: Source, policy: Policy, now: i64) -> Result<(Digest, Vec<Index>)> {
        let releases = releases_at(now, &self.store, &self.http, &[source], &policy, &self.progress)?;
        Ok((releases.digest(), releases.indices(&self.store, &self.http, &self.progress)?))
    }

    fn indices(&self, policy: Policy) -> Result<(Digest, Vec<Index>)> {
        self.indices_of(self.source(), policy, NOW)
    }

    fn wanted(&self) -> DownloadRequest {
        DownloadRequest {
            name: "demo".into(),
            version: "1.0".into(),
            architecture: "all".into(),
            sha256: Digest::of(&self.deb),
            size: self.deb.len() as u64,
            path: "pool/demo.deb".into(),
            mirrors: vec![self.server.uri.clone()],
        }
    }

    fn packages(&self, wanted: &[DownloadRequest], offline: bool) -> Result<Vec<ExpandedDeb>> {
        packages(&self.store, &self.http, wanted, offline, 2, &self.progress)
    }

    /// A whole message, without the port.
    fn told<T>(&self, result: Result<T>) -> String {
        report(&result.err().unwrap()).replace(&self.server.uri, "http://mirror.example/debian")
    }

    fn requests(&self) -> usize {
        self.server.requests().len()
    }
}

const FRESH: Policy = Policy { offline: false, refresh: false, fresh_for: Duration::from_secs(3600) };
const STALE: Policy = Policy { offline: false, refresh: true, ..FRESH };
const OFFLINE: Policy = Policy { offline: true, ..FRESH };

#[test]
fn indices_are_fetched_once_while_they_are_fresh() {
    let world = World::new();
    let (digest, indices) = world.indices(FRESH).unwrap();
    assert_eq!(indices[0].entries().next().unwrap().package().unwrap().filename, "pool/demo.deb");
    assert_eq!(world.requests(), 2);
    assert_eq!(world.indices(FRESH).unwrap().0, digest);
    assert_eq!(world.indices(OFFLINE).unwrap().0, digest);
    assert_eq!(world.requests(), 2, "neither used the network");
    assert_eq!(world.indices(STALE).unwrap().0, digest);
    assert_eq!(world.requests(), 3, "the index itself is the same and was not fetched");
    assert_eq!(world.indices_of(world.source(), FRESH, NOW + 3601).unwrap().0, digest);
    assert_eq!(world.requests(), 4, "an hour later it is fresh no more");
    world.publish(NOW - DAY / 2, None);
    assert_ne!(world.indices(STALE).unwrap().0, digest);
}

#[test]
fn without_network_an_unknown_archive_is_an_error() {
    let world = World::new();
    insta::assert_snapshot!(world.told(world.indices(OFFLINE)));
    assert_eq!(world.requests(), 0);
}

#[test]
fn a_release_that_was_changed_is_refused_unless_another_mirror_has_a_good_one() {
    let world = World::new();
    let good = world.files.lock().unwrap()["dists/trixie/inrelease"].clone();
    let text = String::from_utf8(good.clone()).unwrap();
    world.put("dists/trixie/InRelease", text.replace("Codename: trixie", "Codename: sid"));
    insta::assert_snapshot!(world.told(world.indices(FRESH)));

    let other = Server::new(move |_, _, stream| stream.write_all(&ok(&good)).unwrap());
    let mut source = world.source();
    source.mirrors.push(other.uri.clone());
    world.indices_of(source, FRESH, NOW).unwrap();
    assert_eq!(other.requests().len(), 1);
}

#[test]
fn a_release_by_an_unknown_key_is_refused() {
    let world = World::new();
    let source = Source { keys: vec![TestKey::new(2, NOW - DAY).public(None)], ..world.source() };
    insta::assert_snapshot!(world.told(world.indices_of(source, FRESH, NOW)));
    let source = Source { keys: vec![b"no key".to_vec()], ..world.source() };
    assert!(world.told(world.indices_of(source, FRESH, NOW)).contains("reading the keys of the archive"));
}

#[test]
fn an_outdated_release_is_refused() {
    let world = World::new();
    world.publish(NOW - 9 * DAY, Some(NOW - 2 * DAY));
    insta::assert_snapshot!(world.told(world.indices(FRESH)));
    let source = Source { check_valid_until: false, ..world.source() };
    world.indices_of(source, FRESH, NOW).unwrap();
}

#[test]
fn an_archive_that_goes_back_in_time_is_refused() {
    let world = World::new();
    world.indices(FRESH).unwrap();
    world.publish(NOW - 2 * DAY, None);
    insta::assert_snapshot!(world.told(world.indices(STALE)));
}

#[test]
fn what_an_archive_does_not_have_is_told() {
    let world = World::new();
    let source = Source { components: vec!["contrib".into()], ..world.source() };
    insta::assert_snapshot!(world.told(world.indices_of(source, FRESH, NOW)));
    let source = Source { suite: "forky".into(), ..world.source() };
    insta::assert_snapshot!(world.told(world.indices_of(source, FRESH, NOW)));
}

#[test]
fn an_index_that_is_not_what_was_signed_is_refused() {
    let world = World::new();
    let path = world.files.lock().unwrap().keys().find(|path| path.contains("by-hash")).unwrap().clone();
    for other in ["amd64", "arm64"] {
        let path = path.replace("amd64", other).replace("arm64", other);
        let mut body = world.files.lock().unwrap()[&path].clone();
        body[20] ^= 1;
        world.put(&path, body);
    }
    let digest = path.rsplit('/').next().unwrap().to_owned();
    let told = world.told(world.indices(FRESH)).replace(&digest, "DIGEST").replace(Arch::HOST.debian(), "ARCH");
    let size = world.files.lock().unwrap()[&path].len();
    insta::assert_snapshot!(told.replace(&format!("sent {size} bytes"), "sent N bytes"));
}

#[test]
fn packages_are_fetched_and_expanded_once() {
    let world = World::new();
    let expanded = world.packages(&[world.wanted()], false).unwrap();
    assert_eq!(expanded[0].original, Digest::of(&world.deb));
    assert_eq!(expanded[0].control["Version"], "1.0");
    assert_eq!(world.store.blob_size(&expanded[0].expanded), Some(expanded[0].size));
    assert_eq!(world.packages(&[world.wanted()], true).unwrap(), expanded);
    assert_eq!(world.requests(), 1);
}

#[test]
fn many_packages_come_in_the_order_in_which_they_are_wanted() {
    let mut world = World::new();
    let mut wanted = Vec::new();
    for number in 0..30 {
        let content = vec![number; 1000 * (1 + usize::from(number) * 7 % 30)];
        world.deb = debs::deb_of(&[debs::file("./usr", &content)]);
        let path = format!("pool/demo{number}.deb");
        world.put(&path, world.deb.clone());
        wanted.push(DownloadRequest { path, ..world.wanted() });
    }
    let expanded = world.packages(&wanted, false).unwrap();
    assert!(expanded.iter().map(|deb| deb.original).eq(wanted.iter().map(|wanted| wanted.sha256)));
}

#[test]
fn without_network_missing_packages_are_named() {
    let world = World::new();
    let wanted: Vec<DownloadRequest> = (0..7)
        .map(|number| DownloadRequest { name: format!("p{number}"), sha256: Digest::of([number]), ..world.wanted() })
        .collect();
    insta::assert_snapshot!(world.told(world.packages(&wanted, true)));
    assert_eq!(world.requests(), 0);
}

#[test]
fn a_package_that_is_not_what_the_index_says_is_refused() {
    let world = World::new();
    let digest = world.wanted().sha256.hex();
    let told = || {
        let told = world.told(world.packages(&[world.wanted()], false));
        told.replace(&digest, "DIGEST").replace(&world.deb.len().to_string(), "SIZE")
    };
    let mut wrong = world.deb.clone();
    wrong[100] ^= 1;
    world.put("pool/demo.deb", wrong);
    insta::assert_snapshot!(told());
    world.put("pool/demo.deb", &world.deb[..100]);
    insta::assert_snapshot!(told());
    world.files.lock().unwrap().remove("pool/demo.deb");
    insta::assert_snapshot!(told());
    assert_eq!(world.store.usage().unwrap().blobs, 0, "nothing is kept of it");
}

#[test]
fn a_hostile_package_is_refused_by_name() {
    let mut world = World::new();
    world.deb = debs::deb_of(&[debs::file("../../etc/cron.d/evil", b"x")]);
    world.put("pool/demo.deb", world.deb.clone());
    insta::assert_snapshot!(world.told(world.packages(&[world.wanted()], false)));
    let mut world = World::new();
    world.deb = debs::deb_of(&[debs::file("./usr", b"x")]);
    world.deb.truncate(world.deb.len() - 40);
    world.put("pool/demo.deb", world.deb.clone());
    insta::assert_snapshot!(world.told(world.packages(&[world.wanted()], false)));
}

#[test]
fn a_package_that_is_another_one_is_refused() {
    let world = World::new();
    let wanted = DownloadRequest { version: "2.0".into(), ..world.wanted() };
    insta::assert_snapshot!(world.told(world.packages(&[wanted], false)));
}

#[test]
fn damage_in_the_store_is_noticed_and_fetched_again() {
    let world = World::new();
    let expanded = world.packages(&[world.wanted()], false).unwrap();
    // As a reader that finds the damage would do.
    world.store.drop_blob(&expanded[0].expanded);
    let original = world.store.blob_path(&expanded[0].original);
    let mut bytes = fs::read(&original).unwrap();
    bytes[200] ^= 1;
    fs::write(&original, bytes).unwrap();
    assert_eq!(world.packages(&[world.wanted()], false).unwrap(), expanded);
    assert_eq!(world.requests(), 2);

    let (digest, _) = world.indices(FRESH).unwrap();
    let blobs = fs::read_dir(world.store.root().join("blobs")).unwrap().map(|entry| entry.unwrap().path());
    for blob in blobs.filter(|path| *path != original) {
        let bytes = fs::read(&blob).unwrap();
        fs::write(&blob, [&bytes[..], b"x"].concat()).unwrap();
    }
    assert_eq!(world.indices(FRESH).unwrap().0, digest);
    assert_eq!(world.requests(), 6, "release and index were fetched again");
}
