//! Exact rationals for thresholds: compared by cross multiplication, never through floats, so
//! that "9 of 10" meets "90%" on every machine.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// Largest numerator and denominator accepted from outside.
pub const RATIO_PART_MAX: u32 = 1_000_000;
/// Longest text accepted for a ratio, in bytes.
const TEXT_BYTES_MAX: usize = 32;

/// Why a text or a pair of numbers is not a ratio.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RatioError {
    /// The denominator is zero.
    #[error("ratio {num}/0: the denominator must be greater than zero")]
    ZeroDenominator {
        /// The numerator given.
        num: u32,
    },
    /// A part is larger than [`RATIO_PART_MAX`].
    #[error("ratio {num}/{den}: both numbers must be at most {RATIO_PART_MAX}")]
    TooLarge {
        /// The numerator given.
        num: u32,
        /// The denominator given.
        den: u32,
    },
    /// Not of the form `1/50`, `50%` or `12.5%`.
    #[error(
        "ratio {text:?}: expected a fraction such as \"1/50\" or a percentage such as \"50%\" or \"12.5%\""
    )]
    Syntax {
        /// The text, cut to 32 characters.
        text: String,
    },
}

/// A non-negative rational in lowest terms.
///
/// As JSON a string: `"1/50"`, `"50%"` and `"12.5%"` (up to four decimals) are read, the
/// fraction in lowest terms is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ratio {
    num: u32,
    den: u32,
}

impl Ratio {
    /// Nothing.
    pub const ZERO: Self = Self { num: 0, den: 1 };
    /// The whole.
    pub const ONE: Self = Self { num: 1, den: 1 };

    /// `num/den` in lowest terms.
    ///
    /// # Errors
    /// When `den` is zero or a part exceeds [`RATIO_PART_MAX`].
    pub fn new(num: u32, den: u32) -> Result<Self, RatioError> {
        if den == 0 {
            return Err(RatioError::ZeroDenominator { num });
        }
        if num > RATIO_PART_MAX || den > RATIO_PART_MAX {
            return Err(RatioError::TooLarge { num, den });
        }
        Ok(Self::reduced(num, den))
    }

    /// A whole number of percent, at most 10 000.
    #[must_use]
    pub const fn percent(percent: u16) -> Self {
        let capped = if percent > 10_000 { 10_000 } else { percent };
        Self::reduced(capped as u32, 100)
    }

    const fn reduced(num: u32, den: u32) -> Self {
        let (mut a, mut b) = (num, den);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        Self {
            num: num / a,
            den: den / a,
        }
    }

    /// The numerator in lowest terms.
    #[must_use]
    pub const fn num(self) -> u32 {
        self.num
    }

    /// The denominator in lowest terms, never zero.
    #[must_use]
    pub const fn den(self) -> u32 {
        self.den
    }

    /// The ratio shared equally by `parts` (a Bonferroni correction); `parts` is taken as at
    /// least 1 and at most 1000.
    #[must_use]
    pub fn divided_by(self, parts: u32) -> Self {
        Self::reduced(self.num, self.den * parts.clamp(1, 1000))
    }

    /// What is left of it when `other` is taken away; `None` if that is negative or its parts exceed
    /// [`RATIO_PART_MAX`].
    #[must_use]
    pub fn less(self, other: Self) -> Option<Self> {
        let (den, other_den) = (u64::from(self.den), u64::from(other.den));
        let num = (u64::from(self.num) * other_den).checked_sub(u64::from(other.num) * den)?;
        let den = den * other_den;
        let (mut common, mut rest) = (num, den);
        while rest != 0 {
            (common, rest) = (rest, common % rest);
        }
        let part = |whole: u64| u32::try_from(whole / common).ok();
        Self::new(part(num)?, part(den)?).ok()
    }

    /// Whether `count/total` is at least this ratio; false when `total` is zero, since no data
    /// meets no threshold.
    #[must_use]
    pub fn met_by(self, count: u64, total: u64) -> bool {
        total > 0
            && u128::from(count) * u128::from(self.den) >= u128::from(self.num) * u128::from(total)
    }

    /// Whether `count/total` is strictly greater than this ratio; false when `total` is zero.
    #[must_use]
    pub fn exceeded_by(self, count: u64, total: u64) -> bool {
        total > 0
            && u128::from(count) * u128::from(self.den) > u128::from(self.num) * u128::from(total)
    }

    /// The least whole number that is at least this share of `total`, at most `u32::MAX`.
    #[must_use]
    pub fn ceil_of(self, total: u32) -> u32 {
        let exact = (u64::from(self.num) * u64::from(total)).div_ceil(u64::from(self.den));
        u32::try_from(exact).unwrap_or(u32::MAX)
    }

    /// The nearest float, for display and for margins only.
    #[must_use]
    pub fn to_f64(self) -> f64 {
        f64::from(self.num) / f64::from(self.den)
    }

    /// For sentences: `90 %` when that is exact, else `1/3`.
    #[must_use]
    pub fn in_words(self) -> String {
        let hundredfold = u64::from(self.num) * 100;
        if hundredfold % u64::from(self.den) == 0 {
            format!("{} %", hundredfold / u64::from(self.den))
        } else {
            self.to_string()
        }
    }
}

