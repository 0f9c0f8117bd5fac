//! The operators of [`super::columns`]: reads what the file says and runs them over tensors.

use super::columns::{
    Linear, Norm, Places, binarize, float_key, impute, integer_key, normalize, one_hot,
    place_columns, scale,
};
use super::labels::Labels;
use super::plug::{Fact, Kernel, Operator, plugged};
use super::trees::{post_transform, table_fact, table_of};
use std::sync::Arc;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

type Parsed = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// An operator whose description is all that it needs to run.
trait Simple: Kernel + Clone {
    const NAME: &'static str;
    const OUTPUTS: usize = 1;
    const ONE_INPUT: bool = true;
    /// As [`Operator::facts`], after everything about the inputs was checked.
    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>>;
}

impl<S: Simple> Operator for S {
    fn name(&self) -> &'static str {
        S::NAME
    }

    fn inputs(&self) -> Option<usize> {
        S::ONE_INPUT.then_some(1)
    }

    fn outputs(&self) -> usize {
        S::OUTPUTS
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        Simple::facts(self, inputs)
    }

    fn prepare(&self, inputs: &[Fact]) -> TractResult<Box<dyn Kernel>> {
        Simple::facts(self, inputs)?;
        Ok(Box::new(self.clone()))
    }
}

/// `ZipMap` makes dictionaries of a table; the table itself says the same, so it is passed on. Its
/// columns are the classes in order.
pub(super) fn zip_map(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    let identity = ctx.framework.op_register.0.get("Identity");
    identity.context("no Identity")?(ctx, node)
}

/// Whether a list per column fits: one entry for all columns, or one for each.
fn check_columns(what: &str, entries: usize, shape: &[TDim]) -> TractResult<()> {
    let width = shape.last().and_then(|w| w.to_usize().ok());
    ensure!(
        entries == 1 || width.is_none_or(|w| w == entries),
        "{what}: {entries} entries for {width:?} columns, expected one, or one for each"
    );
    Ok(())
}

fn width_of(tensor: &Tensor) -> usize {
    tensor.shape().last().copied().unwrap_or(1)
}

/// The tensor's values as floats of their own, to be changed.
fn owned_floats(input: &Tensor) -> TractResult<Tensor> {
    Ok(input.cast_to::<f32>()?.into_owned())
}

fn is_number(t: DatumType) -> bool {
    matches!(
        t,
        DatumType::F32 | DatumType::F64 | DatumType::I64 | DatumType::I32
    )
}

fn check_number(t: DatumType) -> TractResult<()> {
    ensure!(
        is_number(t),
        "expected FP32, FP64, INT64 or INT32, got {t:?}"
    );
    Ok(())
}

#[derive(Debug, Clone)]
struct Scaler {
    offsets: Vec<f32>,
    scales: Vec<f32>,
}

pub(super) fn scaler(_: &ParsingContext, node: &NodeProto) -> Parsed {
    let offsets = node.get_attr_opt_slice::<f32>("offset")?.unwrap_or(&[0.0]);
    let scales = node.get_attr_opt_slice::<f32>("scale")?.unwrap_or(&[1.0]);
    Ok(plugged(Scaler {
        offsets: offsets.to_vec(),
        scales: scales.to_vec(),
    }))
}

impl Simple for Scaler {
    const NAME: &'static str = "Scaler";
    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let (datum_type, shape) = &inputs[0];
        check_number(*datum_type)?;
        check_columns("offset", self.offsets.len(), shape)?;
        check_columns("scale", self.scales.len(), shape)?;
        Ok(tvec![(DatumType::F32, shape.clone())])
    }
}

