//! Random numbers that a seed repeats.

/// `SplitMix64` (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The seed in `DUNLIN_TEST_SEED`, or one from the clock; printed, so that a failure can be
    /// repeated as far as timing allows.
    #[must_use]
    pub fn from_environment(test: &str) -> Self {
        let given = std::env::var("DUNLIN_TEST_SEED");
        let seed = given.ok().and_then(|s| s.parse().ok());
        let seed = seed.unwrap_or_else(|| jiff::Timestamp::now().as_microsecond().unsigned_abs());
        println!("{test}: DUNLIN_TEST_SEED={seed}");
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, n)`, but for a bias below n / 2⁶⁴; 0 for n = 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next_u64() % n.max(1)
    }

    /// A generator of its own.
    #[must_use]
    pub fn split(&mut self) -> Self {
        Self(self.next_u64())
    }
}
