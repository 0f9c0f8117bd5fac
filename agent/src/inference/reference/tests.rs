#![allow(clippy::unwrap_used)]
use super::*;

fn column(n: u32) -> Vec<f64> {
    (0..n).map(f64::from).collect()
}

#[test]
fn edges_are_quantiles_with_the_deciles_among_them() {
    // The numeric fixture of the statistics: i² mod 97.
    let values: Vec<f64> = (0..200_u32).map(|i| f64::from(i * i % 97)).collect();
    let edges = edges(&values).unwrap();
    for decile in [4.0, 12.0, 25.0, 34.2, 47.5, 56.8, 67.2, 79.4, 89.2] {
        let near = |e: &f64| (e - decile).abs() < 1e-9;
        assert!(edges.as_slice().iter().any(near), "{decile}: {edges:?}");
    }
    let counts = counts(&edges, &values);
    assert_eq!(counts.iter().sum::<u64>(), 200);
    assert_eq!(edges.as_slice().first(), Some(&0.0));
    assert!(edges.as_slice().last().is_some_and(|e| *e > 96.0));
}

#[test]
fn heavy_values_have_a_bin_of_their_own() {
    let mut values = column(100);
    values.extend(vec![50.0; 100]);
    let edges = edges(&values).unwrap();
    let at = edges.as_slice().iter().position(|e| *e == 50.0).unwrap();
    assert_eq!(edges.as_slice()[at + 1], 50.0_f64.next_up());
    assert_eq!(counts(&edges, &values)[at], 101);
}

#[test]
fn constants_and_what_is_no_number() {
    let constant = edges(&[3.0; 10]).unwrap();
    assert_eq!(
        (constant.bins(), counts(&constant, &[3.0; 10])),
        (1, vec![10])
    );
    assert!(edges(&[f64::NAN, f64::INFINITY]).is_none());
    let signed = edges(&[-0.0, 0.0, 1.0]).unwrap();
    assert_eq!(counts(&signed, &[-0.0, 0.0, 1.0]).iter().sum::<u64>(), 3);
    assert!(
        edges(&[f64::MAX, f64::MIN]).is_some_and(|e| e.bins() > 1) || edges(&[f64::MAX]).is_none()
    );
}

#[test]
fn the_commonest_categories_get_a_bin() {
    let mut feature = FeatureProfile {
        name: "colour".to_owned(),
        tensor: "colour".to_owned(),
        after_steps: false,
        index: 0,
        statistic: None,
        axis: None,
        categories: Some(Vec::new()),
        edges: Edges::default(),
        counts: vec![0],
    };
    let mut seen: BTreeMap<String, u64> = (0..200).map(|n| (format!("c{n:03}"), 1)).collect();
    seen.insert("red".to_owned(), 40);
    seen.insert("blue".to_owned(), 50);
    let mut notes = Vec::new();
    by_categories(&mut feature, &seen, &mut notes);
    let named = feature.categories.unwrap();
    assert_eq!(
        (named.len(), &named[0], &named[1]),
        (CATEGORIES_MAX, &"blue".to_owned(), &"red".to_owned())
    );
    assert_eq!(
        (feature.edges.bins(), feature.counts[0]),
        (CATEGORIES_MAX, 50)
    );
    assert_eq!(notes.len(), 1);
}

#[test]
fn colours_are_found_by_layout_or_shape() {
    let spec = |shape: &[usize], layout: Option<&str>| TensorSpec {
        name: "image".to_owned(),
        dtype: dunlin_protocol::bundle::DType::FP32,
        shape: shape.to_vec(),
        layout: layout.map(str::to_owned),
    };
    let of = |shape: &[usize], layout| colours(&spec(shape, layout)).collect::<Vec<_>>();
    assert_eq!(of(&[1, 3, 8, 8], None), [(1, 0), (1, 1), (1, 2)]);
    assert_eq!(of(&[1, 8, 8, 3], Some("NHWC")), [(3, 0), (3, 1), (3, 2)]);
    assert_eq!(of(&[1, 1, 8, 8], Some("NCHW")), []);
    assert_eq!(of(&[1, 3, 3, 3], None), []);
}
