//! The inner archives of a package, checked while they are copied: tar as GNU and POSIX write it.
//!
//! The bytes are not changed, so what is checked is what dpkg will see. Long names and pax headers are followed; what
//! dpkg could be led out of its root with, or what a package has no business with, is refused.

use super::hostile;
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};

const BLOCK: usize = 512;
/// Bytes of a path (Linux, `PATH_MAX`).
const MAX_PATH: usize = 4096;
/// Bytes of a long name's or pax header's content.
const MAX_EXTENSION: u64 = 64 << 10;
/// Bytes of the file that is kept.
const MAX_CAPTURE: u64 = 4 << 20;

/// Looks at a tar stream, chunk by chunk.
pub(super) struct Scan {
    state: State,
    /// The part of a header block that came so far.
    block: Vec<u8>,
    /// Content of an extension header, or of the file that is kept.
    content: Vec<u8>,
    next: Extensions,
    entries: BTreeMap<String, Kind>,
    max_entries: usize,
    newest: i64,
    capture: Option<&'static str>,
    captured: Option<Vec<u8>>,
}

/// What the coming bytes are.
#[derive(Clone, Copy)]
enum State {
    Header,
    /// Content that is kept for what follows, and then its padding.
    Keep {
        what: Kept,
        left: u64,
        padding: u64,
    },
    /// Content that passes by.
    Pass {
        left: u64,
    },
    /// After the first block of zeros.
    End,
}

#[derive(Clone, Copy)]
enum Kept {
    LongName,
    LongLink,
    Pax,
    File,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
    Symlink,
    Other,
}

/// What headers before an entry say of it.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    mtime: Option<i64>,
}

impl Scan {
    /// Allows so many entries, and keeps the file `capture`.
    pub(super) fn new(max_entries: usize, capture: Option<&'static str>) -> Scan {
        Scan {
            state: State::Header,
            block: Vec::with_capacity(BLOCK),
            content: Vec::new(),
            next: Extensions::default(),
            entries: BTreeMap::new(),
            max_entries,
            newest: 0,
            capture,
            captured: None,
        }
    }

    /// The time of the newest entry, in seconds since 1970.
    pub(super) fn newest(&self) -> i64 {
        self.newest
    }

    /// The file that was to be kept.
    pub(super) fn captured(&self) -> Option<&[u8]> {
        self.captured.as_deref()
    }

