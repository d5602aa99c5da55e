use super::*;
use crate::{
    exec::Run,
    progress::{Progress, Style, Unit},
    rootfs::{Entry, tar::LayerWriter},
};
use proptest::prelude::*;
use std::fs;

const CODECS: [Compression; 4] = [Compression::Gzip(1), Compression::GZIP, Compression::Zstd(1), Compression::ZSTD];

fn step() -> Step {
    Progress::new(Style::Silent).step("compress", 0, Unit::Bytes)
}

fn packed(bytes: &[u8], compression: Compression, threads: usize) -> Vec<u8> {
    let mut output = Vec::new();
    compress(&mut &bytes[..], &mut output, compression, threads).unwrap();
    output
}

fn unpacked(bytes: &[u8], compression: Compression) -> Vec<u8> {
    let mut output = Vec::new();
    match compression {
        Compression::None => output.extend_from_slice(bytes),
        // Takes the first member only and leaves the rest: the whole must be one member.
        Compression::Gzip(_) => {
            let mut rest = bytes;
            flate2::bufread::GzDecoder::new(&mut rest).read_to_end(&mut output).map(drop).unwrap();
            assert!(rest.is_empty(), "{} bytes after the member", rest.len());
        }
        Compression::Zstd(_) => drop(zstd::Decoder::new(bytes).unwrap().read_to_end(&mut output).unwrap()),
    }
    output
}

/// Bytes that compress somewhat: words of a small vocabulary, different in every place.
fn text(size: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(size + 16);
    while bytes.len() < size {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.extend_from_slice(format!("{:x} ", state >> 18).as_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// Bytes that do not compress.
fn noise(size: usize) -> Vec<u8> {
    (0u64..).flat_map(|i| *Digest::of(i.to_le_bytes()).bytes()).take(size).collect()
}

#[test]
fn what_lies_around_a_block_border_comes_back() {
    for compression in CODECS {
        let block = if let Compression::Gzip(_) = compression { GZIP_BLOCK } else { ZSTD_BLOCK };
        for size in [0, 1, block - 1, block, block + 1, 2 * block, 3 * block + 7] {
            for bytes in [text(size, 1), noise(size), vec![0; size]] {
                let once = packed(&bytes, compression, 1);
                assert!(unpacked(&once, compression) == bytes, "{compression}, {size} bytes");
                assert!(packed(&bytes, compression, 3) == once, "{compression}, {size} bytes, 3 threads");
            }
        }
    }
}

#[test]
fn other_programs_read_it() {
    let bytes = [text(GZIP_BLOCK + 5, 9), noise(GZIP_BLOCK), vec![0; 3 * ZSTD_BLOCK]].concat();
    for (program, compression) in [("gzip", Compression::GZIP), ("zstd", Compression::ZSTD)] {
        if !crate::testing::require_program(program) {
            continue;
        }
        let said = Run::new(program).args(["-d", "-c"]).input(packed(&bytes, compression, 2)).capture().unwrap();
        assert!(said.stdout == bytes, "{program}");
    }
}

/// Reads a few bytes at a time, never as many as asked for.
struct Dribble<'a>(&'a [u8], usize);

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(self.0.len()).min(self.1);
        buffer[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        self.1 = self.1 % 70_000 + 4_099;
        Ok(count)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_bytes_depend_on_the_stream_alone(
        pieces in prop::collection::vec((0usize..2_000_000, any::<u32>(), 0u8..3), 0..5),
        threads in 1usize..6,
        first_read in 1usize..100_000,
    ) {
        let bytes: Vec<u8> = pieces
            .into_iter()
            .flat_map(|(size, seed, kind)| match kind {
                0 => text(size, seed),
                1 => noise(size),
                _ => vec![seed as u8; size],
            })
            .collect();
        for compression in [Compression::Gzip(1), Compression::Zstd(1)] {
            let once = packed(&bytes, compression, 1);
            prop_assert!(unpacked(&once, compression) == bytes);
            let mut again = Vec::new();
            compress(&mut Dribble(&bytes, first_read), &mut again, compression, threads).unwrap();
            prop_assert!(again == once);
        }
    }
}

/// The bytes that were made when [`FORMAT`] got its number. When this fails because a codec changed, raise [`FORMAT`]
/// with the new digests: two machines with the same program must not disagree because one remembers older bytes.
#[test]
fn the_bytes_are_those_of_this_format() {
    assert_eq!(FORMAT, 1);
    let bytes = [text(3 << 20, 7), noise(100_000), vec![0; 5 << 20]].concat();
    let digests = CODECS.map(|codec| Digest::of(packed(&bytes, codec, 2)).hex());
    assert_eq!(
        digests,
        [
            "b3c5e6b292370777635e46cf6efcc1272fe46856b85e8027e189e696b8e7ba1d",
            "2948fb22ba9636d0790a22c4b6f1a8504b39e0ae249c86c11a20a3e57954149a",
            "d9a5b5987ffd24230fa7a47f85e53fc388baca060813647493e5f71ae8a9f364",
            "0fa4bd7e085f4434893e6986de13d2bb8070965f6b2c8f1fabb745209ae8cb21",
        ]
    );
}

struct Broken(usize);

impl Read for Broken {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::Error::other("cut off"));
        }
        let count = buffer.len().min(self.0);
        buffer[..count].fill(7);
        self.0 -= count;
        Ok(count)
    }
}

