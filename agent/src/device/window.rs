//! Maintenance windows: when a version that is ready may be activated. Pure.
//!
//! A window is written as `02:00-04:30` (every day), `Mon-Fri 02:00-04:30` or
//! `Sat,Sun 22:00-04:00`. The days are those on which it opens; one that ends before it begins ends
//! on the day after; `00:00-24:00` is a whole day. It always stays open for as long as is written,
//! whatever the clocks do: a beginning that is skipped in spring is when the clocks were set
//! forward, one that comes twice in autumn is the first of the two.

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _};
use std::str::FromStr;

const DAY_MIN: i64 = 24 * 60;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
/// A window that opened this many days ago may be open still: its day, and the clocks.
const DAYS_BACK: i32 = 2;
/// Every window opens within a week and a day.
const DAYS_AHEAD: i32 = 8;

/// Why a text is no window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected such as \"Mon-Fri 02:00-04:30\", got {text:?}: {problem}")]
pub struct WindowError {
    text: String,
    problem: &'static str,
}

/// A window that comes every week.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Days on which it opens, Monday first.
    days: [bool; 7],
    opens: Time,
    length_min: i64,
}

impl FromStr for Window {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        let bad = |problem| WindowError {
            text: text.to_owned(),
            problem,
        };
        let (days, times) = match text.trim().rsplit_once(char::is_whitespace) {
            None => ([true; 7], text.trim()),
            Some((days, times)) => (days_of(days).map_err(bad)?, times),
        };
        let (opens, closes) = times.split_once('-').ok_or(bad("no two times"))?;
        let (opens, closes) = (minutes(opens), minutes(closes));
        let (opens, closes) = opens.zip(closes).ok_or(bad("no such time of day"))?;
        if opens == DAY_MIN {
            return Err(bad("no window opens at 24:00"));
        }
        if opens == closes {
            return Err(bad(
                "it opens and closes at once; a whole day is 00:00-24:00",
            ));
        }
        let part = |n: i64| i8::try_from(n).unwrap_or_default();
        Ok(Self {
            days,
            opens: Time::constant(part(opens / 60), part(opens % 60), 0, 0),
            // From 1 to a whole day.
            length_min: (closes - opens - 1).rem_euclid(DAY_MIN) + 1,
        })
    }
}

/// `Mon`, `Mon-Fri`, `Sat,Sun`, or several of those.
fn days_of(text: &str) -> Result<[bool; 7], &'static str> {
    let day = |name: &str| {
        let name = name.trim().to_ascii_lowercase();
        let found = DAYS.iter().position(|d| *d == name);
        found.ok_or("days are Mon, Tue, Wed, Thu, Fri, Sat, Sun")
    };
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (mut at, last) = (day(first)?, day(last)?);
        days[at] = true;
        while at != last {
            at = (at + 1) % 7;
            days[at] = true;
        }
    }
    Ok(days)
}

/// Minutes since midnight of `HH:MM`, up to 24:00.
fn minutes(text: &str) -> Option<i64> {
    let (hours, minutes) = text.trim().split_once(':')?;
    let number = |t: &str| {
        let is_two_digits = t.len() == 2 && t.bytes().all(|b| b.is_ascii_digit());
        t.parse::<i64>().ok().filter(|_| is_two_digits)
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let all = hours * 60 + minutes;
    (minutes < 60 && all <= DAY_MIN).then_some(all)
}

/// When versions may be activated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    windows: Vec<Window>,
    zone: TimeZone,
}

impl Default for Windows {
    /// Always.
    fn default() -> Self {
        Self::new(Vec::new(), TimeZone::UTC)
    }
}

impl Windows {
    /// Any of these windows, in this time zone's local time; none: always.
    #[must_use]
    pub fn new(windows: Vec<Window>, zone: TimeZone) -> Self {
        Self { windows, zone }
    }

    /// `None` while a window is open; else when the next opens, in milliseconds since 1970.
    /// `i64::MAX`: at no time that can be told (`now_ms` is not a time).
    #[must_use]
    pub fn opens_ms(&self, now_ms: i64) -> Option<i64> {
        if self.windows.is_empty() {
            return None;
        }
        let Ok(now) = Timestamp::from_millisecond(now_ms) else {
            return Some(i64::MAX);
        };
        let today = now.to_zoned(self.zone.clone()).date();
        let mut next = i64::MAX;
        for offset in -DAYS_BACK..=DAYS_AHEAD {
            let Ok(date) = today.checked_add(offset.days()) else {
                continue;
            };
            for window in self.windows.iter().filter(|w| w.opens_on(date)) {
                let Ok(opens) = date.to_datetime(window.opens).to_zoned(self.zone.clone()) else {
                    continue;
                };
                let opens = opens.timestamp();
                let open_for = now.duration_since(opens);
                let length = SignedDuration::from_mins(window.length_min);
                if !open_for.is_negative() && open_for < length {
                    return None;
                }
                if open_for.is_negative() {
                    next = next.min(opens.as_millisecond());
                }
            }
        }
        Some(next)
    }
}