impl Kernel for Scaler {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let width = width_of(&inputs[0]);
        let mut out = Tensor::zero::<f32>(inputs[0].shape())?;
        let mut view = out.try_as_plain_ram_mut()?;
        let values = view.as_slice_mut::<f32>()?;
        if inputs[0].datum_type() == DatumType::F64 {
            let wide = |list: &[f32]| list.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            let input = inputs[0].try_as_plain_ram()?;
            let (offsets, scales) = (wide(&self.offsets), wide(&self.scales));
            scale(input.as_slice::<f64>()?, width, &offsets, &scales, values);
        } else {
            let input = inputs[0].cast_to::<f32>()?;
            let input = input.try_as_plain_ram()?;
            let input = input.as_slice::<f32>()?;
            scale(input, width, &self.offsets, &self.scales, values);
        }
        Ok(tvec![out.into_tvalue()])
    }
}

#[derive(Debug, Clone)]
enum Imputer {
    Floats { values: Vec<f32>, replaced: f32 },
    Integers { values: Vec<i64>, replaced: i64 },
}

pub(super) fn imputer(_: &ParsingContext, node: &NodeProto) -> Parsed {
    let floats = node.get_attr_opt_slice::<f32>("imputed_value_floats")?;
    let integers = node.get_attr_opt_slice::<i64>("imputed_value_int64s")?;
    Ok(plugged(match (floats, integers) {
        (Some(values), None) => Imputer::Floats {
            values: values.to_vec(),
            replaced: node.get_attr_opt("replaced_value_float")?.unwrap_or(0.0),
        },
        (None, Some(values)) => Imputer::Integers {
            values: values.to_vec(),
            replaced: node.get_attr_opt("replaced_value_int64")?.unwrap_or(0),
        },
        _ => bail!("expected imputed_value_floats or imputed_value_int64s, and one of them"),
    }))
}

impl Simple for Imputer {
    const NAME: &'static str = "Imputer";
    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let (expected, entries) = match self {
            Self::Floats { values, .. } => (DatumType::F32, values.len()),
            Self::Integers { values, .. } => (DatumType::I64, values.len()),
        };
        let (datum_type, shape) = &inputs[0];
        ensure!(
            *datum_type == expected,
            "expected {expected:?}, got {datum_type:?}"
        );
        check_columns("imputed values", entries, shape)?;
        Ok(tvec![(expected, shape.clone())])
    }
}

impl Kernel for Imputer {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let width = width_of(&inputs[0]);
        let mut out = inputs[0].clone().into_tensor();
        let mut view = out.try_as_plain_ram_mut()?;
        match self {
            Self::Floats { values, replaced } => {
                let missing = |x: f32| x == *replaced || x.is_nan() && replaced.is_nan();
                impute(view.as_slice_mut::<f32>()?, width, values, missing);
            }
            Self::Integers { values, replaced } => {
                let rows = view.as_slice_mut::<i64>()?;
                impute(rows, width, values, |x| x == *replaced);
            }
        }
        Ok(tvec![out.into_tvalue()])
    }
}

#[derive(Debug, Clone)]
struct Binarizer(f32);

pub(super) fn binarizer(_: &ParsingContext, node: &NodeProto) -> Parsed {
    Ok(plugged(Binarizer(
        node.get_attr_opt("threshold")?.unwrap_or(0.0),
    )))
}

impl Simple for Binarizer {
    const NAME: &'static str = "Binarizer";
    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        check_number(inputs[0].0)?;
        Ok(tvec![(DatumType::F32, inputs[0].1.clone())])
    }
}

impl Kernel for Binarizer {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let mut out = owned_floats(&inputs[0])?;
        let mut view = out.try_as_plain_ram_mut()?;
        binarize(view.as_slice_mut::<f32>()?, self.0);
        Ok(tvec![out.into_tvalue()])
    }
}

#[derive(Debug, Clone)]
struct Normalizer(Norm);

pub(super) fn normalizer(_: &ParsingContext, node: &NodeProto) -> Parsed {
    let norm = match node.get_attr_opt("norm")?.unwrap_or("MAX") {
        "MAX" => Norm::Max,
        "L1" => Norm::L1,
        "L2" => Norm::L2,
        other => bail!("norm: expected MAX, L1 or L2, got {other:?}"),
    };
    Ok(plugged(Normalizer(norm)))
}