impl PartialOrd for Ratio {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ratio {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let left = u64::from(self.num) * u64::from(other.den);
        left.cmp(&(u64::from(other.num) * u64::from(self.den)))
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.num, self.den)
    }
}

impl FromStr for Ratio {
    type Err = RatioError;

    fn from_str(text: &str) -> Result<Self, RatioError> {
        let syntax = || RatioError::Syntax {
            text: text.chars().take(TEXT_BYTES_MAX).collect(),
        };
        if text.len() > TEXT_BYTES_MAX {
            return Err(syntax());
        }
        if let Some((num, den)) = text.split_once('/') {
            let num = whole(num.trim()).ok_or_else(syntax)?;
            return Self::new(num, whole(den.trim()).ok_or_else(syntax)?);
        }
        let percent = text.trim().strip_suffix('%').ok_or_else(syntax)?.trim_end();
        let (units, decimals) = percent.split_once('.').unwrap_or((percent, ""));
        let has_bad_decimals = decimals.len() > 4 || (percent.contains('.') && decimals.is_empty());
        if has_bad_decimals {
            return Err(syntax());
        }
        let scale = 10_u32.pow(u32::try_from(decimals.len()).unwrap_or(0));
        let fraction = if decimals.is_empty() {
            0
        } else {
            whole(decimals).ok_or_else(syntax)?
        };
        let num = whole(units)
            .ok_or_else(syntax)?
            .checked_mul(scale)
            .ok_or_else(syntax)?;
        Self::new(num.checked_add(fraction).ok_or_else(syntax)?, 100 * scale)
    }
}

/// Digits only: `u32::from_str` would also take a leading plus sign.
fn whole(digits: &str) -> Option<u32> {
    let is_plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if is_plain { digits.parse().ok() } else { None }
}

impl TryFrom<String> for Ratio {
    type Error = RatioError;
    fn try_from(text: String) -> Result<Self, RatioError> {
        text.parse()
    }
}

impl From<Ratio> for String {
    fn from(ratio: Ratio) -> String {
        ratio.to_string()
    }
}

impl PartialSchema for Ratio {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some(
                "Exact ratio: a fraction such as 1/50 or a percentage such as 50%",
            ))
            .examples(["1/50", "50%"])
            .into()
    }
}

impl ToSchema for Ratio {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_fractions_and_percentages() {
        for (text, num, den) in [
            ("1/50", 1, 50),
            ("50%", 1, 2),
            ("12.5%", 1, 8),
            ("2/100", 1, 50),
            ("0%", 0, 1),
        ] {
            let ratio: Ratio = text.parse().unwrap();
            assert_eq!((ratio.num(), ratio.den()), (num, den), "{text}");
        }
        assert_eq!(
            serde_json::to_string(&Ratio::percent(2)).unwrap(),
            "\"1/50\""
        );
        assert_eq!(
            serde_json::from_str::<Ratio>("\"10%\"").unwrap(),
            Ratio::percent(10)
        );
    }

    #[test]
    fn refuses_what_is_not_a_ratio() {
        for text in [
            "", "%", "1/", "/2", "+1/2", "-1/2", "1.%", ".5%", "0.5", "1/2/3", "1.23456%",
        ] {
            assert!(text.parse::<Ratio>().is_err(), "{text}");
        }
        assert_eq!(
            "1/0".parse::<Ratio>(),
            Err(RatioError::ZeroDenominator { num: 1 })
        );
        assert!(matches!(
            "1/2000000".parse::<Ratio>(),
            Err(RatioError::TooLarge { .. })
        ));
        assert!("9".repeat(4000).parse::<Ratio>().is_err());
    }

    #[test]
    fn no_data_meets_and_exceeds_nothing() {
        assert!(!Ratio::ZERO.met_by(0, 0));
        assert!(!Ratio::ZERO.exceeded_by(0, 0));
        assert!(Ratio::percent(90).met_by(9, 10));
        assert!(!Ratio::percent(90).exceeded_by(9, 10));
    }

    #[test]
    fn a_share_taken_away_leaves_the_rest() {
        let (whole, share) = (Ratio::percent(2), Ratio::new(1, 200).unwrap());
        assert_eq!(whole.less(share), Some(Ratio::new(3, 200).unwrap()));
        assert_eq!(whole.less(whole), Some(Ratio::ZERO));
        assert_eq!(share.less(whole), None);
        let (odd, other) = (
            Ratio::new(1, 999_983).unwrap(),
            Ratio::new(1, 999_979).unwrap(),
        );
        assert_eq!(other.less(odd), None, "parts beyond the limit");
    }

    proptest! {
        #[test]
        fn meeting_and_exceeding_agree_with_the_order(num in 0u32..1000, den in 1u32..1000, count in 0u32..1000, total in 1u32..1000) {
            let ratio = Ratio::new(num, den).unwrap();
            let share = Ratio::new(count, total).unwrap();
            prop_assert_eq!(ratio.met_by(count.into(), total.into()), share >= ratio);
            prop_assert_eq!(ratio.exceeded_by(count.into(), total.into()), share > ratio);
            prop_assert_eq!(ratio.to_string().parse::<Ratio>().unwrap(), ratio);
        }

        #[test]
        fn any_text_is_read_or_refused_without_panic(text in ".{0,40}") {
            let _ = text.parse::<Ratio>();
        }
    }
}
