//! What classes are called.

use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

/// One label a class.
#[derive(Debug, Clone)]
pub(super) enum Labels {
    Numbers(Vec<i64>),
    Texts(Vec<String>),
}

impl Labels {
    /// Reads `classlabels_strings` or, if there is none, the numbers of this attribute.
    pub(super) fn read(node: &NodeProto, numbers: &str) -> TractResult<Self> {
        let texts = node.get_attr_opt_tvec::<&str>("classlabels_strings")?;
        Ok(match texts {
            Some(texts) if !texts.is_empty() => {
                Self::Texts(texts.iter().map(|&t| t.to_owned()).collect())
            }
            _ => {
                let numbers = node.get_attr_opt_slice::<i64>(numbers)?;
                Self::Numbers(numbers.unwrap_or_default().to_vec())
            }
        })
    }

    /// Number of classes.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Numbers(n) => n.len(),
            Self::Texts(t) => t.len(),
        }
    }

    pub(super) fn datum_type(&self) -> DatumType {
        match self {
            Self::Numbers(_) => DatumType::I64,
            Self::Texts(_) => DatumType::String,
        }
    }

    /// A single class is chosen or not: the labels are 0 and 1 then.
    ///
    /// # Errors
    /// A single text says nothing for "not".
    pub(super) fn for_one_score(self) -> TractResult<Self> {
        match self {
            Self::Numbers(n) if n.len() == 1 => Ok(Self::Numbers(vec![0, 1])),
            Self::Texts(t) if t.len() == 1 => bail!(
                "one class with a text label has no second label to choose; export it with numbers"
            ),
            labels => Ok(labels),
        }
    }

    /// The labels of the classes with these numbers.
    pub(super) fn tensor(&self, classes: impl Iterator<Item = usize>) -> TractResult<Tensor> {
        Ok(match self {
            Self::Numbers(numbers) => tensor1(&classes.map(|c| numbers[c]).collect::<Vec<_>>()),
            Self::Texts(texts) => tensor1(&classes.map(|c| texts[c].clone()).collect::<Vec<_>>()),
        })
    }
}
