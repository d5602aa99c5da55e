//! Writes a map in one pass to every format at once.
//!
//! The volume is cut into chunks. Each worker fills every n-th of them from the store, checks the contents that begin
//! there, writes the raw image itself and compresses clusters; the calling thread takes their results in turn, so that
//! a qcow2 image has the same bytes whatever the number of workers.

use super::{
    map::{Data, Map, Piece},
    qcow2::{Compression, Compressor, Packed, Writer},
};
use crate::{
    rootfs::{Content, tar::Contents},
    spec::{Digest, Sha256},
    store::Store,
};
use anyhow::{Context as _, Result, anyhow, ensure};
use std::{
    fs::File,
    io::{self, BufReader},
    ops::Range,
    os::unix::fs::FileExt as _,
    sync::mpsc::{SyncSender, sync_channel},
    thread,
};

/// The unit in which holes are looked for and qcow2 images are compressed, in bytes.
pub(super) const CLUSTER: u64 = 64 << 10;
/// What a worker takes at a time, in bytes.
const CHUNK: u64 = 16 * CLUSTER;
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
    /// The clusters that are not zero, by index, if somebody wants them packed.
    clusters: Vec<(u64, Packed)>,
    /// All bytes, if somebody wants their digest.
    bytes: Vec<u8>,
}

impl Map {
    /// Writes the volume to all of `outputs`, checking every content against its digest. `advance` is told the bytes
    /// done, whose sum is that of [`Map::ranges`]. Returns the digest of the raw image, if there is one: hashing a disk
    /// takes longer than writing it, and cannot be shared, so that it begins with the first bytes.
    ///
    /// # Errors
    /// When a content is gone or damaged, or an output cannot be written. The outputs are then worth nothing.
    pub fn write(&self, store: &Store, outputs: Outputs<'_>, advance: &(dyn Fn(u64) + Sync)) -> Result<Option<Digest>> {
        if let Some(raw) = outputs.raw {
            raw.set_len(self.size()).context("writing the raw image")?;
        }
        let mut hasher = outputs.raw.map(|_| RawHasher { hasher: Sha256::new(), position: 0 });
        let mut qcow2 = outputs.qcow2.map(|(file, compression)| Writer::new(file, compression, self.size()));
        let chunks = self.chunks();
        let workers = thread::available_parallelism().map_or(1, |count| count.get()).min(chunks.len()).max(1);
        thread::scope(|scope| {
            let results: Vec<_> = (0..workers)
                .map(|first| {
                    let (sender, receiver) = sync_channel(AHEAD);
                    let chunks = chunks.iter().skip(first).step_by(workers);
                    scope.spawn(move || Worker::run(self, store, outputs, chunks, &sender));
                    receiver
                })
                .collect();
            for (index, chunk) in chunks.iter().enumerate() {
                // Dropping the receivers ends the workers.
                let filled =
                    results[index % workers].recv().map_err(|_| anyhow!("a thread that writes the image died"))??;
                if let Some(qcow2) = &mut qcow2 {
                    filled.clusters.iter().try_for_each(|(index, cluster)| qcow2.put(*index, cluster))?;
                }
                if let Some(hasher) = &mut hasher {
                    hasher.update(chunk.start, &filled.bytes);
                }
                advance(chunk.end - chunk.start);
            }
            qcow2.map_or(Ok(()), Writer::finish)?;
            Ok(hasher.map(|hasher| hasher.finish(self.size())))
        })
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
    raw: Option<&'a File>,
    compressor: Option<Compressor>,
}

impl<'a> Worker<'a> {
    fn run(
        map: &'a Map,
        store: &Store,
        outputs: Outputs<'a>,
        chunks: impl Iterator<Item = &'a Range<u64>>,
        results: &SyncSender<Result<Filled>>,
    ) {
        let compressor = outputs.qcow2.map(|(_, compression)| Compressor::new(compression)).transpose();
        let mut worker = match compressor {
            Ok(compressor) => Worker { map, contents: Contents::new(store), raw: outputs.raw, compressor },
            Err(error) => {
                let _ = results.send(Err(error));
                return;
            }
        };
        let mut buffer = Vec::with_capacity(CHUNK as usize);
        for chunk in chunks {
            let done = worker.chunk(chunk, &mut buffer);
            let failed = done.is_err();
            if results.send(done).is_err() || failed {
                return;
            }
        }
    }

    fn chunk(&mut self, chunk: &Range<u64>, buffer: &mut Vec<u8>) -> Result<Filled> {
        buffer.clear();
        buffer.resize((chunk.end - chunk.start) as usize, 0);
        let pieces = self.map.pieces();
        let first = pieces.partition_point(|piece| piece.end() <= chunk.start);
        for piece in pieces[first..].iter().take_while(|piece| piece.offset < chunk.end) {
            self.fill(piece, chunk, buffer)?;
        }
        let full: Vec<bool> = buffer.chunks(CLUSTER as usize).map(|cluster| !is_zero(cluster)).collect();
        if let Some(raw) = self.raw {
            write_sparse(raw, chunk.start, buffer, &full)?;
        }
        let bytes = if self.raw.is_some() { buffer.clone() } else { Vec::new() };
        let Some(compressor) = &mut self.compressor else { return Ok(Filled { bytes, ..Filled::default() }) };
        // The last cluster of a volume may be short; qcow2 knows whole ones only.
        buffer.resize(buffer.len().next_multiple_of(CLUSTER as usize), 0);
        let clusters = buffer.chunks(CLUSTER as usize).zip(chunk.start / CLUSTER..).zip(full);
        let clusters = clusters
            .filter(|(_, full)| *full)
            .map(|((cluster, index), _)| Ok((index, compressor.pack(cluster)?)))
            .collect::<Result<_>>()?;
        Ok(Filled { clusters, bytes })
    }

    /// Copies what `piece` has in `chunk` into `buffer`.
    fn fill(&mut self, piece: &Piece, chunk: &Range<u64>, buffer: &mut [u8]) -> Result<()> {
        let start = piece.offset.max(chunk.start);
        let end = piece.end().min(chunk.end);
        let target = &mut buffer[(start - chunk.start) as usize..(end - chunk.start) as usize];
        let skip = piece.skip + (start - piece.offset);
        match &piece.data {
            Data::Bytes(bytes) => target.copy_from_slice(&bytes[skip as usize..][..target.len()]),
            Data::Content(content) => {
                self.contents.read_at(content, skip, target)?;
                let whole = target.len() as u64 == content.size;
                if !whole && skip == 0 || whole && Digest::of(&*target) != content.digest {
                    self.check(content)?;
                }
            }
        }
        Ok(())
    }

    /// Reads a content through, which fails if it is damaged.
    fn check(&mut self, content: &Content) -> Result<()> {
        let mut reader = BufReader::with_capacity(CHUNK as usize / 4, self.contents.open(content)?);
        let read = io::copy(&mut reader, &mut io::sink()).context("reading from the store")?;
        ensure!(read == content.size, "a content of the store changed while it was read");
        Ok(())
    }
}

/// Writes the clusters of `buffer` that are `full`, those that lie together at once; `start` is the place of the first.
fn write_sparse(raw: &File, start: u64, buffer: &[u8], full: &[bool]) -> Result<()> {
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

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}
