//! Layers, compressed on all processors into bytes that depend on the layer alone.
//!
//! The stream is cut into blocks of fixed size, each compressed by itself: gzip blocks end in a sync flush, so that
//! together they are one member (RFC 1951, 3.2.4; RFC 1952), zstd blocks are frames (RFC 8878, 3.1). Neither the number
//! of threads nor their speed shows in the result. A layer is compressed once: the store keeps the result.

use crate::{
    error::UserError,
    model::Digest,
    progress::Step,
    rootfs::tar::StoredLayer,
    store::{CachedResult, Store, lost_blob},
};
use anyhow::{Context as _, Result, ensure};
use flate2::{Compress, Crc, FlushCompress, Status};
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    fmt,
    io::{self, Read, Write},
    str::FromStr,
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

/// Raised whenever the same layer gives other bytes than before: another block size, another release of a codec.
const FORMAT: u32 = 1;
/// Bytes of the stream in one gzip block. Smaller blocks lose matches across their borders, larger ones cost memory.
const GZIP_BLOCK: usize = 1 << 20;
/// Bytes of the stream in one zstd frame: twice the window of the default level.
const ZSTD_BLOCK: usize = 4 << 20;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, which everything reads, at a level from 1 (fast) to 9 (small).
    Gzip(u8),
    /// zstd, which Docker reads since 23.0 and Podman since 1.8, at a level from 1 (fast) to 19 (small).
    Zstd(u8),
}

impl Compression {
    /// gzip at the level after which more time buys little: on a Debian root of 984 MB and two processors, levels 1, 2,
    /// 3, 6 and 9 gave 448, 368, 352, 341 and 332 MB in 5.2, 7.0, 7.6, 12 and 26 s.
    pub const GZIP: Compression = Compression::Gzip(2);
    /// zstd at its own default level: 316 MB in 3.0 s where gzip was measured; levels 1, 6 and 9 gave 358, 296 and 288 MB
    /// in 2.2, 8.4 and 10 s.
    pub const ZSTD: Compression = Compression::Zstd(3);

    /// The media type of a layer compressed so (OCI image specification, media-types.md).
    pub fn media_type(self) -> &'static str {
        match self {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip(_) => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd(_) => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

impl Default for Compression {
    fn default() -> Compression {
        Compression::GZIP
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::None => f.write_str("none"),
            Compression::Gzip(level) => write!(f, "gzip:{level}"),
            Compression::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

impl From<Compression> for String {
    fn from(compression: Compression) -> String {
        compression.to_string()
    }
}

impl TryFrom<String> for Compression {
    type Error = UserError;

    fn try_from(text: String) -> Result<Compression, UserError> {
        text.parse()
    }
}

impl FromStr for Compression {
    type Err = UserError;

    /// Reads `none`, `gzip`, `zstd`, `gzip:LEVEL` or `zstd:LEVEL`.
    fn from_str(text: &str) -> Result<Compression, UserError> {
        let wrong = || {
            UserError::usage(format!("`{text}` is not a compression"))
                .hint("one of: none, gzip, gzip:1 to gzip:9, zstd, zstd:1 to zstd:19")
        };
        let (codec, level) = match text.split_once(':') {
            Some((codec, level)) => (codec, Some(level.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        match (codec, level) {
            ("none", None) => Ok(Compression::None),
            ("gzip", None) => Ok(Compression::GZIP),
            ("gzip", Some(level @ 1..=9)) => Ok(Compression::Gzip(level)),
            ("zstd", None) => Ok(Compression::ZSTD),
            ("zstd", Some(level @ 1..=19)) => Ok(Compression::Zstd(level)),
            _ => Err(wrong()),
        }
    }
}

/// A layer as an image carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedLayer {
    /// The digest of the layer's tar stream.
    pub diff_id: Digest,
    /// The blob in the store: the stream, compressed.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// How it is compressed.
    pub compression: Compression,
}

impl CachedResult for PackedLayer {
    const KIND: &'static str = "packed-layer";

    fn blobs(&self) -> Vec<Digest> {
        vec![self.digest]
    }
}

/// Compresses a layer of the store into the store, unless that was done before; `step` advances by the bytes of its
/// tar stream.
///
/// # Errors
/// When the store no longer has the layer whole, or cannot be written.
pub fn pack_layer(store: &Store, layer: &StoredLayer, compression: Compression, step: &Step) -> Result<PackedLayer> {
    if compression == Compression::None {
        step.advance(layer.size);
        return Ok(PackedLayer { diff_id: layer.tar, digest: layer.tar, size: layer.size, compression });
    }
    let key = Digest::of(format!("packed-layer\n{FORMAT}\n{compression}\n{}\n", layer.tar));
    let (packed, known) = store.memoise(&key, || {
        let tar = store.read_blob(&layer.tar)?.ok_or_else(|| lost_blob(&layer.tar))?;
        ensure!(tar.size() == layer.size, lost_blob(&layer.tar));
        let mut blob = store.write_blob()?;
        let threads = thread::available_parallelism().map_or(1, usize::from);
        compress(&mut Advancing { inner: tar, step }, &mut blob, compression, threads)
            .map_err(|error| match error.kind() {
                io::ErrorKind::InvalidData => anyhow::Error::new(error).context(lost_blob(&layer.tar)),
                _ => error.into(),
            })
            .with_context(|| format!("compressing the layer {}", layer.tar))?;
        let (digest, size) = blob.finish()?;
        Ok(PackedLayer { diff_id: layer.tar, digest, size, compression })
    })?;
    if known {
        step.advance(layer.size);
    }
    Ok(packed)
}

struct Advancing<'a, R> {
    inner: R,
    step: &'a Step,
}

impl<R: Read> Read for Advancing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.step.advance(count as u64);
        Ok(count)
    }
}

/// Compresses `input` into `output` on `threads` threads, holding a few blocks for each in memory. The bytes are the
/// same for any number of threads.
///
/// # Errors
/// What `input` or `output` fails with.
pub fn compress(
    input: &mut dyn Read,
    output: &mut dyn Write,
    compression: Compression,
    threads: usize,
) -> io::Result<()> {
    match compression {
        Compression::None => io::copy(input, output).map(drop),
        Compression::Gzip(level) => gzip(input, output, level, threads),
        Compression::Zstd(level) => {
            in_blocks(input, output, ZSTD_BLOCK, threads, || ZstdBlocks::new(level), |_| ()).map(drop)
        }
    }
}

fn gzip(input: &mut dyn Read, output: &mut dyn Write, level: u8, threads: usize) -> io::Result<()> {
    // Deflate, no flags, no time, no word on the level, unknown operating system.
    output.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255])?;
    let mut sum = Crc::new();
    in_blocks(input, output, GZIP_BLOCK, threads, || Ok(GzipBlocks::new(level)), |crc| sum.combine(&crc))?;
    // An empty final block.
    output.write_all(&[3, 0])?;
    output.write_all(&sum.sum().to_le_bytes())?;
    output.write_all(&sum.amount().to_le_bytes())
}

/// Compresses single blocks, as one thread does.
trait Blocks {
    /// The result for a block besides its compressed bytes.
    type Note: Send;

