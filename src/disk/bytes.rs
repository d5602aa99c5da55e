//! Fixed-width fields in byte blocks, the two checksums that disk formats use, and the unit of writing.

/// The unit in which volumes are written, in bytes: a cluster of qcow2 images, and the smallest hole of raw ones.
pub(super) const CLUSTER: u64 = 64 << 10;

/// Whether `bytes` are all zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// Fields at known offsets of a block.
pub(super) trait Fields {
    /// Puts a field's bytes at offset `at`: `block.put(0x38, 0xef53u16.to_le_bytes())`.
    fn put<const N: usize>(&mut self, at: usize, field: [u8; N]);
    /// The bytes of the field at offset `at`.
    fn field<const N: usize>(&self, at: usize) -> [u8; N];
}

impl Fields for [u8] {
    fn put<const N: usize>(&mut self, at: usize, field: [u8; N]) {
        self[at..at + N].copy_from_slice(&field);
    }

    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self[at..at + N]);
        field
    }
}

/// A reflected 32-bit cyclic redundancy check, eight bytes at a time.
pub(super) struct Crc([[u32; 256]; 8]);

/// CRC-32 of IEEE 802.3, which GPT uses.
pub(super) static CRC32: Crc = Crc::new(0xedb8_8320);
/// CRC-32C (Castagnoli), which ext4 uses.
pub(super) static CRC32C: Crc = Crc::new(0x82f6_3b78);

impl Crc {
    const fn new(polynomial: u32) -> Crc {
        let mut tables = [[0; 256]; 8];
        let mut byte = 0;
        while byte < 256 {
            let mut value = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ polynomial } else { value >> 1 };
                bit += 1;
            }
            tables[0][byte] = value;
            byte += 1;
        }
        let mut table = 1;
        while table < 8 {
            let mut byte = 0;
            while byte < 256 {
                let below = tables[table - 1][byte];
                tables[table][byte] = below >> 8 ^ tables[0][(below & 0xff) as usize];
                byte += 1;
            }
            table += 1;
        }
        Crc(tables)
    }

    /// The register after `bytes`, without the inversions that some formats put before and after.
    pub(super) fn update(&self, mut register: u32, bytes: &[u8]) -> u32 {
        let tables = &self.0;
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            let low = register ^ u32::from_le_bytes(word.field(0));
            register = tables[7][(low & 0xff) as usize]
                ^ tables[6][(low >> 8 & 0xff) as usize]
                ^ tables[5][(low >> 16 & 0xff) as usize]
                ^ tables[4][(low >> 24) as usize]
                ^ tables[3][usize::from(word[4])]
                ^ tables[2][usize::from(word[5])]
                ^ tables[1][usize::from(word[6])]
                ^ tables[0][usize::from(word[7])];
        }
        for &byte in words.remainder() {
            register = register >> 8 ^ tables[0][((register ^ u32::from(byte)) & 0xff) as usize];
        }
        register
    }

    /// The checksum with both inversions.
    pub(super) fn checksum(&self, bytes: &[u8]) -> u32 {
        !self.update(!0, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_have_the_catalogued_check_values() {
        assert_eq!(CRC32.checksum(b"123456789"), 0xcbf4_3926);
        assert_eq!(CRC32C.checksum(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_checksum_can_be_taken_in_parts() {
        let bytes: Vec<u8> = (0..100).collect();
        for cut in 0..100 {
            let parts = CRC32C.update(CRC32C.update(!0, &bytes[..cut]), &bytes[cut..]);
            assert_eq!(parts, CRC32C.update(!0, &bytes));
        }
    }
}
