//! The committed pictures are what a person looks at when they change: bless with `DUNLIN_BLESS=1`.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::drift::statistics::Score;
use proptest::prelude::*;
use std::path::Path;

fn score(value: f64, status: Status) -> Option<Score> {
    Some(Score {
        value,
        n_ref: 2000,
        n_cur: 929,
        bound: 0.0462,
        threshold: 0.1,
        status,
    })
}

fn feature() -> Picture {
    Picture {
        family: "digits".to_owned(),
        version: 3,
        cohort: "all".to_owned(),
        signal: "pixels[2]".to_owned(),
        bins: Bins::Edges(vec![
            0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 15.0, 16.5,
        ]),
        reference: vec![420, 180, 260, 230, 210, 190, 170, 140, 110, 90],
        live: vec![12, 20, 48, 90, 130, 170, 160, 120, 60, 40],
        under: 0,
        over: 79,
        unusable: 7,
        isolated: 40,
        score: score(5.284, Status::Alarm),
        span_ms: Some((1_772_323_200_000, 1_772_330_400_000)),
    }
}

fn mix() -> Picture {
    Picture {
        signal: "output_mix".to_owned(),
        bins: Bins::Classes((0..10).map(|class| format!("{class}")).collect()),
        over: 0,
        unusable: 0,
        isolated: 0,
        score: score(0.02, Status::Quiet),
        ..feature()
    }
}

fn hostile() -> Picture {
    Picture {
        signal: "</title><script>alert(\"1\")</script>&amp;\u{202e}\u{7}'".repeat(3),
        bins: Bins::Edges(vec![-1.0, -1e-9, 0.0, 1e-9, 1e300]),
        reference: vec![1, 0, 0, 1],
        live: vec![0, 0, 0, 0],
        over: 0,
        unusable: u64::MAX,
        score: score(0.0, Status::Insufficient),
        span_ms: Some((i64::MIN, i64::MAX)),
        ..feature()
    }
}

#[test]
fn the_pictures_are_the_committed_ones() {
    for (name, picture) in [
        ("feature", feature()),
        ("mix", mix()),
        ("hostile", hostile()),
    ] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/plots/{name}.svg"));
        let got = svg(&picture);
        if std::env::var_os("DUNLIN_BLESS").is_some() {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, &got).unwrap();
        }
        let committed = std::fs::read_to_string(&file).unwrap();
        assert_eq!(
            got, committed,
            "{name}: if this is meant, run again with DUNLIN_BLESS=1"
        );
    }
}

#[test]
fn every_number_that_decides_is_in_words() {
    let text = svg(&feature());
    for words in [
        "digits version 3 · pixels[2]",
        "PSI 5.284 · bound 0.0462 · threshold 0.1 · ALARM",
        "reference, n = 2000",
        "live, n = 929",
        "16.5 and above: reference 0 % (0), live 8.5 % (79)",
        "2026-03-01 00:00 to 2026-03-01 02:00 UTC",
        "7 unusable · 40 isolated",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(svg(&hostile()).contains("insufficient"));
    let none = Picture {
        score: None,
        ..feature()
    };
    assert!(svg(&none).contains("insufficient"));
}

/// Whether it is one well-formed element that holds no other than those drawn here.
fn check(text: &str) -> Result<(), String> {
    const KNOWN: [&str; 8] = [
        "svg", "title", "desc", "style", "rect", "text", "line", "path",
    ];
    let mut open: Vec<&str> = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        let (before, tag) = rest.split_at(at);
        let stray = before.contains('>') || before.chars().any(|c| c.is_control() && c != '\n');
        if stray {
            return Err(format!("stray characters in {before:?}"));
        }
        let end = tag.find('>').ok_or("a tag without an end")?;
        let inside = &tag[1..end];
        let name = inside
            .trim_start_matches('/')
            .split([' ', '/'])
            .next()
            .unwrap_or_default();
        if !KNOWN.contains(&name) || inside.matches('"').count() % 2 != 0 {
            return Err(format!("a tag {inside:?}"));
        }
        if inside.starts_with('/') {
            let opened = open.pop();
            if opened != Some(name) {
                return Err(format!("{name} ends {opened:?}"));
            }
        } else if !inside.ends_with('/') {
            open.push(name);
        }
        rest = &tag[end + 1..];
    }
    open.is_empty()
        .then_some(())
        .ok_or_else(|| format!("{open:?} never ends"))
}

#[test]
fn hostile_names_stay_text() {
    for picture in [feature(), mix(), hostile()] {
        let text = svg(&picture);
        assert_eq!(check(&text), Ok(()), "{text}");
        assert!(
            !text.contains("<script") && !text.contains("NaN\""),
            "{text}"
        );
    }
}

proptest! {
    #[test]
    fn any_picture_is_well_formed(
        signal in ".{0,80}",
        names in prop::collection::vec(".{0,60}", 0..60),
        counts in prop::collection::vec(any::<u64>(), 60),
        under: u64,
        edges in prop::collection::btree_set(any::<i64>(), 2..40),
        scale in prop_oneof![Just(1e-300), Just(1.0), Just(1e289)],
    ) {
        #[allow(clippy::cast_precision_loss)]
        let mut edges: Vec<f64> = edges.into_iter().map(|e| e as f64 * scale).collect();
        edges.dedup();
        let bins = edges.len() - 1;
        for picture in [
            Picture { bins: Bins::Edges(edges), reference: counts[..bins].to_vec(), live: counts[..bins].to_vec(), under, signal: signal.clone(), ..feature() },
            Picture { bins: Bins::Classes(names.clone()), reference: counts[..names.len()].to_vec(), live: counts[..names.len()].to_vec(), signal, ..feature() },
        ] {
            let text = svg(&picture);
            prop_assert_eq!(check(&text), Ok(()));
            prop_assert!(!text.contains("=\"NaN") && !text.contains("inf\""), "{}", text);
        }
    }
}
