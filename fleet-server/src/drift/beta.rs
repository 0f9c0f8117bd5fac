//! The beta distribution's upper tail, by its continued fraction (modified Lentz; Abramowitz & Stegun
//! 26.5.8, arranged as in Press et al., *Numerical Recipes* (3rd ed.), §6.4).

use super::chi_squared::ln_gamma;

const PRECISION: f64 = 1e-16;
const TINY: f64 = 1e-290;

/// P(X > x) for X ~ Beta(a, b), a and b ≥ 1, 0 ≤ x ≤ 1.
pub(super) fn upper_share(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 {
        return 1.0;
    }
    if x >= 1.0 {
        return 0.0;
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (-x).ln_1p()).exp();
    // Each side where its fraction converges fast, in about √max(a, b) steps.
    if x < (a + 1.0) / (a + b + 2.0) {
        (1.0 - front * fraction(x, a, b) / a).clamp(0.0, 1.0)
    } else {
        (front * fraction(1.0 - x, b, a) / b).clamp(0.0, 1.0)
    }
}

fn fraction(x: f64, a: f64, b: f64) -> f64 {
    let kept = |value: f64| if value.abs() < TINY { TINY } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / kept(1.0 - (a + b) * x / (a + 1.0));
    let mut product = d;
    let steps_max = 10.0 * (1000.0 + a.max(b).sqrt()).min(1e6);
    let mut m = 1.0;
    while m <= steps_max {
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut last = 1.0;
        for term in [even, odd] {
            d = 1.0 / kept(1.0 + term * d);
            c = kept(1.0 + term / c);
            last = d * c;
            product *= last;
        }
        if (last - 1.0).abs() < PRECISION * 4.0 {
            break;
        }
        m += 1.0;
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_binomial_sums() {
        // P(Beta(a, b) > x) = P(Binomial(a+b−1, x) < a).
        for (x, a, b) in [
            (0.4_f64, 21_i32, 6_i32),
            (0.5, 6, 21),
            (0.1, 1, 1),
            (0.9, 3, 40),
        ] {
            let n = a + b - 1;
            let mut ways = 1.0;
            let mut sum = 0.0;
            for k in 0..a {
                sum += ways * x.powi(k) * (1.0 - x).powi(n - k);
                ways *= f64::from(n - k) / f64::from(k + 1);
            }
            let got = upper_share(x, f64::from(a), f64::from(b));
            assert!(
                (got - sum).abs() < 1e-13 + 1e-11 * sum,
                "{x} {a} {b}: {got} for {sum}"
            );
        }
        assert!((upper_share(0.0, 2.0, 2.0) - 1.0).abs() < 1e-15);
        assert!(upper_share(1.0, 2.0, 2.0).abs() < 1e-15);
        assert!((upper_share(0.5, 1e6, 1e6) - 0.5).abs() < 1e-6);
    }
}
