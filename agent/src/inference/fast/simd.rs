//! Vectors of the widest instruction set that this processor has, chosen when the program runs.

use pulp::{Arch, Scalar128b, Simd, WithSimd};

/// A computation written once for every instruction set. Everything below `run` is
/// `#[inline(always)]`: what is not inlined is not compiled for the instruction set either.
pub(super) trait Vectorised {
    type Output;

    fn run<S: Simd, const FUSED: bool>(self, lanes: Lanes<S, FUSED>) -> Self::Output;
}

/// The operations of an instruction set; `FUSED` if it multiplies and adds in one.
#[derive(Clone, Copy)]
pub(super) struct Lanes<S, const FUSED: bool>(S);

impl<S: Simd, const FUSED: bool> Lanes<S, FUSED> {
    /// Numbers in a vector.
    pub(super) const WIDTH: usize = S::F32_LANES;

    #[inline(always)]
    pub(super) fn splat(self, value: f32) -> S::f32s {
        self.0.splat_f32s(value)
    }

    #[inline(always)]
    pub(super) fn add(self, a: S::f32s, b: S::f32s) -> S::f32s {
        self.0.add_f32s(a, b)
    }

    #[inline(always)]
    pub(super) fn mul(self, a: S::f32s, b: S::f32s) -> S::f32s {
        self.0.mul_f32s(a, b)
    }

    /// `a · b + c`.
    #[inline(always)]
    pub(super) fn mul_add(self, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
        if FUSED {
            self.0.mul_add_e_f32s(a, b, c)
        } else {
            self.0.add_f32s(self.0.mul_f32s(a, b), c)
        }
    }

    /// The larger; where the values are not numbers, they stay so.
    #[inline(always)]
    pub(super) fn max(self, bound: S::f32s, values: S::f32s) -> S::f32s {
        self.0.max_f32s(bound, values)
    }

    /// The smaller; where the values are not numbers, they stay so.
    #[inline(always)]
    pub(super) fn min(self, bound: S::f32s, values: S::f32s) -> S::f32s {
        self.0.min_f32s(bound, values)
    }

    /// The first numbers of a slice, the rest zero if it is shorter than a vector.
    #[inline(always)]
    pub(super) fn load(self, from: &[f32]) -> S::f32s {
        match from.get(..Self::WIDTH) {
            Some(whole) => S::as_simd_f32s(whole).0[0],
            None => self.0.partial_load_f32s(from),
        }
    }

    /// Puts a vector into a slice, as much of it as there is room for.
    #[inline(always)]
    pub(super) fn store(self, to: &mut [f32], values: S::f32s) {
        match to.get_mut(..Self::WIDTH) {
            Some(whole) => S::as_mut_simd_f32s(whole).0[0] = values,
            None => self.0.partial_store_f32s(to, values),
        }
    }
}

/// Whether there are vectors here for whatever processor. There are none for 32-bit ARM, where tract has
/// assembler for NEON.
pub(super) const AVAILABLE: bool = !cfg!(target_arch = "arm");

/// Runs a computation with the instruction set of this processor.
pub(super) fn vectorised<V: Vectorised>(computation: V) -> V::Output {
    #[cfg(test)]
    match narrow::chosen() {
        narrow::Set::Widest => {}
        narrow::Set::Portable => return Scalar128b.vectorize(Separate(computation)),
        #[cfg(target_arch = "x86_64")]
        narrow::Set::Avx2 => {
            if let Some(avx2) = pulp::x86::V3::try_new() {
                return Simd::vectorize(avx2, Fused(computation));
            }
        }
    }
    match Arch::new() {
        Arch::Scalar => Scalar128b.vectorize(Separate(computation)),
        #[allow(unreachable_patterns, reason = "some processors have nothing else")]
        wider => wider.dispatch(Fused(computation)),
    }
}

struct Fused<V>(V);

impl<V: Vectorised> WithSimd for Fused<V> {
    type Output = V::Output;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> V::Output {
        self.0.run::<S, true>(Lanes(simd))
    }
}

struct Separate<V>(V);

impl<V: Vectorised> WithSimd for Separate<V> {
    type Output = V::Output;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> V::Output {
        self.0.run::<S, false>(Lanes(simd))
    }
}

/// Narrower instruction sets than this processor's, for tests.
#[cfg(test)]
pub(super) mod narrow {
    use std::cell::Cell;

    #[derive(Debug, Clone, Copy)]
    pub(in crate::inference::fast) enum Set {
        Widest,
        #[cfg(target_arch = "x86_64")]
        Avx2,
        Portable,
    }

    impl Set {
        pub(in crate::inference::fast) const ALL: &[Self] = &[
            Self::Widest,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2,
            Self::Portable,
        ];
    }

    thread_local! {
        static CHOSEN: Cell<Set> = const { Cell::new(Set::Widest) };
    }

    pub(super) fn chosen() -> Set {
        CHOSEN.get()
    }

    /// Does something on this thread with an instruction set.
    pub(in crate::inference::fast) fn with<T>(set: Set, work: impl FnOnce() -> T) -> T {
        CHOSEN.set(set);
        let result = work();
        CHOSEN.set(Set::Widest);
        result
    }
}