impl Simple for Normalizer {
    const NAME: &'static str = "Normalizer";
    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        check_number(inputs[0].0)?;
        table_fact(&inputs[0].1)?;
        Ok(tvec![(DatumType::F32, inputs[0].1.clone())])
    }
}

impl Kernel for Normalizer {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let (_, width) = table_of(&inputs[0])?;
        let mut out = owned_floats(&inputs[0])?;
        let mut view = out.try_as_plain_ram_mut()?;
        normalize(view.as_slice_mut::<f32>()?, width, self.0);
        Ok(tvec![out.into_tvalue()])
    }
}

#[derive(Debug, Clone)]
struct LinearClassifier {
    linear: Arc<Linear>,
    labels: Labels,
    models: usize,
}

pub(super) fn linear_classifier(_: &ParsingContext, node: &NodeProto) -> Parsed {
    let coefficients: Vec<f32> = node.get_attr_vec("coefficients")?;
    let intercepts: Vec<f32> = node.get_attr_opt_vec("intercepts")?.unwrap_or_default();
    let labels = Labels::read(node, "classlabels_ints")?;
    let models = intercepts.len();
    ensure!(models > 0, "expected an intercept a model, got none");
    ensure!(
        !coefficients.is_empty() && coefficients.len().is_multiple_of(models),
        "{} coefficients for {models} models",
        coefficients.len()
    );
    let adds_second = models == 1 && labels.len() == 2;
    ensure!(
        adds_second || labels.len() == models,
        "{} class labels for {models} models",
        labels.len()
    );
    let linear = Linear {
        coefficients,
        intercepts,
        adds_second,
        post_transform: post_transform(node.get_attr_opt("post_transform")?.unwrap_or("NONE"))?,
    };
    Ok(plugged(LinearClassifier {
        linear: Arc::new(linear),
        labels: labels.for_one_score()?,
        models,
    }))
}

impl LinearClassifier {
    fn scores(&self) -> usize {
        if self.linear.adds_second {
            2
        } else {
            self.models
        }
    }
}

impl Simple for LinearClassifier {
    const NAME: &'static str = "LinearClassifier";
    const OUTPUTS: usize = 2;
    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        check_number(inputs[0].0)?;
        let (rows, width) = table_fact(&inputs[0].1)?;
        let expected = self.linear.coefficients.len() / self.models;
        if let Ok(width) = width.to_usize() {
            ensure!(
                width == expected,
                "a row has {width} features, the coefficients are for {expected}"
            );
        }
        let scores = (DatumType::F32, tvec![rows.clone(), self.scores().to_dim()]);
        Ok(tvec![(self.labels.datum_type(), tvec![rows]), scores])
    }
}

impl Kernel for LinearClassifier {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let (rows, width) = table_of(&inputs[0])?;
        let expected = self.linear.coefficients.len() / self.models;
        ensure!(
            width == expected,
            "a row has {width} features, the coefficients are for {expected}"
        );
        let input = inputs[0].cast_to::<f32>()?;
        let input = input.try_as_plain_ram()?;
        let mut scores = Tensor::zero::<f32>(&[rows, self.scores()])?;
        let mut view = scores.try_as_plain_ram_mut()?;
        let table = input.as_slice::<f32>()?.chunks(width);
        let mut raw = vec![0.0; self.models];
        let outputs = view.as_slice_mut::<f32>()?.chunks_mut(self.scores());
        let classes = table
            .zip(outputs)
            .map(|(row, out)| self.linear.classify(row, &mut raw, out));
        let labels = self.labels.tensor(classes)?;
        Ok(tvec![labels.into_tvalue(), scores.into_tvalue()])
    }
}

#[derive(Debug, Clone)]
struct OneHotEncoder {
    places: Places,
    count: usize,
    known_only: bool,
}

