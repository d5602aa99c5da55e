//! Writes a map in one pass to every format at once.
//!
//! The volume is cut into chunks. Each worker fills every n-th of them from the store, checks the contents that begin
//! there, writes the raw image itself and compresses clusters; the calling thread takes their results in turn, so that
//! a qcow2 image has the same bytes whatever the number of workers.

use super::{
    buffer::{Buffer, RawFile},
    bytes::{CLUSTER, is_zero},
    map::{Data, Map, Piece},
    memory::Memory,
    qcow2::{Compression, Compressor, Packed, Writer},
};
use crate::{
    model::{Digest, Sha256},
    rootfs::{Content, tar::Contents},
    store::Store,
};
use anyhow::{Context as _, Result, anyhow, ensure};
use std::{
    fs::File,
    io::{self, BufReader},
    ops::Range,
    sync::{
        Mutex, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
};

/// What a worker takes at a time, and what compressed clusters are remembered by, in bytes.
const CHUNK: u64 = 32 * CLUSTER;
/// Finished chunks that wait in each worker's channel.
const AHEAD: usize = 4;

/// The empty files that an image is written to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outputs<'a> {
    /// Becomes a sparse raw image.
    pub raw: Option<&'a File>,
    /// Becomes a qcow2 image.
    pub qcow2: Option<(&'a File, Compression)>,
}

/// What a worker made of a chunk.
#[derive(Debug, Default)]
struct Filled {
    /// The clusters, if an output needs them compressed.
    packed: Option<Packed>,
    /// All bytes, if an output needs their digest.
    bytes: Buffer,
}

/// Buffers for chunks that are not in use.
type Pool = Mutex<Vec<Buffer>>;

impl Map {
    /// Writes the volume to all of `outputs`, checking every content against its digest. `advance` is called with the
    /// bytes done, whose sum is that of [`Map::ranges`]. Returns the digest of the raw image, if there is one: hashing
    /// a disk takes longer than writing it, and cannot be shared, so it begins with the first bytes.
    ///
    /// # Errors
    /// When a content is missing or damaged, or an output cannot be written. The outputs are then useless.
    pub fn write(&self, store: &Store, outputs: Outputs<'_>, advance: &(dyn Fn(u64) + Sync)) -> Result<Option<Digest>> {
        let raw = outputs.raw.map(RawFile::new);
        if let Some(raw) = &raw {
            raw.file().set_len(self.size()).context("writing the raw image")?;
        }
        let mut hasher = outputs.raw.map(|_| RawHasher { hasher: Sha256::new(), position: 0 });
        let mut qcow2 = outputs.qcow2.map(|(file, compression)| Writer::new(file, compression, self.size()));
        let memory = Memory::new(store);
        let pool = Pool::default();
        let chunks = self.chunks();
        let workers = thread::available_parallelism().map_or(1, |count| count.get()).min(chunks.len()).max(1);
        let digest = thread::scope(|scope| {
            let results: Vec<_> = (0..workers)
                .map(|first| {
                    let (sender, receiver) = sync_channel(AHEAD);
                    let chunks = chunks.iter().skip(first).step_by(workers);
                    let (memory, pool, raw) = (&memory, &pool, raw.as_ref());
                    let compression = outputs.qcow2.map(|(_, compression)| compression);
                    scope.spawn(move || {
                        let contents = Contents::new(store);
                        Worker { map: self, contents, raw, compression, memory, pool }.run(chunks, &sender);
                    });
                    receiver
                })
                .collect();
            for (index, chunk) in chunks.iter().enumerate() {
                // Dropping the receivers ends the workers.
                let filled = results[index % workers]
                    .recv()
                    .map_err(|_| anyhow!("a thread that writes the image panicked"))??;
                if let (Some(qcow2), Some(packed)) = (&mut qcow2, &filled.packed) {
                    let first = chunk.start / CLUSTER;
                    packed.clusters().try_for_each(|(index, cluster)| qcow2.put(first + index, cluster))?;
                }
                if let Some(hasher) = &mut hasher {
                    hasher.update(chunk.start, &filled.bytes);
                }
                pool.lock().unwrap_or_else(PoisonError::into_inner).push(filled.bytes);
                advance(chunk.end - chunk.start);
            }
            qcow2.map_or(Ok(()), Writer::finish)?;
            anyhow::Ok(hasher.map(|hasher| hasher.finish(self.size())))
        })?;
        memory.commit()?;
        Ok(digest)
    }

    /// The allocated ranges, cut at multiples of [`CHUNK`].
    fn chunks(&self) -> Vec<Range<u64>> {
        let mut chunks = Vec::new();
        for range in self.ranges(CLUSTER) {
            let mut start = range.start;
            while start < range.end {
                let end = ((start / CHUNK + 1) * CHUNK).min(range.end);
                chunks.push(start..end);
                start = end;
            }
        }
        chunks
    }
}

/// Hashes a raw image as its chunks come, in order.
struct RawHasher {
    hasher: Sha256,
    position: u64,
}

impl RawHasher {
    fn update(&mut self, start: u64, bytes: &[u8]) {
        self.zeros(start);
        self.hasher.update(bytes);
        self.position += bytes.len() as u64;
    }

    /// Goes on to byte `end` through a hole.
    fn zeros(&mut self, end: u64) {
        static ZEROS: [u8; CLUSTER as usize] = [0; CLUSTER as usize];
        while self.position < end {
            let count = (end - self.position).min(CLUSTER);
            self.hasher.update(&ZEROS[..count as usize]);
            self.position += count;
        }
    }

    fn finish(mut self, size: u64) -> Digest {
        self.zeros(size);
        self.hasher.finish()
    }
}

struct Worker<'a> {
    map: &'a Map,
    contents: Contents,
    raw: Option<&'a RawFile<'a>>,
    compression: Option<Compression>,
    memory: &'a Memory<'a>,
    pool: &'a Pool,
}

