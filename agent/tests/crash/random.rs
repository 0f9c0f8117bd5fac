//! Seeded numbers: the same seed, the same test.

/// xorshift64*; the state must not be 0.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A number below `limit`, which is above 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }
}
