//! Words and numbers of a picture.

use std::fmt::Write as _;

/// Most characters of a name that is shown.
pub(super) const NAME_CHARS: usize = 48;

/// Escapes what XML gives a meaning to; what it forbids becomes `\u{fffd}`.
pub(super) fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            // They would turn the words around them about.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
}

/// At most so many characters, with an ellipsis where some are left out.
pub(super) fn short(text: &str, chars: usize) -> String {
    let mut rest = text.chars();
    let mut out: String = rest.by_ref().take(chars).collect();
    if rest.next().is_some() {
        out.push('…');
    }
    out
}

/// A number to four digits.
pub(super) fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let size = value.abs();
    if !(1e-4..1e7).contains(&size) {
        return format!("{value:.2e}");
    }
    #[allow(clippy::cast_possible_truncation, reason = "of a logarithm")]
    let digits = usize::try_from(3 - size.log10().floor() as i32).unwrap_or(0);
    let mut out = String::new();
    let _ = write!(out, "{value:.digits$}");
    if out.contains('.') {
        out.truncate(out.trim_end_matches('0').trim_end_matches('.').len());
    }
    out
}

/// A share in percent.
pub(super) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent == 0.0 || percent >= 10.0 {
        format!("{percent:.0} %")
    } else {
        format!("{} %", number((percent * 100.0).round() / 100.0))
    }
}