impl Write for Broken {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or_else(|| io::Error::other("disk full"))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_failing_end_stops_all_threads_and_is_told() {
    for codec in CODECS {
        let error = compress(&mut Broken(20 << 20), &mut io::sink(), codec, 4).unwrap_err();
        assert_eq!(error.to_string(), "cut off");
        let error = compress(&mut &noise(20 << 20)[..], &mut Broken(9 << 20), codec, 4).unwrap_err();
        assert_eq!(error.to_string(), "disk full");
    }
}

fn stored() -> (tempfile::TempDir, Store, StoredLayer) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let mut writer = LayerWriter::new(&store).unwrap();
    let entry = Entry::directory(0o644, 0);
    writer.set_file("/a".parse().unwrap(), entry, 3_000_000, &mut &text(3_000_000, 3)[..]).unwrap();
    let (stored, _) = writer.finish().unwrap();
    (folder, store, stored)
}

#[test]
fn a_layer_is_compressed_once() {
    let (_folder, store, layer) = stored();
    let first = pack_layer(&store, &layer, Compression::GZIP, &step()).unwrap();
    assert_eq!(first.diff_id, layer.tar);
    let tar = unpacked(&store.get_blob(&first.digest).unwrap().unwrap(), Compression::GZIP);
    assert_eq!(Digest::of(&tar), layer.tar);
    // Were it compressed again, the missing stream would be noticed.
    store.drop_blob(&layer.tar);
    assert_eq!(pack_layer(&store, &layer, Compression::GZIP, &step()).unwrap(), first);
}

#[test]
fn every_compression_has_its_own_outcome() {
    let (_folder, store, layer) = stored();
    let mut digests: Vec<_> = ["none", "gzip", "gzip:9", "zstd"]
        .map(|text| text.parse().unwrap())
        .map(|codec| pack_layer(&store, &layer, codec, &step()).unwrap().digest)
        .into();
    assert_eq!(digests[0], layer.tar);
    digests.dedup();
    assert_eq!(digests.len(), 4);
}

#[test]
fn a_damaged_layer_is_dropped_and_the_way_out_told() {
    let (_folder, store, layer) = stored();
    let path = store.blob_path(&layer.tar);
    let mut tar = fs::read(&path).unwrap();
    tar[1_000_000] ^= 1;
    fs::write(&path, tar).unwrap();
    let error = pack_layer(&store, &layer, Compression::GZIP, &step()).unwrap_err();
    let digest = layer.tar;
    assert_eq!(
        crate::error::report(&error),
        format!(
            "error: compressing the layer {digest}\n  because: the blob {digest} is missing from the store, or was damaged\n  \
             because: the store's blob {digest} was damaged and has been dropped\n\n\
             hint: build again: what is missing is made again"
        )
    );
    assert_eq!(store.blob_size(&layer.tar), None);
    let error = pack_layer(&store, &layer, Compression::GZIP, &step()).unwrap_err();
    assert!(error.to_string().contains("is missing from the store"), "{error}");
}

#[test]
fn a_compression_reads_back_what_it_prints() {
    for text in ["none", "gzip:1", "zstd:19"] {
        assert_eq!(text.parse::<Compression>().unwrap().to_string(), text);
    }
    for text in ["", "gzip:0", "gzip:10", "zstd:20", "none:1", "xz", "gzip:x"] {
        assert_eq!(text.parse::<Compression>().unwrap_err().message, format!("`{text}` is not a compression"));
    }
}
