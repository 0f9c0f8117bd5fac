//! How values on the command line are read.

use std::time::Duration;

/// `90s`, `10m`, `24h`, `365d`, `500ms`, or several in a row: `1h30m`.
///
/// # Errors
/// What was expected, as a sentence.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad =
        || format!("expected a time such as 500ms, 90s, 10m, 24h, 365d or 1h30m, got {text:?}");
    let mut total_ms = 0_u64;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        let part = number.checked_mul(unit_ms).ok_or_else(bad)?;
        total_ms = total_ms.checked_add(part).ok_or_else(bad)?;
        rest = tail;
    }
    Ok(Duration::from_millis(total_ms))
}

/// `key=value`.
///
/// # Errors
/// What was expected, as a sentence.
pub fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("expected KEY=VALUE, got {text:?}")),
    }
}

/// A duration in milliseconds.
#[must_use]
pub fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
