//! Binary packages (deb(5)): checked, and packed again without compression.
//!
//! A package comes from an archive, whose signature covers it, but an archive can be private and a mirror can serve
//! anything: all input is treated as hostile. dpkg will unpack it as root of the image.

mod ar;
mod tar;

use super::deb822;
use crate::{error::UserError, model::Digest};
use anyhow::{Context as _, Result};
use ar::{Ar, Member};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Seek as _, Write},
    path::Path,
};
use tar::Scan;

/// A binary package that was checked, and packed again without compression, so that dpkg unpacks it at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpandedDeb {
    /// The SHA-256 of the package as the archive has it.
    pub original: Digest,
    /// The store's blob with the uncompressed package, a valid .deb.
    pub expanded: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The fields of its control file, by name as written there.
    pub control: BTreeMap<String, String>,
    /// The time of its newest file, in seconds since 1970.
    pub newest: i64,
}

/// What a package may take up, so that a small one cannot fill the disk.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a member, expanded.
    pub size: u64,
    /// How many times as large as it came a member may become, beyond [`Limits::free`].
    pub ratio: u64,
    /// Expanded bytes of a member up to which the ratio does not matter.
    pub free: u64,
    /// Files, folders and links.
    pub entries: usize,
    /// Bytes of memory for unpacking xz or zstd.
    pub memory: u64,
}

impl Default for Limits {
    /// Well above everything that Debian 13 has.
    fn default() -> Limits {
        Limits { size: 8 << 30, ratio: 250, free: 128 << 20, entries: 500_000, memory: 256 << 20 }
    }
}

/// What [`expand`] found in a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expanded {
    /// The fields of the control file, by name as written there.
    pub control: BTreeMap<String, String>,
    /// The time of the newest file, in seconds since 1970.
    pub newest: i64,
    /// Bytes written.
    pub size: u64,
}

/// Bytes of an expanded member that are kept in memory.
const IN_MEMORY: usize = 16 << 20;
/// Bytes of an expanded `control.tar`: the largest that Debian 13 has is below 5 MiB.
const MAX_CONTROL: u64 = 64 << 20;
/// Bytes that are read or written at once.
const CHUNK: usize = 256 << 10;

/// Checks the package `deb` and writes it to `out` with uncompressed members; a large one is kept in the folder
/// `scratch` in between. Reads up to the end of the package. Equal packages give equal bytes.
///
/// # Errors
/// When the package is damaged or hostile, or something cannot be read or written.
pub fn expand(deb: impl Read, limits: &Limits, scratch: &Path, out: &mut impl Write) -> Result<Expanded> {
    let mut deb = Ar::open(BufReader::with_capacity(CHUNK, deb))?;
    let mut control = None;
    let mut written = 0;
    let mut newest = 0;
    let mut version = false;
    let mut data = false;
    while let Some(member) = deb.next()? {
        match member.name.as_str() {
            // For programs of the future, which others pass by.
            name if name.starts_with('_') => deb.skip(&member)?,
            "debian-binary" if !version && control.is_none() => {
                check_version(&deb.read_small(&member, 64)?)?;
                version = true;
                ar::write_magic(out)?;
                written += ar::MAGIC.len() as u64 + ar::write_member(out, "debian-binary", 4, &mut &b"2.0\n"[..])?;
            }
            name if name.starts_with("control.tar") && version && control.is_none() => {
                let mut scan = Scan::new(limits.entries, Some("control"));
                let mut text = Vec::new();
                let limits = Limits { size: limits.size.min(MAX_CONTROL), ..*limits };
                inflate(&mut deb, &member, &limits, &mut scan, &mut text)?;
                written += ar::write_member(out, "control.tar", text.len() as u64, &mut &text[..])?;
                newest = newest.max(scan.newest());
                control = Some(fields(scan.captured())?);
            }
            name if name.starts_with("data.tar") && control.is_some() && !data => {
                data = true;
                let mut scan = Scan::new(limits.entries, None);
                let mut spool = tempfile::spooled_tempfile_in(IN_MEMORY, scratch);
                inflate(&mut deb, &member, limits, &mut scan, &mut spool)?;
                let size = spool.stream_position().context("writing a temporary file")?;
                spool.rewind().context("reading a temporary file")?;
                written += ar::write_member(out, "data.tar", size, &mut spool)?;
                newest = newest.max(scan.newest());
            }
            name => return Err(hostile(format!("the member `{name}` has no business there"))),
        }
    }
    match control {
        Some(control) if data => Ok(Expanded { control, newest, size: written }),
        Some(_) => Err(hostile("it has no `data.tar`")),
        None if version => Err(hostile("it has no `control.tar`")),
        None => Err(hostile("it has no `debian-binary`")),
    }
}