    /// Takes the next bytes.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let taken = match self.state {
                State::Header => self.feed_header(bytes)?,
                State::Keep { what, left, padding } => {
                    let taken = at_most(bytes, left);
                    self.content.extend_from_slice(&bytes[..taken]);
                    let left = left - taken as u64;
                    self.state = State::Keep { what, left, padding };
                    if left == 0 {
                        self.state = pass(padding);
                        self.keep(what)?;
                    }
                    taken
                }
                State::Pass { left } => {
                    let taken = at_most(bytes, left);
                    self.state = pass(left - taken as u64);
                    taken
                }
                State::End => {
                    if bytes.iter().any(|&byte| byte != 0) {
                        return Err(hostile("something follows its end"));
                    }
                    bytes.len()
                }
            };
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// No more bytes come.
    pub(super) fn finish(&mut self) -> Result<()> {
        if !matches!(self.state, State::End) {
            return Err(hostile("it is cut off"));
        }
        Ok(())
    }

    fn feed_header(&mut self, bytes: &[u8]) -> Result<usize> {
        let taken = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == BLOCK {
            let mut block = [0; BLOCK];
            block.copy_from_slice(&self.block);
            self.block.clear();
            self.state = self.read_header(&block)?;
        }
        Ok(taken)
    }

    fn read_header(&mut self, block: &[u8; BLOCK]) -> Result<State> {
        if block.iter().all(|&byte| byte == 0) {
            return Ok(State::End);
        }
        if !checksum_matches(block) {
            return Err(hostile("the header of an entry is damaged"));
        }
        let number = |range: std::ops::Range<usize>| {
            read_number(&block[range]).ok_or_else(|| hostile("the header of an entry has a wrong number"))
        };
        let size = number(124..136)?;
        let extension = |what| {
            if size > MAX_EXTENSION {
                return Err(hostile("the name of an entry is too long"));
            }
            Ok(what)
        };
        let what = match block[156] {
            b'L' => extension(Kept::LongName)?,
            b'K' => extension(Kept::LongLink)?,
            b'x' => extension(Kept::Pax)?,
            kind => return self.read_entry(block, kind, size, number(136..148)?),
        };
        self.content.clear();
        Ok(keep_state(what, size))
    }

    fn read_entry(&mut self, block: &[u8; BLOCK], kind: u8, size: u64, mtime: u64) -> Result<State> {
        let next = std::mem::take(&mut self.next);
        let path = path_of(next.path.unwrap_or_else(|| header_name(block)))?;
        let size = next.size.unwrap_or(size);
        let link = || next.link.clone().unwrap_or_else(|| until_zero(&block[157..257]).to_vec());
        let kind = match kind {
            b'0' | 0 | b'7' => Kind::File,
            b'1' => {
                self.check_hard_link(&path, link())?;
                Kind::File
            }
            b'2' => Kind::Symlink,
            b'5' => Kind::Directory,
            b'6' => Kind::Other,
            b'3' | b'4' => return Err(hostile(format!("`{path}` is a device"))),
            b'S' => return Err(hostile(format!("`{path}` is a sparse file, which dpkg does not know"))),
            other => {
                let other = char::from(other).escape_default();
                return Err(hostile(format!("`{path}` is of the unknown kind `{other}`")));
            }
        };
        if kind == Kind::Symlink && link().len() > MAX_PATH {
            return Err(hostile(format!("the target of the link `{path}` is too long")));
        }
        // Only files have content; tar programs agree to pass by what the header of a hard link says.
        let size = if matches!(block[156], b'0' | 0 | b'7') { size } else { 0 };
        self.newest = self.newest.max(next.mtime.unwrap_or(i64::try_from(mtime).unwrap_or(0)));
        let capture = self.capture == Some(path.as_str()) && kind == Kind::File;
        self.place(path, kind)?;
        if capture {
            if size > MAX_CAPTURE {
                return Err(hostile("its `control` is too long"));
            }
            self.content.clear();
            return match size {
                0 => {
                    self.captured = Some(Vec::new());
                    Ok(State::Header)
                }
                _ => Ok(keep_state(Kept::File, size)),
            };
        }
        Ok(pass(size.next_multiple_of(BLOCK as u64)))
    }

    /// Records an entry, and refuses one that conflicts with another.
    fn place(&mut self, path: String, kind: Kind) -> Result<()> {
        for (at, _) in path.match_indices('/') {
            match self.entries.get(&path[..at]) {
                None | Some(Kind::Directory) => {}
                Some(Kind::Symlink) => {
                    return Err(hostile(format!(
                        "`{path}` leads through the link `{}` of the same package",
                        &path[..at]
                    )));
                }
                Some(_) => return Err(hostile(format!("`{path}` lies in `{}`, which is not a folder", &path[..at]))),
            }
        }
        if kind != Kind::Directory {
            let below = format!("{path}/");
            if self.entries.range(below.clone()..).next().is_some_and(|(other, _)| other.starts_with(&below)) {
                return Err(hostile(format!("`{path}` is not a folder, but something lies in it")));
            }
        }
        if self.entries.len() >= self.max_entries {
            return Err(hostile(format!("it has more than {} entries", self.max_entries)));
        }
        if self.entries.insert(path.clone(), kind).is_some() {
            return Err(hostile(format!("`{path}` is there twice")));
        }
        Ok(())
    }

    fn check_hard_link(&self, path: &str, target: Vec<u8>) -> Result<()> {
        let target = path_of(target)?;
        if self.entries.get(&target) == Some(&Kind::File) {
            return Ok(());
        }
        Err(hostile(format!("`{path}` is a hard link to `{target}`, which is not a file of the same package")))
    }

    /// Makes use of content that was kept.
    fn keep(&mut self, what: Kept) -> Result<()> {
        let content = std::mem::take(&mut self.content);
        match what {
            Kept::LongName => self.next.path = Some(until_zero(&content).to_vec()),
            Kept::LongLink => self.next.link = Some(until_zero(&content).to_vec()),
            Kept::Pax => self.read_pax(&content)?,
            Kept::File => self.captured = Some(content),
        }
        Ok(())
    }

    /// Reads `LENGTH KEY=VALUE\n` records (POSIX.1-2017, pax, "pax Header Block").
    fn read_pax(&mut self, mut records: &[u8]) -> Result<()> {
        let wrong = || hostile("the pax header of an entry is wrong");
        let mut seen = BTreeSet::new();
        while !records.is_empty() {
            let space = records.iter().position(|&byte| byte == b' ').ok_or_else(wrong)?;
            let length = std::str::from_utf8(&records[..space]).ok().and_then(|digits| digits.parse::<usize>().ok());
            let length = length.filter(|&length| length > space + 1 && length <= records.len()).ok_or_else(wrong)?;
            let record = records[space + 1..length].strip_suffix(b"\n").ok_or_else(wrong)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(wrong)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if !seen.insert(key) {
                return Err(wrong());
            }
            let number = || std::str::from_utf8(value).ok()?.split('.').next()?.parse::<i64>().ok();
            match key {
                b"path" => self.next.path = Some(value.to_vec()),
                b"linkpath" => self.next.link = Some(value.to_vec()),
                b"size" => self.next.size = Some(number().and_then(|n| u64::try_from(n).ok()).ok_or_else(wrong)?),
                b"mtime" => self.next.mtime = Some(number().ok_or_else(wrong)?),
                key if key.starts_with(b"GNU.sparse") => {
                    return Err(hostile("an entry is a sparse file, which dpkg does not know"));
                }
                _ => {}
            }
            records = &records[length..];
        }
        Ok(())
    }
}

