//! A weighted draw without replacement from a stream whose length nobody knows. Pure: the seed is an
//! argument.
//!
//! A-ES of P. S. Efraimidis and P. G. Spirakis, *Weighted random sampling with a reservoir*,
//! Information Processing Letters 97 (2006): each item gets the key u^(1/w) of a fresh uniform u, and
//! the largest keys are kept. Compared here is ln(u)/w, which orders the same and does not underflow.

/// At most `room` items, drawn by weight from all that were offered.
#[derive(Debug)]
pub(crate) struct Reservoir<T> {
    room: usize,
    state: u64,
    kept: Vec<(f64, T)>,
    /// Where in `kept` the smallest key is, once it is full.
    least: usize,
}

impl<T> Reservoir<T> {
    /// An empty one; the same seed and offers keep the same items.
    pub(crate) fn new(room: usize, seed: u64) -> Self {
        Self {
            room,
            state: seed,
            kept: Vec::new(),
            least: 0,
        }
    }

    /// Offers an item of a weight above zero; it is made only if it is kept.
    pub(crate) fn offer(&mut self, weight: f64, item: impl FnOnce() -> T) {
        let key = self.uniform().ln() / weight;
        if self.kept.len() < self.room {
            self.kept.push((key, item()));
        } else if let Some(place) = self.kept.get_mut(self.least).filter(|least| key > least.0) {
            *place = (key, item());
        } else {
            return;
        }
        let smallest = self.kept.iter().enumerate();
        let smallest = smallest.min_by(|(_, a), (_, b)| a.0.total_cmp(&b.0));
        self.least = smallest.map_or(0, |(at, _)| at);
    }

    /// What was kept, the largest key first.
    pub(crate) fn into_kept(mut self) -> Vec<T> {
        self.kept.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        self.kept.into_iter().map(|(_, item)| item).collect()
    }

    /// A number in (0, 1]: SplitMix64 (G. L. Steele, D. Lea and C. H. Flood, 2014), its upper 53 bits.
    #[allow(clippy::cast_precision_loss)] // 53 bits are exact
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((z >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(room: usize, seed: u64, weights: &[f64]) -> Vec<usize> {
        let mut reservoir = Reservoir::new(room, seed);
        for (at, weight) in weights.iter().enumerate() {
            reservoir.offer(*weight, || at);
        }
        reservoir.into_kept()
    }

    #[test]
    fn the_same_seed_draws_the_same() {
        let weights = vec![1.0; 1000];
        assert_eq!(drawn(8, 5, &weights), drawn(8, 5, &weights));
        assert_ne!(drawn(8, 5, &weights), drawn(8, 6, &weights));
        assert_eq!(drawn(8, 5, &weights[..3]).len(), 3);
        let mut eight = drawn(8, 5, &weights);
        eight.sort_unstable();
        eight.dedup();
        assert_eq!(eight.len(), 8, "without replacement");
    }

    #[test]
    fn equal_weights_draw_every_item_equally_often() {
        let (items, room, draws) = (20, 4, 20_000_u64);
        let mut times = vec![0_u32; items];
        for seed in 0..draws {
            for at in drawn(room, seed, &vec![1.0; items]) {
                times[at] += 1;
            }
        }
        // Each with probability 1/5: 4000 times, standard deviation 57.
        for (at, n) in times.iter().enumerate() {
            assert!((3700..=4300).contains(n), "item {at}: {n}");
        }
    }

    #[test]
    fn the_first_draw_is_by_weight() {
        let weights = [1.0, 2.0, 7.0];
        let mut times = [0_u32; 3];
        for seed in 0..20_000 {
            times[drawn(1, seed, &weights)[0]] += 1;
        }
        // 10 %, 20 %, 70 % of 20,000; four standard deviations are 170, 226, 259.
        assert!((1830..=2170).contains(&times[0]), "{times:?}");
        assert!((3774..=4226).contains(&times[1]), "{times:?}");
        assert!((13_741..=14_259).contains(&times[2]), "{times:?}");
    }

    #[test]
    fn the_second_of_two_is_by_weight_among_the_rest() {
        let mut both_light = 0_u32;
        for seed in 0..20_000 {
            let mut two = drawn(2, seed, &[1.0, 1.0, 8.0]);
            two.sort_unstable();
            both_light += u32::from(two == [0, 1]);
        }
        // 2 · 1/10 · 1/9 = 1/45 of 20,000: 444, standard deviation 21.
        assert!((360..=530).contains(&both_light), "{both_light}");
    }
}
