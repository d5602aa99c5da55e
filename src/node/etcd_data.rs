//! The ids of a cluster and its members, as etcd derives and keeps them.
//!
//! Every file of etcd's write-ahead log begins with two records: the checksum so far, and the ids of member and cluster
//! (etcd, `server/storage/wal`). A record lies in a frame: its length in eight bytes, of which the highest tells how many
//! bytes of padding follow it; then itself, in protobuf (`walpb/record.proto`). The log is written under another name and
//! renamed when both are on the disk, so that a member without a log has never voted.

use crate::files::Presence;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use ring::digest;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

/// The ids of one member and its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ids {
    /// The cluster's.
    pub cluster: u64,
    /// The member's.
    pub member: u64,
}

/// etcd's data on this node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EtcdData {
    /// There is nothing.
    Absent,
    /// etcd began to make them and has not written its log: it has never voted.
    Unborn,
    /// They are this member's.
    Data(Ids),
    /// They cannot be read, and why.
    Unknown(String),
}

/// The longest record that is read, in bytes: those that are looked for have about twenty.
const LONGEST: u64 = 1024;

/// Kinds of records.
mod kind {
    pub(super) const METADATA: u64 = 1;
    pub(super) const CHECKSUM: u64 = 4;
}

impl EtcdData {
    /// Looks at etcd's data directory.
    pub fn look(data: &Path) -> EtcdData {
        match read(data) {
            Ok(data) => data,
            Err(error) => EtcdData::Unknown(format!("{error:#}")),
        }
    }
}

fn read(data: &Path) -> Result<EtcdData> {
    let (member, log) = (data.join("member"), data.join("member/wal"));
    if is_missing(&member)? {
        return Ok(EtcdData::Absent);
    }
    if is_missing(&log)? {
        return Ok(EtcdData::Unborn);
    }
    // The newest is read by etcd whatever its snapshots are.
    let newest = newest(&log).with_context(|| format!("looking into {}", log.display()))?;
    let newest = newest.ok_or_else(|| anyhow!("{} has no files of etcd's log", log.display()))?;
    ids_of(&newest).map(EtcdData::Data).with_context(|| format!("reading {}", newest.display()))
}

/// Whether a folder is certainly not there.
fn is_missing(folder: &Path) -> Result<bool> {
    Ok(Presence::of(folder).known()?.is_none())
}

fn newest(log: &Path) -> Result<Option<PathBuf>> {
    let mut newest: Option<PathBuf> = None;
    for entry in fs::read_dir(log)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wal") && Some(&path) > newest.as_ref() {
            newest = Some(path);
        }
    }
    Ok(newest)
}

/// The ids at the beginning of a file of etcd's log.
fn ids_of(path: &Path) -> Result<Ids> {
    let mut file = File::open(path)?;
    let first = Record::read(&mut file).context("the first record")?;
    ensure!(first.kind == kind::CHECKSUM, "its first record is of kind {}, not a checksum", first.kind);
    let second = Record::read(&mut file).context("the second record")?;
    ensure!(second.kind == kind::METADATA, "its second record is of kind {}, not the ids", second.kind);
    ensure!(second.checksum == checksum(first.checksum, &second.data), "the checksum of its ids is wrong");
    let (mut member, mut cluster) = (0, 0);
    for field in fields(&second.data)? {
        match field {
            (1, Field::Number(number)) => member = number,
            (2, Field::Number(number)) => cluster = number,
            _ => {}
        }
    }
    ensure!(member != 0 && cluster != 0, "its ids are not both there");
    Ok(Ids { cluster, member })
}

/// A record of the log.
struct Record {
    kind: u64,
    checksum: u32,
    data: Vec<u8>,
}

impl Record {
    fn read(file: &mut File) -> Result<Record> {
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let field = u64::from_le_bytes(length);
        let (length, high) = (field & 0x00ff_ffff_ffff_ffff, field >> 56);
        let padding = if high & 0x80 == 0 { 0 } else { high & 7 };
        ensure!((1..=LONGEST).contains(&length), "a record of {length} bytes");
        let mut bytes = vec![0; usize::try_from(length + padding)?];
        file.read_exact(&mut bytes)?;
        bytes.truncate(usize::try_from(length)?);
        let mut record = Record { kind: 0, checksum: 0, data: Vec::new() };
        for field in fields(&bytes)? {
            match field {
                (1, Field::Number(kind)) => record.kind = kind,
                (2, Field::Number(checksum)) => record.checksum = u32::try_from(checksum)?,
                (3, Field::Bytes(data)) => record.data = data.to_vec(),
                _ => {}
            }
        }
        Ok(record)
    }
}

