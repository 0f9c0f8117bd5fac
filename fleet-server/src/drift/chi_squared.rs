//! The χ² distribution: upper tail and quantile, without a dependency.
//!
//! Regularised incomplete gamma function by its series for x < a + 1 and by its continued
//! fraction (modified Lentz) beyond: Abramowitz & Stegun 6.5.29 and 6.5.31, arranged as in Press
//! et al., *Numerical Recipes* (3rd ed.), §6.2. ln Γ by Lanczos' approximation with g = 7 and nine
//! terms (Godfrey's coefficients), relative error about 10⁻¹⁵.

const ITERATIONS_MAX: u32 = 10_000;
const PRECISION: f64 = 1e-15;

/// Coefficients of Lanczos' series for g = 7.
const LANCZOS: [f64; 9] = [
    0.999_999_999_999_809_9,
    676.520_368_121_885_1,
    -1_259.139_216_722_402_8,
    771.323_428_777_653_1,
    -176.615_029_162_140_6,
    12.507_343_278_686_905,
    -0.138_571_095_265_720_12,
    9.984_369_578_019_572e-6,
    1.505_632_735_149_311_6e-7,
];

/// ln Γ(x) for x ≥ ½.
pub(super) fn ln_gamma(x: f64) -> f64 {
    let x = x - 1.0;
    let t = x + 7.5;
    let mut sum = LANCZOS[0];
    let mut at = x;
    for coefficient in &LANCZOS[1..] {
        at += 1.0;
        sum += coefficient / at;
    }
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

/// Q(a, x) = Γ(a, x)/Γ(a), the upper regularised incomplete gamma function, a ≥ ½, x ≥ 0.
fn upper_gamma(a: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 1.0;
    }
    let front = (a * x.ln() - x - ln_gamma(a)).exp();
    if x < a + 1.0 {
        let (mut term, mut sum, mut n) = (1.0 / a, 1.0 / a, a);
        for _ in 0..ITERATIONS_MAX {
            n += 1.0;
            term *= x / n;
            sum += term;
            if term < sum * PRECISION {
                break;
            }
        }
        return (1.0 - front * sum).clamp(0.0, 1.0);
    }
    // Keeps the continued fraction's partial quotients from becoming zero.
    let tiny = f64::MIN_POSITIVE / PRECISION;
    let mut b = x + 1.0 - a;
    let mut c = 1.0 / tiny;
    let mut d = 1.0 / b;
    let mut fraction = d;
    for step in 1..=ITERATIONS_MAX {
        let i = f64::from(step);
        let an = -i * (i - a);
        b += 2.0;
        let next = |value: f64| if value.abs() < tiny { tiny } else { value };
        d = 1.0 / next(an * d + b);
        c = next(b + an / c);
        let factor = d * c;
        fraction *= factor;
        if (factor - 1.0).abs() < PRECISION {
            break;
        }
    }
    (front * fraction).clamp(0.0, 1.0)
}

/// Probability that a χ² variable with `degrees` (≥ 1) degrees of freedom exceeds `value`.
#[must_use]
pub fn upper_tail(value: f64, degrees: u32) -> f64 {
    upper_gamma(f64::from(degrees.max(1)) / 2.0, value / 2.0)
}

/// The value that a χ² variable with `degrees` (≥ 1) degrees of freedom exceeds with probability
/// `alpha`: +∞ for `alpha` ≤ 0, 0 for `alpha` ≥ 1. By bisection on the tail, which is monotone:
/// slower than Newton's method and without its failures.
#[must_use]
pub fn upper_quantile(alpha: f64, degrees: u32) -> f64 {
    if alpha.is_nan() || alpha <= 0.0 {
        return f64::INFINITY;
    }
    let (mut low, mut high) = (0.0, f64::from(degrees.max(1)) + 10.0);
    while upper_tail(high, degrees) > alpha && high < 1e12 {
        low = high;
        high *= 2.0;
    }
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if upper_tail(middle, degrees) > alpha {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// From printed tables; those of even degrees, whose tail is a finite sum, to 17 digits from
    /// 60-digit decimal arithmetic.
    const QUANTILES: [(f64, u32, f64); 12] = [
        (0.05, 1, 3.841_458_820_694_124),
        (0.05, 2, 5.991_464_547_107_979),
        (0.01, 1, 6.634_896_601_021_213),
        (0.05, 9, 16.918_977_604_620_448),
        (0.01, 9, 21.665_994_333_461_924),
        (0.001, 9, 27.877_164_871_256_568),
        (0.5, 9, 8.342_832_692_252_955),
        (0.95, 9, 3.325_112_843_066_815),
        (0.05, 39, 54.572_227_758_941_73),
        (0.05, 100, 124.342_113_404_004_02),
        (0.01, 1000, 1_106.968_994_352_217_4),
        (0.999, 3, 0.024_297_585_815_692_64),
    ];

    #[test]
    fn quantiles_match_published_values() {
        for (alpha, degrees, expected) in QUANTILES {
            let got = upper_quantile(alpha, degrees);
            assert!(
                (got / expected - 1.0).abs() < 1e-9,
                "alpha {alpha}, {degrees} degrees: {got} for {expected}"
            );
        }
    }

    #[test]
    fn the_tail_of_two_degrees_is_the_exponential() {
        for value in [0.01, 0.5, 1.0, 3.0, 10.0, 100.0, 700.0] {
            let expected = (-value / 2.0_f64).exp();
            assert!(
                (upper_tail(value, 2) / expected - 1.0).abs() < 1e-11,
                "{value}"
            );
        }
    }

    #[test]
    fn the_edges_are_defined() {
        assert_eq!(upper_tail(0.0, 5), 1.0);
        assert_eq!(upper_tail(-3.0, 5), 1.0);
        assert_eq!(upper_quantile(0.0, 5), f64::INFINITY);
        assert!(upper_quantile(1.0, 5) < 1e-6);
        assert!(upper_quantile(1e-300, 5).is_finite());
        assert!(upper_tail(1e6, 3) == 0.0);
    }

    #[test]
    fn quantile_and_tail_are_inverse() {
        for degrees in [1, 2, 3, 9, 40, 250] {
            for alpha in [0.9, 0.5, 0.1, 0.01, 1e-6] {
                let back = upper_tail(upper_quantile(alpha, degrees), degrees);
                assert!(
                    (back / alpha - 1.0).abs() < 1e-9,
                    "{degrees} {alpha} {back}"
                );
            }
        }
    }
}
