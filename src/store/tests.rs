use super::*;
use serde::Deserialize;
use std::{
    io::{Read as _, Write as _},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Made {
    blob: Digest,
}

impl CachedResult for Made {
    const KIND: &'static str = "made";

    fn blobs(&self) -> Vec<Digest> {
        vec![self.blob]
    }
}

fn store() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store")).unwrap();
    (folder, store)
}

#[test]
fn a_blob_reads_back_under_its_digest() {
    let (_folder, store) = store();
    let digest = store.put_blob(b"content").unwrap();
    assert_eq!(digest, Digest::of("content"));
    assert_eq!(store.get_blob(&digest).unwrap().unwrap(), b"content");
    assert_eq!(store.blob_size(&digest), Some(7));
    assert!(store.get_blob(&Digest::of("other")).unwrap().is_none());
}

#[test]
fn an_unfinished_blob_leaves_nothing() {
    let (_folder, store) = store();
    let mut writer = store.write_blob().unwrap();
    writer.write_all(b"half").unwrap();
    drop(writer);
    assert_eq!(store.usage().unwrap(), Usage::default());
}

#[test]
fn a_blob_with_another_digest_than_expected_is_not_kept() {
    let (_folder, store) = store();
    let mut writer = store.write_blob().unwrap();
    writer.write_all(b"evil").unwrap();
    assert!(!writer.finish_as(&Digest::of("good")).unwrap());
    assert_eq!(store.usage().unwrap().blobs, 0);
}

#[test]
fn a_damaged_blob_is_noticed_and_dropped() {
    let (_folder, store) = store();
    for damage in [&b"cOntent"[..], b"con", b""] {
        let digest = store.put_blob(b"content").unwrap();
        fs::write(store.blob_path(&digest), damage).unwrap();
        let mut read = Vec::new();
        let error = store.read_blob(&digest).unwrap().unwrap().read_to_end(&mut read).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(store.read_blob(&digest).unwrap().is_none());
    }
}

#[test]
fn an_outcome_is_forgotten_with_its_blobs() {
    let (_folder, store) = store();
    let key = Digest::of("inputs");
    let made = Made { blob: store.put_blob(b"output").unwrap() };
    store.put_action(&key, &made).unwrap();
    assert_eq!(store.action::<Made>(&key), Some(Made { blob: made.blob }));
    store.drop_blob(&made.blob);
    assert_eq!(store.action::<Made>(&key), None);
}

#[test]
fn work_wanted_by_many_is_done_once() {
    let (_folder, store) = store();
    let times = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            // A store of its own each, as several programs have.
            let store = Store::open(store.root()).unwrap();
            let times = &times;
            scope.spawn(move || {
                store.memoise(&Digest::of("inputs"), || {
                    times.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(20));
                    Ok(Made { blob: store.put_blob(b"output")? })
                })
            });
        }
    });
    assert_eq!(times.load(Ordering::SeqCst), 1);
}

#[test]
fn what_a_killed_program_left_is_swept_only_when_nobody_works() {
    let (folder, store) = store();
    let left = store.scratch_root().join("left");
    fs::create_dir(&left).unwrap();
    let second = Store::open(store.root()).unwrap();
    assert!(left.exists());
    drop((store, second));
    Store::open(&folder.path().join("store")).unwrap();
    assert!(!left.exists());
}

#[test]
fn collection_takes_the_least_recently_used_and_nothing_in_use() {
    let (folder, store) = store();
    let old = store.put_blob(&[1; 100]).unwrap();
    let new = store.put_blob(&[2; 100]).unwrap();
    let file = File::open(store.blob_path(&old)).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    let root = folder.path().join("store");
    assert_eq!(Store::collect(&root, None, Some(100)).unwrap(), None, "a program works here");
    drop(store);
    let collected = Store::collect(&root, None, Some(100)).unwrap().unwrap();
    assert_eq!(collected, Collected { objects: 1, bytes: 100, kept_bytes: 100 });
    let store = Store::open(&root).unwrap();
    assert_eq!((store.blob_size(&old), store.blob_size(&new)), (None, Some(100)));
}