/// A field of a protobuf message.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a protobuf message, with their numbers; etcd's have numbers and bytes alone.
fn fields(mut bytes: &[u8]) -> Result<Vec<(u64, Field<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = number(&mut bytes)?;
        fields.push(match tag & 7 {
            0 => (tag >> 3, Field::Number(number(&mut bytes)?)),
            2 => {
                let length = usize::try_from(number(&mut bytes)?)?;
                let (data, rest) = bytes.split_at_checked(length).context("a field is truncated")?;
                bytes = rest;
                (tag >> 3, Field::Bytes(data))
            }
            wire => bail!("a field of wire type {wire}"),
        });
    }
    Ok(fields)
}

/// A number in protobuf's variable length.
fn number(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().context("a number is truncated")?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("a number is too long")
}

/// CRC-32C of `bytes`, going on from that of what came before.
fn checksum(before: u32, bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!before, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

/// The ids that etcd gives the member `name` and its cluster when it forms one of `members` (each a name and a peer URL)
/// with `token`; `None` if `name` is not one of them (etcd, `server/etcdserver/api/membership/{member,cluster}.go`,
/// `computeMemberId` and `genID`).
pub fn ids(token: &str, members: &[(String, String)], name: &str) -> Option<Ids> {
    let mut urls: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, url) in members {
        urls.entry(name).or_default().push(url);
    }
    let id = |urls: &mut Vec<&str>| {
        urls.sort_unstable();
        short(format!("{}{token}", urls.concat()).as_bytes())
    };
    let members: BTreeMap<&str, u64> = urls.iter_mut().map(|(name, urls)| (*name, id(urls))).collect();
    let mut all: Vec<u64> = members.values().copied().collect();
    all.sort_unstable();
    let bytes: Vec<u8> = all.iter().flat_map(|id| id.to_be_bytes()).collect();
    Some(Ids { cluster: short(&bytes), member: *members.get(name)? })
}

