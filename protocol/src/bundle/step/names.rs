//! What steps are called, and which values they read and write.

use super::Step;

impl Step {
    /// Its name in a manifest.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Scale { .. } => "scale",
            Self::Softmax { .. } => "softmax",
            Self::Constant(_) => "constant",
            Self::Copy(_) => "copy",
            Self::Cast(_) => "cast",
            Self::Reshape(_) => "reshape",
            Self::Layout(_) => "layout",
            Self::Slice(_) => "slice",
            Self::Concat(_) => "concat",
            Self::Normalise(_) => "normalise",
            Self::DecodeImage(_) => "decode_image",
            Self::Resize(_) => "resize",
            Self::Crop(_) => "crop",
            Self::CenterCrop(_) => "center_crop",
            Self::Pad(_) => "pad",
            Self::Letterbox(_) => "letterbox",
            Self::Greyscale(_) => "greyscale",
            Self::ReverseChannels(_) => "reverse_channels",
            Self::PcmToFloat(_) => "pcm_to_float",
            Self::Frame(_) => "frame",
            Self::SlidingWindow(_) => "sliding_window",
            Self::Carry(_) => "carry",
            Self::MinMax(_) => "min_max",
            Self::Impute(_) => "impute",
            Self::OneHot(_) => "one_hot",
            Self::Sigmoid(_) => "sigmoid",
            Self::ArgMax(_) => "arg_max",
            Self::TopK(_) => "top_k",
            Self::Threshold(_) => "threshold",
            Self::Labels(_) => "labels",
            Self::NonMaxSuppression(_) => "non_max_suppression",
            Self::BoxesToImage(_) => "boxes_to_image",
        }
    }

    /// Names of the values it reads, in the order its signature takes them.
    #[must_use]
    pub fn reads(&self) -> Vec<&str> {
        match self {
            Self::Concat(s) => s.tensors.iter().map(String::as_str).collect(),
            Self::NonMaxSuppression(s) => vec![&s.boxes, &s.scores],
            Self::Carry(_) | Self::Constant(_) => vec![],
            _ => self
                .single()
                .map(|(tensor, _)| tensor)
                .into_iter()
                .collect(),
        }
    }

    /// Names of the values it writes, in the order its signature gives them.
    #[must_use]
    pub fn writes(&self) -> Vec<&str> {
        match self {
            Self::Concat(s) => vec![&s.into],
            Self::TopK(s) => vec![&s.scores, &s.indices],
            Self::NonMaxSuppression(s) => vec![&s.kept_boxes, &s.kept_scores, &s.kept_classes],
            Self::Carry(s) => vec![&s.tensor],
            Self::Constant(s) => vec![&s.tensor],
            _ => {
                let single = self.single();
                let written = single.map(|(tensor, into)| into.unwrap_or(tensor));
                written.into_iter().collect()
            }
        }
    }

    /// Whether the value read is replaced by the one written.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        !self.reads().is_empty() && self.reads() == self.writes()
    }

    /// `tensor` and `into` of a step that reads one value.
    fn single(&self) -> Option<(&str, Option<&str>)> {
        let (tensor, into) = match self {
            Self::Scale { tensor, .. } | Self::Softmax { tensor } => (tensor, None),
            Self::Copy(s) => (&s.tensor, Some(&s.into)),
            Self::Cast(s) => (&s.tensor, s.into.as_ref()),
            Self::Reshape(s) => (&s.tensor, s.into.as_ref()),
            Self::Layout(s) => (&s.tensor, s.into.as_ref()),
            Self::Slice(s) => (&s.tensor, s.into.as_ref()),
            Self::Normalise(s) => (&s.tensor, s.into.as_ref()),
            Self::DecodeImage(s) => (&s.tensor, s.into.as_ref()),
            Self::Resize(s) => (&s.tensor, s.into.as_ref()),
            Self::Crop(s) => (&s.tensor, s.into.as_ref()),
            Self::CenterCrop(s) => (&s.tensor, s.into.as_ref()),
            Self::Pad(s) => (&s.tensor, s.into.as_ref()),
            Self::Letterbox(s) => (&s.tensor, s.into.as_ref()),
            Self::Greyscale(s)
            | Self::ReverseChannels(s)
            | Self::PcmToFloat(s)
            | Self::Sigmoid(s)
            | Self::ArgMax(s)
            | Self::Labels(s) => (&s.tensor, s.into.as_ref()),
            Self::Frame(s) => (&s.tensor, s.into.as_ref()),
            Self::SlidingWindow(s) => (&s.tensor, s.into.as_ref()),
            Self::MinMax(s) => (&s.tensor, s.into.as_ref()),
            Self::Impute(s) => (&s.tensor, s.into.as_ref()),
            Self::OneHot(s) => (&s.tensor, s.into.as_ref()),
            Self::TopK(s) => (&s.tensor, None),
            Self::Threshold(s) => (&s.tensor, s.into.as_ref()),
            Self::BoxesToImage(s) => (&s.tensor, s.into.as_ref()),
            Self::Concat(_) | Self::NonMaxSuppression(_) | Self::Carry(_) | Self::Constant(_) => {
                return None;
            }
        };
        Some((tensor, into.map(String::as_str)))
    }
}
