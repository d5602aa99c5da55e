//! Packages for tests: real ones from the archive, and small ones made here.

use pgha_image::{debian::deb::ExpandedDeb, spec::Digest, store::Store};
use std::{collections::BTreeMap, io::Read as _, path::Path};

/// The members of a .deb: name and bytes.
fn members(deb: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut members = Vec::new();
    let mut at = 8;
    while at + 60 <= deb.len() {
        let field = |from: usize, to: usize| std::str::from_utf8(&deb[at + from..at + to]).unwrap().trim().to_owned();
        let size: usize = field(48, 58).parse().unwrap();
        members.push((field(0, 16).trim_end_matches('/').to_owned(), deb[at + 60..at + 60 + size].to_vec()));
        at += 60 + size.next_multiple_of(2);
    }
    members
}

fn decompress(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    match name.rsplit_once('.').unwrap().1 {
        "xz" => drop(liblzma::read::XzDecoder::new(bytes).read_to_end(&mut plain).unwrap()),
        "zst" => drop(zstd::Decoder::new(bytes).unwrap().read_to_end(&mut plain).unwrap()),
        "gz" => drop(flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).unwrap()),
        _ => plain.extend_from_slice(bytes),
    }
    plain
}

/// Packs members without compression.
pub fn pack(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut deb = b"!<arch>\n".to_vec();
    for (name, bytes) in members {
        deb.extend_from_slice(
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100644, bytes.len()).as_bytes(),
        );
        deb.extend_from_slice(bytes);
        if bytes.len() % 2 == 1 {
            deb.push(b'\n');
        }
    }
    deb
}

fn fields(control_tar: &[u8]) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(control_tar);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.path().unwrap().file_name().is_some_and(|name| name == "control") {
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            return text
                .replace("\n ", "\0")
                .lines()
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_owned(), value.trim().replace('\0', "\n ")))
                .collect();
        }
    }
    panic!("no control file");
}

/// Puts a .deb into the store, expanded.
pub fn expand(store: &Store, path: &Path) -> ExpandedDeb {
    let deb = std::fs::read(path).unwrap();
    let mut control = Vec::new();
    let mut data = Vec::new();
    for (name, bytes) in members(&deb) {
        match name.split('.').next().unwrap() {
            "control" => control = decompress(&name, &bytes),
            "data" => data = decompress(&name, &bytes),
            _ => {}
        }
    }
    let expanded = pack(&[("debian-binary", b"2.0\n"), ("control.tar", &control), ("data.tar", &data)]);
    ExpandedDeb {
        original: Digest::of(&deb),
        size: expanded.len() as u64,
        expanded: store.put_blob(&expanded).unwrap(),
        control: fields(&control),
        newest: 0,
    }
}