fn at_most(bytes: &[u8], left: u64) -> usize {
    bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX))
}

fn pass(left: u64) -> State {
    if left == 0 { State::Header } else { State::Pass { left } }
}

fn keep_state(what: Kept, size: u64) -> State {
    match size {
        0 => State::Header,
        left => State::Keep { what, left, padding: size.next_multiple_of(BLOCK as u64) - size },
    }
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// The name in the header itself: POSIX gives long ones a prefix.
fn header_name(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_zero(&block[..100]);
    let prefix = until_zero(&block[345..500]);
    if &block[257..263] == b"ustar\0" && !prefix.is_empty() { [prefix, b"/", name].concat() } else { name.to_vec() }
}

/// The path that an entry means, from the root, without a slash at either end; empty for the root itself.
fn path_of(raw: Vec<u8>) -> Result<String> {
    let shown = || String::from_utf8_lossy(&raw).chars().take(100).collect::<String>().escape_debug().to_string();
    if raw.len() > MAX_PATH {
        return Err(hostile(format!("the path `{}…` is too long", shown())));
    }
    if raw.first() == Some(&b'/') {
        return Err(hostile(format!("the path `{}` is absolute", shown())));
    }
    if raw.iter().any(u8::is_ascii_control) {
        return Err(hostile(format!("the path `{}` has control characters", shown())));
    }
    let mut parts = Vec::new();
    for part in raw.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(hostile(format!("the path `{}` leads out of the package", shown()))),
            part => parts.push(part),
        }
    }
    // Two paths that are one when their bytes are not UTF-8 would be taken for the same here, which is refused.
    Ok(String::from_utf8_lossy(&parts.join(&b'/')).into_owned())
}

/// A number in octal digits, or as GNU writes large ones: the highest bit set, then big-endian.
fn read_number(field: &[u8]) -> Option<u64> {
    if field[0] == 0x80 {
        let (high, low) = field[1..].split_at(field.len().checked_sub(9)?);
        return high.iter().all(|&byte| byte == 0).then(|| low.iter().fold(0, |n, &byte| n << 8 | u64::from(byte)));
    }
    let text = std::str::from_utf8(until_zero(field)).ok()?.trim();
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

fn checksum_matches(block: &[u8; BLOCK]) -> bool {
    let sum: u64 =
        block[..148].iter().chain(&block[156..]).map(|&byte| u64::from(byte)).sum::<u64>() + 8 * u64::from(b' ');
    read_number(&block[148..156]) == Some(sum)
}
