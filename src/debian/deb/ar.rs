//! The outer archive of a package: ar(5) as deb(5) allows it.

use super::{CHUNK, hostile};
use anyhow::{Context as _, Result};
use std::{
    fmt,
    io::{self, BufRead, Read, Write},
};

/// What every ar archive begins with.
pub(super) const MAGIC: &[u8; 8] = b"!<arch>\n";

/// Reads members, one after the other.
pub(super) struct Ar<R> {
    reader: R,
    /// Whether a byte of padding comes before the next header.
    padded: bool,
}

/// The header of a member.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) size: u64,
}

/// Reads the content of one member; an early end is [`CutOff`].
pub(super) struct Content<'a, R> {
    reader: &'a mut R,
    left: u64,
}

/// The archive ended inside of a member.
#[derive(Debug)]
pub(super) struct CutOff;

impl fmt::Display for CutOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is cut off")
    }
}

impl std::error::Error for CutOff {}

impl<R: BufRead> Ar<R> {
    pub(super) fn open(mut reader: R) -> Result<Ar<R>> {
        let mut magic = [0; MAGIC.len()];
        let count = fill(&mut reader, &mut magic)?;
        if magic != *MAGIC {
            let what = if count < MAGIC.len() {
                "it is cut off"
            } else {
                "it is not a Debian package: no `!<arch>` at its beginning"
            };
            return Err(hostile(what));
        }
        Ok(Ar { reader, padded: false })
    }

    /// The header of the next member, `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Member>> {
        let mut header = [0; 60];
        let padding = usize::from(std::mem::take(&mut self.padded));
        if fill(&mut self.reader, &mut header[..padding])? < padding {
            return Ok(None);
        }
        match fill(&mut self.reader, &mut header)? {
            0 => return Ok(None),
            60 => {}
            _ => return Err(hostile("it is cut off")),
        }
        let field = |range: std::ops::Range<usize>| std::str::from_utf8(&header[range]).ok().map(str::trim_end);
        // GNU's ar ends names with a slash.
        let name = field(0..16).map(|name| name.strip_suffix('/').unwrap_or(name));
        let size = field(48..58)
            .filter(|size| size.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|size| size.parse().ok());
        match (name, size) {
            (Some(name), Some(size)) if header[58..] == *b"`\n" => {
                self.padded = size % 2 == 1;
                Ok(Some(Member { name: name.to_owned(), size }))
            }
            _ => Err(hostile("the header of a member is wrong")),
        }
    }

    /// The content of the member whose header came last.
    pub(super) fn content(&mut self, member: &Member) -> Content<'_, R> {
        Content { reader: &mut self.reader, left: member.size }
    }

    pub(super) fn skip(&mut self, member: &Member) -> Result<()> {
        self.content(member).finish()
    }

    /// A whole content of at most `limit` bytes.
    pub(super) fn read_small(&mut self, member: &Member, limit: u64) -> Result<Vec<u8>> {
        if member.size > limit {
            return Err(hostile(format!("the member `{}` is too long", member.name)));
        }
        let mut bytes = Vec::new();
        self.content(member).read_to_end(&mut bytes).map_err(super::damaged)?;
        Ok(bytes)
    }
}

impl<R: BufRead> Content<'_, R> {
    /// Passes by what was not read.
    pub(super) fn finish(mut self) -> Result<()> {
        io::copy(&mut self, &mut io::sink()).map(drop).map_err(super::damaged)
    }
}

impl<R: BufRead> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let count = available.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Content<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let available = self.reader.fill_buf()?;
        if available.is_empty() {
            return Err(io::Error::other(CutOff));
        }
        Ok(&available[..available.len().min(usize::try_from(self.left).unwrap_or(usize::MAX))])
    }

    fn consume(&mut self, count: usize) {
        self.left -= count as u64;
        self.reader.consume(count);
    }
}

/// Begins an archive.
pub(super) fn write_magic(out: &mut impl Write) -> Result<()> {
    out.write_all(MAGIC).context("writing")
}

/// Writes a member of `size` bytes and returns how many bytes it takes up.
pub(super) fn write_member(out: &mut impl Write, name: &str, size: u64, content: &mut impl Read) -> Result<u64> {
    writeln!(out, "{name:<16}{:<12}{:<6}{:<6}{:<8}{size:<10}`", 0, 0, 0, "100644").context("writing")?;
    let mut buffer = vec![0; CHUNK.min(size as usize)];
    let mut left = size;
    while left > 0 {
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        content.read_exact(&mut buffer[..want]).context("reading a temporary file")?;
        out.write_all(&buffer[..want]).context("writing")?;
        left -= want as u64;
    }
    if size % 2 == 1 {
        out.write_all(b"\n").context("writing")?;
    }
    Ok(60 + size.next_multiple_of(2))
}

/// Reads until `buffer` is full or the end is reached; how many bytes came.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("reading"),
        }
    }
    Ok(filled)
}
