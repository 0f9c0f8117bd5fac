//! Tables for people and text on standard output.

use serde::Serialize;
use std::io::Write;

/// Rows under a heading, columns aligned, two spaces between them.
#[derive(Debug, Clone)]
pub struct Table {
    rows: Vec<Vec<String>>,
    /// Columns aligned to the right (numbers).
    right: Vec<bool>,
}

impl Table {
    /// An empty table; a heading that ends in `>` is aligned to the right.
    #[must_use]
    pub fn new(headings: &[&str]) -> Self {
        let right = headings.iter().map(|h| h.ends_with('>')).collect();
        let names = headings.iter().map(|h| h.trim_end_matches('>').to_owned());
        Self {
            rows: vec![names.collect()],
            right,
        }
    }

    /// Adds a row; missing cells are empty, control characters are shown as `?`.
    pub fn row<I, S>(&mut self, cells: I)
    where
        I: IntoIterator<Item = S>,
        S: ToString,
    {
        let clean = |cell: S| {
            let text = cell.to_string();
            text.chars()
                .map(|c| if c.is_control() { '?' } else { c })
                .collect()
        };
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    /// Whether there is no row besides the heading.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// The table as text, each line ended.
    #[must_use]
    pub fn to_text(&self) -> String {
        let width = |at: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(at));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (at, width) in widths.iter().enumerate() {
                let cell = row.get(at).map_or("", String::as_str);
                let gap = width.saturating_sub(cell.chars().count());
                if at > 0 {
                    line.push_str("  ");
                }
                if self.right[at] {
                    line.push_str(&" ".repeat(gap));
                    line.push_str(cell);
                } else {
                    line.push_str(cell);
                    line.push_str(&" ".repeat(gap));
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Writes text to standard output. A reader that went away (`| head`) is no error.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes one line to standard output.
pub fn print_line(line: &str) {
    print(&format!("{line}\n"));
}

/// Writes a value as indented JSON to standard output.
pub fn print_json<T: Serialize>(value: &T) {
    // A value of our own types has only text keys, so it always serializes.
    let text =
        serde_json::to_string_pretty(value).unwrap_or_else(|e| format!("{:?}", e.to_string()));
    print_line(&text);
}

/// A time in unix milliseconds as `2030-01-01 00:00:00Z`, `-` if there is none.
#[must_use]
pub fn time_text(unix_ms: Option<i64>) -> String {
    let whole_second = unix_ms.map(|ms| jiff::Timestamp::from_second(ms.div_euclid(1000)));
    match whole_second {
        Some(Ok(time)) => time.to_string().replace('T', " "),
        _ => "-".to_owned(),
    }
}

/// How long ago a time in unix milliseconds was, in its largest unit: `12 s`, `3 min`, `5 h`, `2 d`.
#[must_use]
pub fn ago_text(unix_ms: Option<i64>, now_ms: i64) -> String {
    let Some(then) = unix_ms else {
        return "-".to_owned();
    };
    let seconds = now_ms.saturating_sub(then).max(0) / 1000;
    match seconds {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

/// Bytes with a unit: `950 B`, `14.5 KiB`.
#[must_use]
pub fn bytes_text(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[allow(clippy::cast_precision_loss, reason = "for display")]
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_control_characters_do_not_reach_the_terminal() {
        let mut table = Table::new(&["device", "n>"]);
        table.row(["edge-1", "7"]);
        table.row(["e\u{1b}[2J", "1234"]);
        assert_eq!(
            table.to_text(),
            "device     n\nedge-1     7\ne?[2J   1234\n"
        );
    }

    #[test]
    fn times_and_sizes_read_well() {
        assert_eq!(time_text(Some(0)), "1970-01-01 00:00:00Z");
        assert_eq!(time_text(None), "-");
        assert_eq!(ago_text(Some(0), 119_000), "119 s");
        assert_eq!(ago_text(Some(0), 7_200_000), "2 h");
        assert_eq!(bytes_text(1023), "1023 B");
        assert_eq!(bytes_text(14_848), "14.5 KiB");
    }
}
