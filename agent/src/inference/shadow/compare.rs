//! Two versions' answers to the same input. Pure.

use crate::inference::tensor::Values;
use serde_json::{Map, Value};

/// Numbers within this share of the larger one agree.
const RELATIVE: f64 = 0.01;
/// And such a small difference always does.
const ABSOLUTE: f64 = 1e-6;
/// The request's parameter that holds its label.
const LABEL: &str = "label";

/// One version's answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// A class: its name if the version names its classes, and its number.
    Class {
        /// Name.
        name: Option<String>,
        /// Place among the scores.
        index: usize,
    },
    /// Numbers, one list an output.
    Numbers(Vec<Values>),
}

/// What is known to be right, from whoever sent the input.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Label {
    /// Name of a class.
    Name(String),
    /// Number of a class, or what a single number should have been.
    Number(f64),
}

/// What a comparison gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Comparison {
    /// Whether both say the same.
    pub(crate) agree: bool,
    /// By the label: `Greater` if the challenger is better, `Less` if the serving version is.
    pub(crate) better: Option<std::cmp::Ordering>,
}

impl Label {
    /// The label that a request carries (`parameters: {"label": …}`), if it does.
    pub(crate) fn of(parameters: Option<&Map<String, Value>>) -> Option<Self> {
        match parameters?.get(LABEL)? {
            Value::String(name) => Some(Self::Name(name.clone())),
            Value::Number(number) => number.as_f64().map(Self::Number),
            _ => None,
        }
    }
}

impl Answer {
    /// How far from the label it is: 0 is right; none if the label says nothing of such an answer.
    fn distance(&self, label: &Label) -> Option<f64> {
        let wrong = |is_right: bool| if is_right { 0.0 } else { 1.0 };
        match (self, label) {
            (Self::Class { name, .. }, Label::Name(wanted)) => {
                name.as_ref().map(|name| wrong(name == wanted))
            }
            (Self::Class { index, .. }, Label::Number(wanted)) => {
                Some(wrong(*wanted == *index as f64))
            }
            (Self::Numbers(outputs), Label::Number(wanted)) => match outputs.as_slice() {
                [only] if only.len() == 1 => Some((only.get(0)? - wanted).abs()),
                _ => None,
            },
            (Self::Numbers(outputs), Label::Name(wanted)) => match outputs.as_slice() {
                [Values::BYTES(texts)] if texts.len() == 1 => {
                    Some(wrong(texts[0] == wanted.as_bytes()))
                }
                _ => None,
            },
        }
    }
}

/// Compares the challenger's answer with that of the version that serves.
pub(crate) fn compare(serving: &Answer, challenger: &Answer, label: Option<&Label>) -> Comparison {
    let agree = match (serving, challenger) {
        (
            Answer::Class {
                name: Some(one), ..
            },
            Answer::Class {
                name: Some(other), ..
            },
        ) => one == other,
        (Answer::Class { index: one, .. }, Answer::Class { index: other, .. }) => one == other,
        (Answer::Numbers(one), Answer::Numbers(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(a, b)| near(a, b))
        }
        _ => false,
    };
    let better = label.and_then(|label| {
        let (serving, challenger) = (serving.distance(label)?, challenger.distance(label)?);
        // The nearer one is the better one; NaN is beaten by every number.
        Some(match (serving.is_nan(), challenger.is_nan()) {
            (true, true) => std::cmp::Ordering::Equal,
            (true, false) => std::cmp::Ordering::Greater,
            (false, true) => std::cmp::Ordering::Less,
            (false, false) => serving.total_cmp(&challenger),
        })
    });
    Comparison { agree, better }
}

fn near(one: &Values, other: &Values) -> bool {
    if let (Values::BYTES(one), Values::BYTES(other)) = (one, other) {
        return one == other;
    }
    let close = |(a, b): (f64, f64)| {
        let (larger, apart) = (a.abs().max(b.abs()), (a - b).abs());
        let is_near = apart.is_finite() && apart <= ABSOLUTE.max(RELATIVE * larger);
        a == b || (a.is_nan() && b.is_nan()) || is_near
    };
    one.len() == other.len() && one.iter_f64().zip(other.iter_f64()).all(close)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cmp::Ordering;

    fn class(name: &str, index: usize) -> Answer {
        Answer::Class {
            name: (!name.is_empty()).then(|| name.to_owned()),
            index,
        }
    }

    fn numbers(values: &[f32]) -> Answer {
        Answer::Numbers(vec![Values::FP32(values.to_vec())])
    }

    #[test]
    fn classes_agree_by_name_and_else_by_number() {
        let agree = |a: &Answer, b: &Answer| compare(a, b, None).agree;
        assert!(agree(&class("cat", 0), &class("cat", 3)));
        assert!(!agree(&class("cat", 0), &class("dog", 0)));
        assert!(agree(&class("", 2), &class("cat", 2)));
        assert!(!agree(&class("", 2), &class("", 1)));
        assert!(!agree(&class("", 2), &numbers(&[2.0])));
    }

    #[test]
    fn numbers_agree_within_a_hundredth() {
        let agree = |a: &[f32], b: &[f32]| compare(&numbers(a), &numbers(b), None).agree;
        assert!(agree(&[100.0, 0.0], &[100.9, 1e-7]));
        assert!(!agree(&[100.0], &[102.0]));
        assert!(!agree(&[1.0], &[1.0, 1.0]));
        assert!(agree(
            &[f32::NAN, f32::INFINITY],
            &[f32::NAN, f32::INFINITY]
        ));
        assert!(!agree(&[f32::INFINITY], &[f32::NEG_INFINITY]));
        assert!(!agree(&[f32::NAN], &[1.0]));
    }

    #[test]
    fn labels_say_which_is_better() {
        let name = Label::Name("cat".to_owned());
        let better = |a: &Answer, b: &Answer, l: &Label| compare(a, b, Some(l)).better;
        let (cat, dog) = (class("cat", 0), class("dog", 1));
        assert_eq!(better(&dog, &cat, &name), Some(Ordering::Greater));
        assert_eq!(better(&cat, &dog, &name), Some(Ordering::Less));
        assert_eq!(better(&cat, &cat, &name), Some(Ordering::Equal));
        assert_eq!(
            better(&cat, &dog, &Label::Number(1.0)),
            Some(Ordering::Greater)
        );
        assert_eq!(
            better(&class("", 0), &dog, &name),
            None,
            "it names no classes"
        );
        let label = Label::Number(20.0);
        let (near, far, none) = (numbers(&[21.0]), numbers(&[17.0]), numbers(&[f32::NAN]));
        assert_eq!(better(&far, &near, &label), Some(Ordering::Greater));
        assert_eq!(better(&far, &none, &label), Some(Ordering::Less));
        assert_eq!(better(&near, &numbers(&[1.0, 2.0]), &label), None);
    }
}
