//! 4000 zeros and ones whose mean changes at 2000 from .2 to .5, from a linear congruential generator.

pub(super) fn changing() -> impl Iterator<Item = f64> {
    let mut state = 42_u32;
    (0..4000).map(move |at| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let share = f64::from(state) / 4_294_967_296.0;
        let limit = if at < 2000 { 0.2 } else { 0.5 };
        f64::from(u8::from(share < limit))
    })
}
