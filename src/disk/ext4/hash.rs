//! The half-MD4 hash of names in directories (Linux, fs/ext4/hash.c; Documentation, "Hash Tree Directories").

use super::super::{bytes::Fields as _, uuid::Uuid};

const ROUNDS: [(u32, [(usize, u32); 8]); 3] = [
    (0, [(0, 3), (1, 7), (2, 11), (3, 19), (4, 3), (5, 7), (6, 11), (7, 19)]),
    (0x5a82_7999, [(1, 3), (3, 5), (5, 9), (7, 13), (0, 3), (2, 5), (4, 9), (6, 13)]),
    (0x6ed9_eba1, [(3, 3), (7, 9), (2, 11), (6, 15), (1, 3), (5, 9), (0, 11), (4, 15)]),
];

/// Stands for the end of a directory, so no name may hash to it.
const END: u32 = 0x7fff_ffff << 1;

/// The hash of a name, whose lowest bit is zero, and the one that orders names of equal hashes.
pub(super) fn half_md4(name: &[u8], seed: Uuid) -> (u32, u32) {
    let mut state = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    if seed != Uuid::default() {
        state = std::array::from_fn(|word| u32::from_le_bytes(seed.0.field(4 * word)));
    }
    for start in (0..name.len()).step_by(32) {
        transform(&mut state, &words(&name[start..]));
    }
    let hash = state[1] & !1;
    (if hash == END { END - 2 } else { hash }, state[2])
}

/// The next 32 bytes of a name as words, the rest filled with its length. Bytes count as signed.
fn words(name: &[u8]) -> [u32; 8] {
    let length = name.len() as u32;
    let filler = length | length << 8;
    let filler = filler | filler << 16;
    let mut words = [filler; 8];
    for (chunk, word) in name.chunks(4).zip(&mut words) {
        // A word that the name fills in part keeps of the filler what is shifted to its front.
        *word = chunk.iter().fold(filler, |word, byte| (*byte as i8 as u32).wrapping_add(word << 8));
    }
    words
}

fn transform(state: &mut [u32; 4], input: &[u32; 8]) {
    let mut turning = *state;
    for (round, (constant, steps)) in ROUNDS.iter().enumerate() {
        for (word, shift) in steps {
            let [a, b, c, d] = turning;
            let mixed = match round {
                0 => d ^ (b & (c ^ d)),
                1 => (b & c).wrapping_add((b ^ c) & d),
                _ => b ^ c ^ d,
            };
            let a = a.wrapping_add(mixed).wrapping_add(input[*word]).wrapping_add(*constant).rotate_left(*shift);
            turning = [d, a, b, c];
        }
    }
    for (word, turned) in state.iter_mut().zip(turning) {
        *word = word.wrapping_add(turned);
    }
}