pub(super) fn one_hot_encoder(_: &ParsingContext, node: &NodeProto) -> Parsed {
    let categories = node.get_attr_opt_slice::<i64>("cats_int64s")?;
    let Some(categories) = categories.filter(|c| !c.is_empty()) else {
        bail!(
            "only numbered categories (cats_int64s) are supported: encode text before the model is \
             asked"
        );
    };
    Ok(plugged(OneHotEncoder {
        places: Places::of_last(categories.iter().map(|&c| integer_key(c))),
        count: categories.len(),
        known_only: node.get_attr_opt::<i64>("zeros")?.unwrap_or(1) == 0,
    }))
}

impl Simple for OneHotEncoder {
    const NAME: &'static str = "OneHotEncoder";
    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        check_number(inputs[0].0)?;
        let mut shape = inputs[0].1.clone();
        shape.push(self.count.to_dim());
        Ok(tvec![(DatumType::F32, shape)])
    }
}

impl Kernel for OneHotEncoder {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let mut shape: TVec<usize> = inputs[0].shape().into();
        shape.push(self.count);
        let mut out = Tensor::zero::<f32>(&shape)?;
        let mut view = out.try_as_plain_ram_mut()?;
        let values = inputs[0].cast_to::<i64>()?;
        let values = values.try_as_plain_ram()?;
        let values = values.as_slice::<i64>()?;
        let cells = view.as_slice_mut::<f32>()?;
        let given = values.iter().copied();
        one_hot(given, &self.places, self.count, self.known_only, cells)
            .map_err(|at| format_err!("{} is no known category", values[at]))?;
        Ok(tvec![out.into_tvalue()])
    }
}

#[derive(Debug, Clone)]
struct LabelEncoder {
    /// Of the keys; inputs must be of their type.
    key_type: DatumType,
    places: Places,
    values: Arc<Tensor>,
    default: Arc<Tensor>,
}

pub(super) fn label_encoder(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    let keys = list(ctx, node, "keys")?;
    let values = list(ctx, node, "values")?;
    ensure!(
        keys.len() == values.len(),
        "{} keys for {} values",
        keys.len(),
        values.len()
    );
    let given = node.get_attr_opt::<&tract_onnx::pb::TensorProto>("default_tensor")?;
    let default = match given {
        Some(tensor) => ctx.load_tensor(tensor)?,
        None if values.datum_type() == DatumType::I64 => {
            tensor0(node.get_attr_opt::<i64>("default_int64")?.unwrap_or(-1))
        }
        None => tensor0(node.get_attr_opt::<f32>("default_float")?.unwrap_or(-0.0)),
    };
    let default = default.cast_to_dt(values.datum_type())?.into_owned();
    ensure!(default.len() == 1, "default_tensor: expected one value");
    Ok(plugged(LabelEncoder {
        key_type: keys.datum_type(),
        places: Places::of(tensor_keys(&keys)?),
        values: values.into_arc_tensor(),
        default: default.into_arc_tensor(),
    }))
}

fn list(ctx: &ParsingContext, node: &NodeProto, what: &str) -> TractResult<Tensor> {
    if let Some(integers) = node.get_attr_opt_slice::<i64>(&format!("{what}_int64s"))? {
        return Ok(tensor1(integers));
    }
    if let Some(floats) = node.get_attr_opt_slice::<f32>(&format!("{what}_floats"))? {
        return Ok(tensor1(floats));
    }
    let tensor = node.get_attr_opt::<&tract_onnx::pb::TensorProto>(&format!("{what}_tensor"))?;
    match tensor.map(|t| ctx.load_tensor(t)).transpose()? {
        Some(tensor) if is_number(tensor.datum_type()) => Ok(tensor),
        _ => bail!(
            "only numbers are supported ({what}_int64s, {what}_floats or {what}_tensor): map text \
             before the model is asked, or after it"
        ),
    }
}

