//! Many features at once: Benjamini & Hochberg (1995). Of the features said to have drifted, at most
//! a share alpha has not, on average; tested one by one at .05, fifty quiet features alarm in 92 % of
//! all windows.

/// What p-values amount to together.
#[derive(Debug, Clone, PartialEq)]
pub struct Discoveries {
    /// By p-value as given: the smallest alpha at which it would be a discovery.
    pub adjusted: Vec<f64>,
    /// p-values up to this are discoveries: alpha·k/m with k discoveries among m; alpha/m if there are
    /// none.
    pub level: f64,
}

/// Holds p-values against each other. NaN counts as 1; for none at all the level is `alpha`.
#[must_use]
#[allow(
    clippy::cast_precision_loss,
    reason = "a few thousand p-values at most"
)]
pub fn benjamini_hochberg(p_values: &[f64], alpha: f64) -> Discoveries {
    let p = |at: usize| {
        if p_values[at].is_nan() {
            1.0
        } else {
            p_values[at]
        }
    };
    let count = p_values.len().max(1) as f64;
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p(*a).total_cmp(&p(*b)));
    let mut adjusted = vec![1.0; p_values.len()];
    let (mut smallest, mut discoveries) = (1.0_f64, 1_usize);
    for (before, &at) in order.iter().enumerate().rev() {
        let rank = before + 1;
        let rank_share = rank as f64 / count;
        smallest = smallest.min(p(at) / rank_share);
        adjusted[at] = smallest;
        if p(at) <= alpha * rank_share {
            discoveries = discoveries.max(rank);
        }
    }
    Discoveries {
        adjusted,
        level: alpha * discoveries as f64 / count,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_authors_own_example() {
        // Benjamini & Hochberg 1995, section 4.1: four of fifteen at .05.
        let p = [
            0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262,
            0.5719, 0.6528, 0.7590, 1.0,
        ];
        let found = benjamini_hochberg(&p, 0.05);
        assert!((found.level - 0.05 * 4.0 / 15.0).abs() < 1e-15);
        assert_eq!(p.iter().filter(|p| **p <= found.level).count(), 4);
        assert!((found.adjusted[3] - 0.0095 * 15.0 / 4.0).abs() < 1e-15);
        assert!((found.adjusted[14] - 1.0).abs() < 1e-15);
    }

    #[test]
    fn nothing_found_nothing_given() {
        assert!((benjamini_hochberg(&[0.5, f64::NAN], 0.05).level - 0.025).abs() < 1e-15);
        assert!((benjamini_hochberg(&[], 0.05).level - 0.05).abs() < 1e-15);
    }

    /// Fifty features without drift: an alarm in about alpha of the windows, not in 92 %.
    #[test]
    fn fifty_quiet_features_seldom_alarm() {
        let mut state = 7_u64;
        let mut uniform = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            #[allow(clippy::cast_precision_loss)]
            let share = (state >> 11) as f64 / (1_u64 << 53) as f64;
            share
        };
        let (mut alone, mut together) = (0, 0);
        for _ in 0..2000 {
            let p: Vec<f64> = (0..50).map(|_| uniform()).collect();
            let level = benjamini_hochberg(&p, 0.05).level;
            alone += u32::from(p.iter().any(|p| *p <= 0.05));
            together += u32::from(p.iter().any(|p| *p <= level));
        }
        assert!((1800..=1890).contains(&alone), "{alone} of 2000");
        assert!((70..=130).contains(&together), "{together} of 2000");
    }

    proptest! {
        #[test]
        fn discoveries_are_those_adjusted_to_alpha(p in prop::collection::vec(0.0_f64..1.0, 1..60), alpha in 0.01_f64..0.5) {
            let found = benjamini_hochberg(&p, alpha);
            for (p, adjusted) in p.iter().zip(&found.adjusted) {
                prop_assert!(*adjusted >= *p && *adjusted <= 1.0);
                // At the border itself the two ways to round may differ.
                if (adjusted - alpha).abs() > 1e-12 {
                    prop_assert_eq!(*p <= found.level, *adjusted <= alpha);
                }
            }
        }
    }
}