/// The error of a package that must not be installed.
fn hostile(what: impl Into<String>) -> anyhow::Error {
    UserError::runtime(what)
        .hint("the package is damaged or hostile, and was not used; report it to the archive's maintainers")
        .into()
}

fn check_version(text: &[u8]) -> Result<()> {
    if text.starts_with(b"2.") {
        return Ok(());
    }
    let found = String::from_utf8_lossy(text);
    Err(hostile(format!("it is of version `{}` of the format, known is 2", found.trim().escape_debug())))
}

fn fields(text: Option<&[u8]>) -> Result<BTreeMap<String, String>> {
    let text = text.ok_or_else(|| hostile("its `control.tar` has no `control`"))?;
    let text = std::str::from_utf8(text).map_err(|_| hostile("its `control` is not UTF-8"))?;
    let fields = deb822::single(text).map_err(|error| hostile(format!("its `control` is wrong: {error}")))?;
    Ok(fields.into_iter().map(|field| (field.name.to_owned(), field.value.to_owned())).collect())
}

/// Expands one member into `out` while `scan` looks at it.
fn inflate<R: BufRead>(
    deb: &mut Ar<R>,
    member: &Member,
    limits: &Limits,
    scan: &mut Scan,
    out: &mut impl Write,
) -> Result<()> {
    let suffix = member.name.split_once(".tar").map_or("", |(_, suffix)| suffix);
    let mut packed = deb.content(member);
    let limit = limits.size.min(limits.free.max(member.size.saturating_mul(limits.ratio)));
    let source: Box<dyn Read + '_> = match suffix {
        "" => Box::new(&mut packed),
        ".xz" => {
            let stream = liblzma::stream::Stream::new_stream_decoder(limits.memory, liblzma::stream::CONCATENATED)
                .context("starting the xz decoder")?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(&mut packed, stream))
        }
        ".gz" => Box::new(flate2::bufread::MultiGzDecoder::new(&mut packed)),
        ".zst" => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(&mut packed).context("starting zstd")?;
            decoder.window_log_max(limits.memory.ilog2()).context("starting zstd")?;
            Box::new(decoder)
        }
        _ => {
            return Err(hostile(format!(
                "the member `{}` is compressed in a way that dpkg does not know",
                member.name
            )));
        }
    };
    copy(source, limit, scan, out).with_context(|| format!("in its member `{}`", member.name))?;
    packed.finish()
}

fn copy(mut source: impl Read, limit: u64, scan: &mut Scan, out: &mut impl Write) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => return scan.finish(),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(damaged(error)),
        };
        total += count as u64;
        if total > limit {
            return Err(hostile(format!(
                "it expands to more than {}, which is more than a package of its size may",
                crate::progress::size(limit)
            )));
        }
        scan.feed(&buffer[..count])?;
        out.write_all(&buffer[..count]).context("writing")?;
    }
}

/// What an error of a decoder means. The reader below may fail too, and is then right about why.
fn damaged(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => hostile("it is cut off"),
        _ if error.get_ref().is_some_and(|inner| inner.is::<ar::CutOff>()) => hostile("it is cut off"),
        _ => hostile(format!("it cannot be unpacked: {error}")),
    }
}

#[cfg(test)]
pub(crate) mod tests;