/// The first eight bytes of the SHA-1 digest.
fn short(bytes: &[u8]) -> u64 {
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, bytes);
    let first = digest.as_ref().first_chunk::<8>();
    first.map_or(0, |first| u64::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head of a file of the log, as etcd 3.5 writes it.
    fn head(before: u32, ids: Ids) -> Vec<u8> {
        let varint = |mut number: u64| {
            let mut bytes = Vec::new();
            while number >= 0x80 {
                bytes.push(number as u8 | 0x80);
                number >>= 7;
            }
            bytes.push(number as u8);
            bytes
        };
        let metadata = [vec![1 << 3], varint(ids.member), vec![2 << 3], varint(ids.cluster)].concat();
        let record = |kind: u64, crc: u32, data: &[u8]| {
            let mut bytes = [vec![1 << 3], varint(kind), vec![2 << 3], varint(crc.into())].concat();
            if !data.is_empty() {
                bytes.extend([vec![3 << 3 | 2], varint(data.len() as u64), data.to_vec()].concat());
            }
            let padding = (8 - bytes.len() % 8) % 8;
            let high = if padding == 0 { 0 } else { (0x80 | padding as u64) << 56 };
            let mut frame = (bytes.len() as u64 | high).to_le_bytes().to_vec();
            frame.append(&mut bytes);
            frame.resize(frame.len() + padding, 0);
            frame
        };
        [record(4, before, &[]), record(1, checksum(before, &metadata), &metadata), vec![0; 4096]].concat()
    }

    const OWN: Ids = Ids { cluster: 0xcdf8_18f4_8b2d_8b7e, member: 0x8e9e_05c5_2164_694d };

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Folder {
            Folder(tempfile::tempdir().unwrap())
        }

        fn log(&self) -> PathBuf {
            self.0.path().join("member/wal")
        }

        fn with(bytes: &[u8]) -> Folder {
            let folder = Folder::new();
            fs::create_dir_all(folder.log()).unwrap();
            fs::write(folder.log().join("0000000000000000-0000000000000000.wal"), bytes).unwrap();
            folder
        }

        fn look(&self) -> EtcdData {
            EtcdData::look(self.0.path())
        }
    }

    #[test]
    fn ids_are_read_from_the_newest_file() {
        let folder = Folder::with(&head(0, OWN));
        assert_eq!(folder.look(), EtcdData::Data(OWN));
        let newer = Ids { member: 7, ..OWN };
        fs::write(folder.log().join("0000000000000001-0000000000001000.wal"), head(0x1234_5678, newer)).unwrap();
        fs::write(folder.log().join("0000000000000002-0000000000002000.wal.broken"), "").unwrap();
        fs::write(folder.log().join("1.tmp"), "").unwrap();
        assert_eq!(folder.look(), EtcdData::Data(newer));
    }

    #[test]
    fn only_what_is_certainly_not_there_is_absent() {
        let folder = Folder::new();
        assert_eq!(folder.look(), EtcdData::Absent);
        assert_eq!(EtcdData::look(&folder.0.path().join("no/such")), EtcdData::Absent);
        fs::create_dir_all(folder.0.path().join("member/snap")).unwrap();
        fs::create_dir_all(folder.0.path().join("member/wal.tmp")).unwrap();
        assert_eq!(folder.look(), EtcdData::Unborn);
        fs::create_dir(folder.log()).unwrap();
        assert!(matches!(folder.look(), EtcdData::Unknown(_)), "a log without files");
        // A loop of links is an error that is not an absence.
        let looped = folder.0.path().join("looped");
        std::os::unix::fs::symlink(&looped, &looped).unwrap();
        assert!(matches!(EtcdData::look(&looped), EtcdData::Unknown(_)));
        fs::remove_dir(folder.log()).unwrap();
        std::os::unix::fs::symlink(folder.log(), folder.log()).unwrap();
        assert!(matches!(folder.look(), EtcdData::Unknown(_)));
    }

    #[test]
    fn damaged_files_are_unknown() {
        let good = head(0, OWN);
        for length in 0..good.len() - 4096 {
            let cut = Folder::with(&good[..length]).look();
            // Padding is not needed to read the ids, but must be there.
            assert!(matches!(cut, EtcdData::Unknown(_)), "{length}: {cut:?}");
        }
        for bit in 0..(good.len() - 4096) * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let found = Folder::with(&bytes).look();
            assert!(matches!(found, EtcdData::Unknown(_)) || found == EtcdData::Data(OWN), "{bit}: {found:?}");
        }
        for bytes in [vec![0; 4096], vec![0xff; 4096], b"not a log at all, but a text".to_vec()] {
            assert!(matches!(Folder::with(&bytes).look(), EtcdData::Unknown(_)));
        }
        let no_ids = Folder::with(&head(0, Ids { cluster: 0, member: 7 }));
        assert!(matches!(no_ids.look(), EtcdData::Unknown(_)));
        let folder = Folder::new();
        fs::create_dir_all(folder.log().join("0000000000000000-0000000000000000.wal")).unwrap();
        assert!(matches!(folder.look(), EtcdData::Unknown(_)), "a folder in the place of a file");
    }

    #[test]
    fn the_checksum_is_crc_32c() {
        // RFC 3720, appendix B.4: 32 bytes of zeros.
        assert_eq!(checksum(0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(checksum(checksum(0, &[0; 16]), &[0; 16]), 0x8a91_36aa);
    }

    #[test]
    fn another_token_gives_other_ids() {
        let members = [1, 2, 3].map(|n| (format!("pg-{n}"), format!("https://10.0.0.1{n}:2380")));
        let (one, other) = (ids("a", &members, "pg-1").unwrap(), ids("b", &members, "pg-1").unwrap());
        assert!(one.cluster != other.cluster && one.member != other.member);
        assert_eq!(ids("a", &members, "pg-2").unwrap().cluster, one.cluster);
        assert_eq!(ids("a", &members, "pg-4"), None);
    }
}