impl Window {
    fn opens_on(&self, date: Date) -> bool {
        let day = match date.weekday() {
            Weekday::Monday => 0,
            Weekday::Tuesday => 1,
            Weekday::Wednesday => 2,
            Weekday::Thursday => 3,
            Weekday::Friday => 4,
            Weekday::Saturday => 5,
            Weekday::Sunday => 6,
        };
        self.days[day]
    }
}

/// For reports.
pub(super) fn opens_in_words(opens_ms: i64) -> String {
    let opens = Timestamp::from_millisecond(opens_ms).ok();
    match opens.filter(|_| opens_ms != i64::MAX) {
        Some(opens) => format!("outside the maintenance window, which opens at {opens}"),
        None => "outside the maintenance window".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Central European time as a rule of its own, so that no file is needed.
    const BERLIN: &str = "CET-1CEST,M3.5.0,M10.5.0/3";

    fn windows(texts: &[&str], zone: &str) -> Windows {
        let windows = texts.iter().map(|t| t.parse().unwrap()).collect();
        let zone = match zone {
            "UTC" => TimeZone::UTC,
            posix => TimeZone::posix(posix).unwrap(),
        };
        Windows::new(windows, zone)
    }

    fn ms(time: &str) -> i64 {
        time.parse::<Timestamp>().unwrap().as_millisecond()
    }

    /// Every minute from `from` on for `minutes`, as spans in which a window is open.
    fn open_spans(windows: &Windows, from: &str, minutes: i64) -> Vec<(String, String)> {
        let (start, mut spans, mut open) = (ms(from), Vec::new(), None);
        let text = |ms| Timestamp::from_millisecond(ms).unwrap().to_string();
        let mut promised = None;
        for minute in 0..minutes {
            let now = start + minute * 60_000;
            match (windows.opens_ms(now), open) {
                (None, None) => {
                    // It opens exactly when that was foretold.
                    assert!(promised.is_none_or(|p| p == now), "{}", text(now));
                    open = Some(now);
                }
                (Some(next), Some(since)) => {
                    spans.push((text(since), text(now)));
                    (open, promised) = (None, Some(next));
                }
                (Some(next), None) => {
                    assert!(next > now && promised.is_none_or(|p| p == next));
                    promised = Some(next);
                }
                (None, Some(_)) => {}
            }
        }
        assert_eq!(open, None, "still open at the end");
        spans
    }

    fn spans(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = pairs.iter().map(|(a, b)| (a.to_string(), b.to_string()));
        owned.collect()
    }

    #[test]
    fn no_window_is_always() {
        assert_eq!(Windows::default().opens_ms(0), None);
        assert_eq!(Windows::default().opens_ms(i64::MAX), None);
    }

    #[test]
    fn on_its_days_and_over_midnight() {
        // 2026-11-23 is a Monday.
        let weekdays = windows(&["Mon-Wed 02:00-04:30"], "UTC");
        assert_eq!(
            open_spans(&weekdays, "2026-11-23T00:00:00Z", 8 * 24 * 60 - 60 * 22),
            spans(&[
                ("2026-11-23T02:00:00Z", "2026-11-23T04:30:00Z"),
                ("2026-11-24T02:00:00Z", "2026-11-24T04:30:00Z"),
                ("2026-11-25T02:00:00Z", "2026-11-25T04:30:00Z"),
            ])
        );
        // Opens on Saturday and Sunday, so the last one ends on Monday.
        let nights = windows(&["Sat,Sun 22:00-04:00"], "UTC");
        assert_eq!(
            open_spans(&nights, "2026-11-27T00:00:00Z", 6 * 24 * 60),
            spans(&[
                ("2026-11-28T22:00:00Z", "2026-11-29T04:00:00Z"),
                ("2026-11-29T22:00:00Z", "2026-11-30T04:00:00Z"),
            ])
        );
    }

    #[test]
    fn windows_join_and_weeks_wrap() {
        let joined = windows(
            &["Sun 00:00-24:00", "Mon 00:00-01:00", "Sun-Mon 12:00-13:00"],
            "UTC",
        );
        assert_eq!(
            open_spans(&joined, "2026-11-28T00:00:00Z", 4 * 24 * 60),
            spans(&[
                ("2026-11-29T00:00:00Z", "2026-11-30T01:00:00Z"),
                ("2026-11-30T12:00:00Z", "2026-11-30T13:00:00Z"),
            ])
        );
        let wrapped = windows(&["Sat-Mon 10:00-10:01"], "UTC");
        let days = open_spans(&wrapped, "2026-11-27T00:00:00Z", 7 * 24 * 60);
        assert_eq!(days.len(), 3);
    }

    #[test]
    fn it_stays_open_as_long_as_is_written_whatever_the_clocks_do() {
        let night = windows(&["02:15-03:15"], BERLIN);
        // 2026-03-29: 02:00 becomes 03:00; 02:15 does not exist and counts as 03:15.
        assert_eq!(
            open_spans(&night, "2026-03-27T22:00:00Z", 3 * 24 * 60),
            spans(&[
                ("2026-03-28T01:15:00Z", "2026-03-28T02:15:00Z"),
                ("2026-03-29T01:15:00Z", "2026-03-29T02:15:00Z"),
                ("2026-03-30T00:15:00Z", "2026-03-30T01:15:00Z"),
            ])
        );
        // 2026-10-25: 03:00 becomes 02:00; 02:15 comes twice, the first counts.
        assert_eq!(
            open_spans(&night, "2026-10-23T22:00:00Z", 3 * 24 * 60),
            spans(&[
                ("2026-10-24T00:15:00Z", "2026-10-24T01:15:00Z"),
                ("2026-10-25T00:15:00Z", "2026-10-25T01:15:00Z"),
                ("2026-10-26T01:15:00Z", "2026-10-26T02:15:00Z"),
            ])
        );
        // Over the whole of the long night, on local days.
        let long = windows(&["Sat 23:00-05:00"], BERLIN);
        assert_eq!(
            open_spans(&long, "2026-10-22T00:00:00Z", 6 * 24 * 60),
            spans(&[("2026-10-24T21:00:00Z", "2026-10-25T03:00:00Z")])
        );
    }

    #[test]
    fn every_minute_of_a_week_agrees_with_a_plain_reading() {
        let text = ["Tue-Thu 23:30-00:10", "Sun 05:00-05:01", "Fri 00:00-24:00"];
        let all = windows(&text, "UTC");
        let start = ms("2026-11-23T00:00:00Z");
        for minute in 0..7 * DAY_MIN {
            let (day, at) = (minute / DAY_MIN, minute % DAY_MIN);
            let expected = ((1..=3).contains(&day) && at >= 23 * 60 + 30)
                || ((2..=4).contains(&day) && at < 10)
                || (day == 6 && at == 300)
                || day == 4;
            let open = all.opens_ms(start + minute * 60_000).is_none();
            assert_eq!(open, expected, "day {day}, minute {at}");
            // The last millisecond of the minute is as its first.
            let end = all.opens_ms(start + minute * 60_000 + 59_999).is_none();
            assert_eq!(end, expected, "day {day}, minute {at}");
        }
    }

    #[test]
    fn what_is_no_time_and_the_ends_of_time_are_borne() {
        let daily = windows(&["02:00-03:00"], "UTC");
        assert_eq!(daily.opens_ms(i64::MAX), Some(i64::MAX));
        assert!(daily.opens_ms(0).is_some());
        let last = Timestamp::MAX.as_millisecond();
        assert_eq!(daily.opens_ms(last), Some(i64::MAX));
        assert!(daily.opens_ms(Timestamp::MIN.as_millisecond()).is_some());
    }

    #[test]
    fn what_is_no_window_is_named() {
        for (text, problem) in [
            ("", "no two times"),
            ("02:00", "no two times"),
            ("2:00-3:00", "no such time"),
            ("02:60-03:00", "no such time"),
            ("02:00-24:01", "no such time"),
            ("24:00-01:00", "no window opens"),
            ("02:00-02:00", "opens and closes at once"),
            ("Mo 02:00-03:00", "days are"),
            ("Mon- 02:00-03:00", "days are"),
            ("Mon Tue 02:00-03:00", "days are"),
        ] {
            let error = text.parse::<Window>().unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
        let spaced: Window = "  mon - FRI , sun  02:00-03:00 ".parse().unwrap();
        assert_eq!(spaced.days, [true, true, true, true, true, false, true]);
    }
}
