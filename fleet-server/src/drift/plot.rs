//! A picture of one signal, reference against live, as SVG. Pure: the same numbers give the same bytes.
//!
//! The reference is a filled area, the live distribution a thick outline: they are told apart without
//! their colours, which are Okabe and Ito's. Heights are shares of the values. Bins are as wide as they
//! are; where one would be too narrow to see, all are drawn equally wide and it is said.

mod layout;
mod text;

use super::query::{Bins, Picture};
use super::statistics::Status;
use layout::{Axis, Slot, slots};
use std::fmt::Write as _;
use text::{NAME_CHARS, number, percent, short};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
/// The plot itself.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 740.0;
const TOP: f64 = 104.0;
const BOTTOM: f64 = 344.0;

const STYLE: &str = "\
text{font-family:system-ui,'DejaVu Sans',sans-serif;font-size:13px;fill:#1f2328}\
.head{font-size:18px;font-weight:600}.soft{fill:#57606a}.end{text-anchor:end}.middle{text-anchor:middle}\
.paper{fill:#ffffff}.grid{stroke:#d0d7de}.axis{stroke:#57606a;fill:none}\
.reference{fill:#56b4e9;fill-opacity:.55;stroke:#0072b2;stroke-width:.5}\
.live{fill:none;stroke:#d55e00;stroke-width:2.5;stroke-linejoin:round}\
.tail{stroke-dasharray:4 3}.bin{fill:#000000;fill-opacity:0}\
.alarm{fill:#b3261e;font-weight:600}\
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.soft{fill:#9da7b3}.paper{fill:#0d1117}\
.grid{stroke:#30363d}.axis{stroke:#9da7b3}.reference{fill:#0072b2;fill-opacity:.65;stroke:#56b4e9}\
.live{stroke:#e69f00}.alarm{fill:#ff8a80}}";

/// Draws it.
#[must_use]
pub fn svg(picture: &Picture) -> String {
    let slots = slots(picture);
    let axis = Axis::over(&slots);
    let mut out = String::with_capacity(16 << 10);
    let title = format!(
        "{} version {} · {}",
        picture.family,
        picture.version,
        short(&picture.signal, NAME_CHARS)
    );
    let verdict = verdict(picture);
    out.push_str(&format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" aria-labelledby=\"title about\">\n"
    ));
    element(&mut out, "title", "id=\"title\"", &title);
    element(&mut out, "desc", "id=\"about\"", &about(picture, &verdict));
    let _ = writeln!(out, "<style>{STYLE}</style>");
    let _ = writeln!(
        out,
        "<rect class=\"paper\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>"
    );
    label(&mut out, (24.0, 32.0), "head", &title);
    let is_alarm = picture.score.is_some_and(|s| s.status == Status::Alarm);
    let class = if is_alarm { "alarm" } else { "" };
    label(&mut out, (24.0, 54.0), class, &verdict);
    label(&mut out, (24.0, 74.0), "soft", &aside(picture));
    grid(&mut out, &axis);
    bars(&mut out, &slots, &axis);
    outline(&mut out, &slots, &axis);
    ticks(&mut out, picture, &slots);
    legend(&mut out, picture);
    hovers(&mut out, &slots);
    out.push_str("</svg>\n");
    out
}

/// The score in words.
fn verdict(picture: &Picture) -> String {
    let Some(score) = picture.score else {
        return "insufficient: the reference fills fewer than two bins".to_owned();
    };
    let status = match score.status {
        Status::Quiet => "quiet",
        Status::Alarm => "ALARM",
        Status::Insufficient => "insufficient: too few values to say",
    };
    format!(
        "PSI {} · bound {} · threshold {} · {status}",
        number(score.value),
        number(score.bound),
        number(score.threshold)
    )
}

/// Who, when, and what is not in the picture.
fn aside(picture: &Picture) -> String {
    let mut parts = vec![format!("cohort {}", picture.cohort)];
    parts.extend(picture.span_ms.map(|(from, until)| {
        let time = |ms: i64| {
            jiff::Timestamp::from_millisecond(ms)
                .map_or("?".to_owned(), |t| t.strftime("%Y-%m-%d %H:%M").to_string())
        };
        format!("{} to {} UTC", time(from), time(until))
    }));
    if picture.unusable > 0 {
        parts.push(format!("{} unusable", picture.unusable));
    }
    if picture.isolated > 0 {
        parts.push(format!("{} isolated", picture.isolated));
    }
    parts.join(" · ")
}

fn about(picture: &Picture, verdict: &str) -> String {
    format!(
        "Shares of the values by bin: {} of the reference as an area, {} live ones as an outline, {} of them below and {} above the reference's edges. {verdict}.",
        total(&picture.reference),
        live_total(picture),
        picture.under,
        picture.over
    )
}

fn total(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |sum, n| sum.saturating_add(*n))
}

