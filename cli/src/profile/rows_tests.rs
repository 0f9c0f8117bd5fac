#![allow(clippy::unwrap_used)]
use super::*;

fn spec(name: &str, dtype: DType, shape: &[usize]) -> TensorSpec {
    TensorSpec {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
        layout: None,
    }
}

fn rows(
    name: &str,
    text: &str,
    label: Option<&str>,
) -> (tempfile::TempDir, Result<Rows, RowsError>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    let opened = Rows::open(&path, label);
    (folder, opened)
}

fn all(mut rows: Rows) -> Result<Vec<Row>, RowsError> {
    let mut read = Vec::new();
    while let Some(row) = rows.next_row()? {
        read.push(row);
    }
    Ok(read)
}

#[test]
fn csv_fills_one_input_in_order_or_several_by_name() {
    let text = "a,kind,b\n1,cat,2.5\n,dog,-1\n\n";
    let (_folder, opened) = rows("data.csv", text, Some("kind"));
    let mut opened = opened.unwrap();
    assert_eq!(opened.names(), ["a", "b"]);
    opened.fit(&[spec("x", DType::FP32, &[1, 2])]).unwrap();
    let read = all(opened).unwrap();
    assert_eq!(read.len(), 2);
    assert_eq!(read[0].label.as_deref(), Some("cat"));
    assert_eq!(read[0].values["x"], GoldenValues::Numbers(vec![1.0, 2.5]));
    let GoldenValues::Numbers(second) = &read[1].values["x"] else {
        panic!("numbers expected");
    };
    assert!(second[0].is_nan() && second[1] == -1.0);

    let (_folder, opened) = rows("data.csv", "b,colour,a\n1,red,2\n", None);
    let mut opened = opened.unwrap();
    let inputs = [
        spec("a", DType::FP32, &[1, 1]),
        spec("colour", DType::BYTES, &[1]),
    ];
    opened.fit(&inputs).unwrap();
    let read = all(opened).unwrap();
    assert_eq!(read[0].values["a"], GoldenValues::Numbers(vec![2.0]));
    assert_eq!(
        read[0].values["colour"],
        GoldenValues::Bytes(vec![b"red".to_vec()])
    );
}

#[test]
fn what_does_not_fit_is_named_with_its_line() {
    let one = [spec("x", DType::FP32, &[1, 2])];
    let (_folder, opened) = rows("data.csv", "a,b\n1,2\n1,two\n", None);
    let mut opened = opened.unwrap();
    opened.fit(&one).unwrap();
    let problem = all(opened).unwrap_err().to_string();
    assert!(
        problem.ends_with("data.csv:3: \"x\": expected a number, got \"two\""),
        "{problem}"
    );

    let (_folder, opened) = rows("data.csv", "a,b,c\n1,2,3\n", None);
    let problem = opened.unwrap().fit(&one).unwrap_err().to_string();
    assert!(
        problem.contains("3 columns beside the label's, the model takes 2"),
        "{problem}"
    );

    let (_folder, opened) = rows("data.csv", "a,b\n1,2,3\n", None);
    let mut opened = opened.unwrap();
    opened.fit(&one).unwrap();
    assert!(
        all(opened)
            .unwrap_err()
            .to_string()
            .contains("expected 2 columns, got 3")
    );

    assert!(
        rows("data.csv", "a,b\n", Some("c"))
            .1
            .unwrap_err()
            .to_string()
            .contains("no column \"c\"")
    );
    assert!(
        rows("data.parquet", "", None)
            .1
            .unwrap_err()
            .to_string()
            .contains(".csv or .jsonl")
    );
}

#[test]
fn json_and_folders_carry_labels() {
    let text = "{\"inputs\":{\"x\":[1,2]},\"label\":3}\n{\"inputs\":{\"x\":[1,2]}}\n";
    let (_folder, opened) = rows("data.jsonl", text, None);
    let read = all(opened.unwrap()).unwrap();
    assert_eq!(
        (read[0].label.as_deref(), read[1].label.as_deref()),
        (Some("3"), None)
    );

    let folder = tempfile::tempdir().unwrap();
    for name in ["cat/1.png", "dog/2.png", "dog/.hidden"] {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, name).unwrap();
    }
    let mut opened = Rows::open(folder.path(), None).unwrap();
    assert!(opened.fit(&[spec("x", DType::FP32, &[1, 2])]).is_err());
    opened.fit(&[spec("image", DType::BYTES, &[1])]).unwrap();
    let read = all(opened).unwrap();
    let labels: Vec<_> = read.iter().map(|row| row.label.as_deref()).collect();
    assert_eq!(labels, [Some("cat"), Some("dog")]);
    assert_eq!(
        read[0].values["image"],
        GoldenValues::Bytes(vec![b"cat/1.png".to_vec()])
    );
}
