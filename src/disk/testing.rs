//! Shared by the tests of this module: a store, images on disk, and the tools that know the formats.

use super::{Map, Outputs};
use crate::{exec::Run, model::Digest, rootfs::Content, store::Store, testing::require_program};
use std::{
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
};

/// A store and a folder for images.
pub(super) struct Bench {
    pub(super) folder: tempfile::TempDir,
    pub(super) store: Store,
}

impl Bench {
    pub(super) fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        Bench { folder, store }
    }

    pub(super) fn content(&self, bytes: &[u8]) -> Content {
        let blob = self.store.put_blob(bytes).unwrap();
        Content { digest: Digest::of(bytes), size: bytes.len() as u64, blob, offset: 0 }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a raw image.
    pub(super) fn raw(&self, name: &str, map: &Map) -> PathBuf {
        let path = self.path(name);
        let file = File::create(&path).unwrap();
        map.write(&self.store, Outputs { raw: Some(&file), qcow2: None }, &|_| ()).unwrap();
        path
    }
}

/// Bytes without any order (xorshift).
pub(super) fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..size).map(|_| next()).collect()
}

/// The output of a program about `image`; its arguments are `words` with `{}` for the image. `None` where the program
/// is not installed.
pub(super) fn ask(words: &str, image: &Path) -> Option<String> {
    run(words, image).map(|said| said.unwrap_or_else(|error| panic!("{error}")))
}

/// As [`ask`], of a program that may fail.
pub(super) fn run(words: &str, image: &Path) -> Option<Result<String, String>> {
    let mut words = words.split(' ');
    let name = words.next().unwrap();
    let program = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].map(|folder| Path::new(folder).join(name));
    if !require_program(name) {
        return None;
    }
    let program = program.into_iter().find(|program| program.exists()).unwrap();
    let arguments = words.map(|word| word.replace("{}", &image.to_string_lossy()));
    let run = Run::new(program).args(arguments).env("LC_ALL", "C.UTF-8").limit(Duration::from_secs(120));
    Some(
        run.capture()
            .map_err(|error| error.to_string())
            .map(|said| String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr)),
    )
}