/// One key for each value.
fn tensor_keys(tensor: &Tensor) -> TractResult<Vec<u64>> {
    if tensor.datum_type().is_integer() {
        let whole = tensor.cast_to::<i64>()?;
        let whole = whole.try_as_plain_ram()?;
        return Ok(whole
            .as_slice::<i64>()?
            .iter()
            .map(|&x| integer_key(x))
            .collect());
    }
    let wide = tensor.cast_to::<f64>()?;
    let wide = wide.try_as_plain_ram()?;
    Ok(wide
        .as_slice::<f64>()?
        .iter()
        .map(|&x| float_key(x))
        .collect())
}

impl Simple for LabelEncoder {
    const NAME: &'static str = "LabelEncoder";
    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let (datum_type, shape) = &inputs[0];
        ensure!(
            *datum_type == self.key_type,
            "expected {:?} as the keys are, got {datum_type:?}",
            self.key_type
        );
        Ok(tvec![(self.values.datum_type(), shape.clone())])
    }
}

impl Kernel for LabelEncoder {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        fn pick<T: Datum + Copy>(
            op: &LabelEncoder,
            keys: &[u64],
            shape: &[usize],
        ) -> TractResult<Tensor> {
            let values = op.values.try_as_plain_ram()?;
            let values = values.as_slice::<T>()?;
            let default = op.default.try_as_plain_ram()?;
            let default = default.as_slice::<T>()?;
            let picked = keys.iter().map(|&key| {
                let place = op.places.get(key).and_then(|at| values.get(at));
                place.or(default.first()).copied().context("no default")
            });
            Tensor::from_shape(shape, &picked.collect::<TractResult<Vec<T>>>()?)
        }
        let keys = tensor_keys(&inputs[0])?;
        let shape = inputs[0].shape();
        let out = match self.values.datum_type() {
            DatumType::I64 => pick::<i64>(self, &keys, shape)?,
            DatumType::I32 => pick::<i32>(self, &keys, shape)?,
            DatumType::F64 => pick::<f64>(self, &keys, shape)?,
            _ => pick::<f32>(self, &keys, shape)?,
        };
        Ok(tvec![out.into_tvalue()])
    }
}

#[derive(Debug, Clone)]
struct FeatureVectorizer(Vec<usize>);

pub(super) fn feature_vectorizer(_: &ParsingContext, node: &NodeProto) -> Parsed {
    let columns: Vec<usize> = node.get_attr_vec("inputdimensions")?;
    let total: Option<usize> = columns
        .iter()
        .try_fold(0, |sum: usize, &c| sum.checked_add(c));
    ensure!(
        columns.len() == node.input.len() && total.is_some_and(|t| t <= 1 << 20),
        "inputdimensions {columns:?} for {} inputs",
        node.input.len()
    );
    Ok(plugged(FeatureVectorizer(columns)))
}

impl Simple for FeatureVectorizer {
    const NAME: &'static str = "FeatureVectorizer";
    const ONE_INPUT: bool = false;
    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        ensure!(inputs.len() == self.0.len(), "one dimension an input");
        let (rows, _) = table_fact(&inputs[0].1)?;
        for (datum_type, shape) in inputs {
            check_number(*datum_type)?;
            ensure!(table_fact(shape)?.0 == rows, "inputs differ in rows");
        }
        let total: usize = self.0.iter().sum();
        Ok(tvec![(DatumType::F32, tvec![rows, total.to_dim()])])
    }
}

impl Kernel for FeatureVectorizer {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let total: usize = self.0.iter().sum();
        let (rows, _) = table_of(&inputs[0])?;
        let mut out = Tensor::zero::<f32>(&[rows, total])?;
        let mut view = out.try_as_plain_ram_mut()?;
        let cells = view.as_slice_mut::<f32>()?;
        let mut first = 0;
        for (input, &columns) in inputs.iter().zip(&self.0) {
            let (_, width) = table_of(input)?;
            let table = input.cast_to::<f32>()?;
            let table = table.try_as_plain_ram()?;
            place_columns(
                table.as_slice::<f32>()?,
                width,
                first,
                columns,
                cells,
                total,
            );
            first += columns;
        }
        Ok(tvec![out.into_tvalue()])
    }
}