impl Worker<'_> {
    /// Fills `chunks` until one fails, or the receiver is gone.
    fn run<'c>(mut self, chunks: impl Iterator<Item = &'c Range<u64>>, results: &SyncSender<Result<Filled>>) {
        let mut compressor = match self.compression.map(Compressor::new).transpose() {
            Ok(compressor) => compressor,
            Err(error) => {
                let _ = results.send(Err(error));
                return;
            }
        };
        for chunk in chunks {
            let done = self.chunk(chunk, compressor.as_mut());
            let failed = done.is_err();
            if results.send(done).is_err() || failed {
                return;
            }
        }
    }

    fn chunk(&mut self, chunk: &Range<u64>, compressor: Option<&mut Compressor>) -> Result<Filled> {
        let pieces = self.map.pieces();
        let first = pieces.partition_point(|piece| piece.end() <= chunk.start);
        let count = pieces[first..].partition_point(|piece| piece.offset < chunk.end);
        let pieces = &pieces[first..first + count];
        let clusters = (chunk.end - chunk.start).div_ceil(CLUSTER) as usize;
        let key = Memory::key(chunk, pieces);
        let known =
            self.compression.map(|compression| self.memory.clusters(&key, compression, clusters)).transpose()?;
        let mut packed = known.flatten();
        if packed.is_some() && self.raw.is_none() {
            return Ok(Filled { packed, bytes: Buffer::default() });
        }
        let mut buffer = self.pool.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        buffer.clear();
        buffer.resize((chunk.end - chunk.start) as usize);
        for piece in pieces {
            self.fill(piece, chunk, &mut buffer)?;
        }
        self.memory.check(&key, &buffer, || pieces.iter().try_for_each(|piece| self.check(piece, chunk, &buffer)))?;
        if let Some(raw) = self.raw {
            write_sparse(raw, chunk.start, &buffer)?;
        }
        if let (None, Some(compressor), Some(compression)) = (&packed, compressor, self.compression) {
            // The last cluster of a volume may be short; qcow2 has whole ones only.
            buffer.resize(clusters * CLUSTER as usize);
            let new = Packed::new(&buffer, compressor)?;
            self.memory.keep_clusters(&key, compression, &new)?;
            packed = Some(new);
        }
        buffer.resize((chunk.end - chunk.start) as usize);
        Ok(Filled { packed, bytes: buffer })
    }

    /// Copies what `piece` has in `chunk` into `buffer`.
    fn fill(&mut self, piece: &Piece, chunk: &Range<u64>, buffer: &mut [u8]) -> Result<()> {
        let (range, skip) = part(piece, chunk);
        let target = &mut buffer[range];
        match &piece.data {
            Data::Bytes(bytes) => target.copy_from_slice(&bytes[skip as usize..][..target.len()]),
            Data::Content(content) => self.contents.read_at(content, skip, target)?,
        }
        Ok(())
    }

    /// Checks the content that begins in `chunk` with `piece`, if one does.
    fn check(&mut self, piece: &Piece, chunk: &Range<u64>, buffer: &[u8]) -> Result<()> {
        let Data::Content(content) = &piece.data else { return Ok(()) };
        let (range, skip) = part(piece, chunk);
        let whole = range.len() as u64 == content.size;
        if skip > 0 || whole && Digest::of(&buffer[range]) == content.digest { Ok(()) } else { self.read(content) }
    }

    /// Reads a content through, which fails if it is damaged.
    fn read(&mut self, content: &Content) -> Result<()> {
        let mut reader = BufReader::with_capacity(CHUNK as usize / 4, self.contents.open(content)?);
        let read = io::copy(&mut reader, &mut io::sink()).context("reading from the store")?;
        ensure!(read == content.size, "a file in the store changed while it was read");
        Ok(())
    }
}

/// Where in `chunk` the part of `piece` lies that is there, and where in the piece's data it begins.
fn part(piece: &Piece, chunk: &Range<u64>) -> (Range<usize>, u64) {
    let start = piece.offset.max(chunk.start);
    let end = piece.end().min(chunk.end);
    ((start - chunk.start) as usize..(end - chunk.start) as usize, piece.skip + (start - piece.offset))
}

/// Writes the clusters of `buffer` that are not zero, those that lie together at once; `start` is the place of the first.
fn write_sparse(raw: &RawFile<'_>, start: u64, buffer: &[u8]) -> Result<()> {
    let full: Vec<bool> = buffer.chunks(CLUSTER as usize).map(|cluster| !is_zero(cluster)).collect();
    let mut at = 0;
    for run in full.chunk_by(|a, b| a == b) {
        let end = (at + run.len() * CLUSTER as usize).min(buffer.len());
        if run[0] {
            raw.write_all_at(&buffer[at..end], start + at as u64).context("writing the raw image")?;
        }
        at = end;
    }
    Ok(())
}