    fn pack(&mut self, block: &[u8]) -> io::Result<(Vec<u8>, Self::Note)>;
}

struct GzipBlocks(Compress);

impl GzipBlocks {
    fn new(level: u8) -> GzipBlocks {
        GzipBlocks(Compress::new(flate2::Compression::new(level.into()), false))
    }
}

impl Blocks for GzipBlocks {
    type Note = Crc;

    fn pack(&mut self, block: &[u8]) -> io::Result<(Vec<u8>, Crc)> {
        self.0.reset();
        let mut packed = Vec::with_capacity(block.len() / 2 + 64);
        loop {
            let done = self.0.total_in() as usize;
            let status = self.0.compress_vec(&block[done..], &mut packed, FlushCompress::Sync)?;
            // A flush is complete when it leaves room in the output (zlib manual, `deflate`).
            if status == Status::BufError || packed.len() < packed.capacity() {
                break;
            }
            packed.reserve(packed.capacity());
        }
        if self.0.total_in() != block.len() as u64 {
            return Err(io::Error::other("deflate did not take all of a block"));
        }
        let mut crc = Crc::new();
        crc.update(block);
        Ok((packed, crc))
    }
}

struct ZstdBlocks(zstd::bulk::Compressor<'static>);

impl ZstdBlocks {
    fn new(level: u8) -> io::Result<ZstdBlocks> {
        let mut compressor = zstd::bulk::Compressor::new(level.into())?;
        compressor.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true))?;
        Ok(ZstdBlocks(compressor))
    }
}

impl Blocks for ZstdBlocks {
    type Note = ();

    fn pack(&mut self, block: &[u8]) -> io::Result<(Vec<u8>, ())> {
        Ok((self.0.compress(block)?, ()))
    }
}

type Packed<N> = io::Result<(Vec<u8>, N)>;
/// A block, and where to send its result.
type Job<N> = (Vec<u8>, SyncSender<Packed<N>>);

/// Cuts `input` into blocks of `size` bytes, has them compressed by `threads` threads, writes them in order, and hands
/// each block's note to `noted`. Empty input is one empty block.
fn in_blocks<B: Blocks>(
    input: &mut dyn Read,
    output: &mut dyn Write,
    size: usize,
    threads: usize,
    blocks: impl Fn() -> io::Result<B> + Sync,
    mut noted: impl FnMut(B::Note),
) -> io::Result<()> {
    let threads = threads.max(1);
    let (jobs, queue) = sync_channel::<Job<B::Note>>(threads);
    let queue = Mutex::new(queue);
    let mut write = |packed: Receiver<Packed<B::Note>>| -> io::Result<()> {
        let (bytes, note) = packed.recv().unwrap_or_else(|_| Err(io::Error::other("a compressing thread died")))?;
        noted(note);
        output.write_all(&bytes)
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(&queue, &blocks));
        }
        // Dropped on every return, which ends the threads.
        let jobs = jobs;
        let mut pending = VecDeque::new();
        for first in std::iter::once(true).chain(std::iter::repeat(false)) {
            let block = read_block(input, size)?;
            if block.is_empty() && !first {
                break;
            }
            let (send, receive) = sync_channel(1);
            jobs.send((block, send)).map_err(|_| io::Error::other("all compressing threads died"))?;
            pending.push_back(receive);
            if pending.len() > 2 * threads
                && let Some(oldest) = pending.pop_front()
            {
                write(oldest)?;
            }
        }
        pending.into_iter().try_for_each(&mut write)
    })
}

fn work<B: Blocks>(queue: &Mutex<Receiver<Job<B::Note>>>, blocks: impl Fn() -> io::Result<B>) {
    let mut compressor = blocks();
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((block, done)) = job else { return };
        let packed = match &mut compressor {
            Ok(compressor) => compressor.pack(&block),
            Err(error) => Err(io::Error::other(error.to_string())),
        };
        // Nobody listens any more when the writer failed.
        let _ = done.send(packed);
    }
}

/// Reads exactly `size` bytes, or fewer at the end.
fn read_block(input: &mut dyn Read, size: usize) -> io::Result<Vec<u8>> {
    let mut block = Vec::with_capacity(size);
    input.take(size as u64).read_to_end(&mut block)?;
    Ok(block)
}

#[cfg(test)]
mod tests;
