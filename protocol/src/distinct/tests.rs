#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]
use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

fn of<T: std::fmt::Display>(values: impl IntoIterator<Item = T>) -> Distinct {
    let mut sketch = Distinct::default();
    for value in values {
        sketch.add(hash(value.to_string().as_bytes()));
    }
    sketch
}

fn text(sketch: &Distinct) -> String {
    sketch.clone().into()
}

#[test]
fn the_hash_never_changes() {
    // The first eight bytes of SHA-256 of nothing and of "abc" (FIPS 180-4).
    assert_eq!(hash(b""), 0xe3b0_c442_98fc_1c14);
    assert_eq!(hash(b"abc"), 0xba78_16bf_8f01_cfea);
    // 0xba7 and 816b…: register 1011101001, then 111….
    assert_eq!(of(["abc"]).registers, [(0b10_1110_1001 << 6) | 1]);
    assert_eq!(text(&of(["abc"])), "AbpB");
    let mut zeros = Distinct::default();
    zeros.add(0);
    assert_eq!((zeros.registers[0], zeros.rank_max()), (55, 55));
}

#[test]
fn estimates_are_as_close_as_the_standard_error_says() {
    for exact in [1_u64, 2, 10, 100, 1000, 3000, 10_000, 100_000] {
        let rounds = if exact > 1000 { 8 } else { 40 };
        let mut squares = 0.0;
        for round in 0..rounds {
            let estimate = of((0..exact).map(|n| format!("{round}/{n}"))).estimate();
            let error = estimate / exact as f64 - 1.0;
            assert!(error.abs() < 4.0 * STANDARD_ERROR, "{exact}: {estimate}");
            squares += error * error;
        }
        let error = (squares / f64::from(rounds)).sqrt();
        assert!(error < 1.7 * STANDARD_ERROR, "{exact}: {error}");
    }
    assert_eq!(Distinct::default().estimate(), 0.0);
    let full = Distinct {
        registers: (0..1024).map(|at| (at << 6) | 55).collect(),
    };
    assert!(full.estimate().is_infinite() || full.estimate() > 1e18);
}

#[test]
fn few_take_few_bytes_and_many_no_more_than_all_registers() {
    assert_eq!(text(&Distinct::default()), "AQ");
    assert_eq!(text(&of(0..10)).len(), 28);
    let many = of(0..100_000);
    assert_eq!(text(&many).len(), TEXT_MAX_BYTES);
    assert_eq!(Distinct::try_from(text(&many)).unwrap(), many);
}

#[test]
fn what_is_none_is_refused() {
    let encoded = |bytes: &[u8]| Distinct::try_from(STANDARD_NO_PAD.encode(bytes));
    let is_form = |found: Result<Distinct, DistinctError>| {
        assert!(
            matches!(found, Err(DistinctError::Form { .. })),
            "{found:?}"
        );
    };
    is_form(encoded(&[]));
    is_form(encoded(&[3, 0, 1]));
    is_form(encoded(&[SPARSE, 0]));
    is_form(encoded(&[DENSE; 768]));
    // Rank 0, rank 56, a register twice, one out of its turn; 63 in every register.
    for bad in [
        &[SPARSE, 0, 0][..],
        &[SPARSE, 0, 56],
        &[SPARSE, 0, 1, 0, 2],
        &[SPARSE, 0, 65, 0, 1],
        &[&[DENSE][..], &[255; 768]].concat(),
    ] {
        assert!(
            matches!(encoded(bad), Err(DistinctError::Register { .. })),
            "{bad:?}"
        );
    }
    let long = Distinct::try_from("A".repeat(TEXT_MAX_BYTES + 1));
    assert!(matches!(long, Err(DistinctError::Length { .. })));
    for bad in ["A=", "AQ==", "ÿ", "A Q"] {
        let found = Distinct::try_from(bad.to_owned());
        assert!(matches!(found, Err(DistinctError::Base64(_))), "{found:?}");
    }
}

proptest! {
    /// Any partition of the values, in any order, some of it twice: the same bytes, those of all values in
    /// one.
    #[test]
    fn any_partition_in_any_order_merges_to_the_same_bytes(
        values in prop::collection::vec((0_u32..3000, 0_usize..6), 0..2000),
        order in Just([0_usize, 1, 2, 3, 4, 5]).prop_shuffle(),
        twice in 0_usize..6,
    ) {
        let mut parts = vec![Distinct::default(); 6];
        for (value, part) in &values {
            parts[*part].add(hash(&value.to_be_bytes()));
        }
        let mut merged = Distinct::default();
        for at in order.into_iter().chain([twice]) {
            let sent: Distinct = serde_json::from_slice(&serde_json::to_vec(&parts[at]).unwrap()).unwrap();
            prop_assert_eq!(&sent, &parts[at]);
            merged.merge(&sent);
        }
        let mut whole = Distinct::default();
        values.iter().for_each(|(value, _)| whole.add(hash(&value.to_be_bytes())));
        prop_assert_eq!(serde_json::to_vec(&merged).unwrap(), serde_json::to_vec(&whole).unwrap());
        let exact = values.iter().map(|(value, _)| value).collect::<HashSet<_>>().len();
        prop_assert!(merged.filled() <= exact);
        let slack = 3.0 + 5.0 * STANDARD_ERROR * exact as f64;
        prop_assert!((merged.estimate() - exact as f64).abs() <= slack, "{} for {exact}", merged.estimate());
    }

    #[test]
    fn no_text_panics(text in "[A-Za-z0-9+/]{0,64}", bytes in prop::collection::vec(any::<u8>(), 0..800)) {
        for text in [text, STANDARD_NO_PAD.encode(&bytes), STANDARD_NO_PAD.encode([&[DENSE][..], &bytes].concat())] {
            if let Ok(sketch) = Distinct::try_from(text) {
                let again = Distinct::try_from(String::from(sketch.clone())).unwrap();
                prop_assert_eq!(again, sketch);
            }
        }
    }
}
