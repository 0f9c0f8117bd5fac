//! Operators of our own in tract's place: those of `ai.onnx.ml`, of which tabular models are made.
//!
//! [`forest`] and [`columns`] compute and know nothing of tract; [`trees`], [`ensemble5`] and
//! [`tabular`] read what the file says; [`plug`] makes operators of tract of them.

mod columns;
mod ensemble5;
mod forest;
mod labels;
pub(in crate::inference) mod plug;
mod tabular;
mod trees;

use tract_onnx::Onnx;

/// Puts our operators in the place of tract's, or beside them.
pub(super) fn register(engine: &mut Onnx) {
    let operators = &mut engine.op_register;
    operators.insert("Binarizer", tabular::binarizer);
    operators.insert("FeatureVectorizer", tabular::feature_vectorizer);
    operators.insert("Imputer", tabular::imputer);
    operators.insert("LabelEncoder", tabular::label_encoder);
    operators.insert("LinearClassifier", tabular::linear_classifier);
    operators.insert("Normalizer", tabular::normalizer);
    operators.insert("OneHotEncoder", tabular::one_hot_encoder);
    operators.insert("Scaler", tabular::scaler);
    operators.insert("TreeEnsemble", ensemble5::ensemble);
    operators.insert("TreeEnsembleClassifier", trees::classifier);
    operators.insert("TreeEnsembleRegressor", trees::regressor);
    operators.insert("ZipMap", tabular::zip_map);
}

/// What to do about an operator that is not there, if something can be done.
pub(super) fn way_out(operator: &str) -> Option<&'static str> {
    Some(match operator {
        "SVMClassifier" | "SVMRegressor" => {
            "kernel machines are not supported: a linear model, trees or a small network is"
        }
        "StringNormalizer" | "Tokenizer" | "TfIdfVectorizer" | "StringConcat" | "StringSplit"
        | "RegexFullMatch" => "text is not supported: encode it before the model is asked",
        "CastMap" | "DictVectorizer" => {
            "dictionaries are not supported: export the model with a tensor as input"
        }
        "SequenceConstruct" | "SequenceAt" | "ConcatFromSequence" | "SplitToSequence" => {
            "sequences are not supported: export the model with tensors"
        }
        "CDist" => "export the model with the standard operators alone (no com.microsoft)",
        _ => return None,
    })
}