fn live_total(picture: &Picture) -> u64 {
    let tails = picture.under.saturating_add(picture.over);
    total(&picture.live).saturating_add(tails)
}

fn element(out: &mut String, name: &str, attributes: &str, content: &str) {
    let _ = write!(out, "<{name} {attributes}>");
    text::escape(out, content);
    let _ = writeln!(out, "</{name}>");
}

fn label(out: &mut String, (x, y): (f64, f64), class: &str, content: &str) {
    let attributes = format!("x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\"");
    element(out, "text", &attributes, content);
}

fn grid(out: &mut String, axis: &Axis) {
    for share in axis.ticks() {
        let y = axis.y(share);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"
        );
        label(out, (LEFT - 8.0, y + 4.5), "soft end", &percent(share));
    }
    label(out, (LEFT, TOP - 10.0), "soft", "share of the values");
}

fn bars(out: &mut String, slots: &[Slot], axis: &Axis) {
    for slot in slots.iter().filter(|slot| slot.reference > 0.0) {
        let y = axis.y(slot.reference);
        let _ = writeln!(
            out,
            "<rect class=\"reference\" x=\"{:.2}\" y=\"{y:.2}\" width=\"{:.2}\" height=\"{:.2}\"/>",
            slot.x,
            slot.width,
            BOTTOM - y
        );
    }
    let _ = writeln!(
        out,
        "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{BOTTOM}\" y2=\"{BOTTOM}\"/>"
    );
}

/// The live distribution as steps over neighbouring bins; open tails and classes stand by themselves.
fn outline(out: &mut String, slots: &[Slot], axis: &Axis) {
    let mut run: Vec<&Slot> = Vec::new();
    for (at, slot) in slots.iter().enumerate() {
        run.push(slot);
        if slot.joins_next && at + 1 < slots.len() {
            continue;
        }
        if run.iter().any(|slot| slot.live > 0.0) {
            let tail = if slot.is_tail { " tail" } else { "" };
            let first = run.first().map_or(LEFT, |slot| slot.x);
            let mut path = format!("M{first:.2} {BOTTOM}");
            for slot in &run {
                let _ = write!(path, "V{:.2}H{:.2}", axis.y(slot.live), slot.x + slot.width);
            }
            let _ = writeln!(out, "<path class=\"live{tail}\" d=\"{path}V{BOTTOM}\"/>");
        }
        run.clear();
    }
}

fn ticks(out: &mut String, picture: &Picture, slots: &[Slot]) {
    for (x, words) in layout::ticks(picture, slots) {
        let _ = writeln!(
            out,
            "<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{BOTTOM}\" y2=\"{:.1}\"/>",
            BOTTOM + 5.0
        );
        label(out, (x, BOTTOM + 19.0), "soft middle", &words);
    }
    let note = match &picture.bins {
        Bins::Classes(classes) if classes.len() > layout::CLASSES_MAX => {
            "the most frequent classes; the last bar is all others"
        }
        Bins::Classes(_) => "predicted class",
        Bins::Edges(_) if layout::is_even(slots) => {
            "bins drawn equally wide; dashed: beyond the reference's edges"
        }
        Bins::Edges(_) => "value; dashed: beyond the reference's edges",
    };
    label(
        out,
        ((LEFT + RIGHT) / 2.0, BOTTOM + 38.0),
        "soft middle",
        note,
    );
}

fn legend(out: &mut String, picture: &Picture) {
    let y = HEIGHT - 14.0;
    let _ = writeln!(
        out,
        "<rect class=\"reference\" x=\"{LEFT}\" y=\"{:.1}\" width=\"18\" height=\"12\"/>",
        y - 11.0
    );
    let reference = format!("reference, n = {}", total(&picture.reference));
    label(out, (LEFT + 26.0, y), "", &reference);
    let _ = writeln!(
        out,
        "<path class=\"live\" d=\"M{0:.1} {1:.1}V{2:.1}H{3:.1}V{1:.1}\"/>",
        LEFT + 230.0,
        y + 1.0,
        y - 10.0,
        LEFT + 248.0
    );
    let live = format!("live, n = {}", live_total(picture));
    label(out, (LEFT + 256.0, y), "", &live);
}

/// What a bin holds, for whoever points at it.
fn hovers(out: &mut String, slots: &[Slot]) {
    for slot in slots {
        let _ = write!(
            out,
            "<rect class=\"bin\" x=\"{:.2}\" y=\"{TOP}\" width=\"{:.2}\" height=\"{:.2}\"><title>",
            slot.x,
            slot.width,
            BOTTOM - TOP
        );
        let words = format!(
            "{}: reference {} ({}), live {} ({})",
            slot.name,
            percent(slot.reference),
            slot.reference_count,
            percent(slot.live),
            slot.live_count
        );
        text::escape(out, &words);
        out.push_str("</title></rect>\n");
    }
}

#[cfg(test)]
#[path = "plot_tests.rs"]
mod tests;
