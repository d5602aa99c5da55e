//! UUIDs that follow from what is built.

use crate::model::{Digest, Sha256};
use std::fmt;

/// A universally unique identifier, in the order in which it is written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// The UUID with these 128 bits: `Uuid::of(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b)`.
    pub const fn of(bits: u128) -> Uuid {
        Uuid(bits.to_be_bytes())
    }

    /// The identifier for `role` and `seed`: always the same for the same two.
    ///
    /// It is of version 8, the one for methods of one's own (RFC 9562, section 5.8); the method is SHA-256.
    pub fn derive(seed: &Digest, role: &str) -> Uuid {
        let mut hasher = Sha256::new();
        hasher.update(seed.bytes());
        hasher.update(role.as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hasher.finish().bytes()[..16]);
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Uuid(bytes)
    }

    /// As GPT stores it: the first three fields little-endian (UEFI specification 2.10, appendix A). Its own inverse.
    pub(super) fn mixed_endian(mut self) -> Uuid {
        self.0[..4].reverse();
        self.0[4..6].reverse();
        self.0[6..8].reverse();
        self
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_identifier_depends_on_seed_and_role_alone() {
        let seed = Digest::of("plan");
        let root = Uuid::derive(&seed, "root");
        assert_eq!(root, Uuid::derive(&seed, "root"));
        assert_ne!(root, Uuid::derive(&seed, "esp"));
        assert_ne!(root, Uuid::derive(&Digest::of("another"), "root"));
        assert_eq!(root.to_string().as_bytes()[14], b'8', "version 8: {root}");
    }

    #[test]
    fn an_identifier_prints_as_it_is_written() {
        let esp = Uuid::of(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b);
        assert_eq!(esp.to_string(), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(esp.mixed_endian().0[..8], [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11]);
    }
}
