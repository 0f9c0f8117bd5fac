//! Which segment of a family's inputs a request belongs to.

use dunlin_protocol::bundle::segments::OTHER;
use dunlin_protocol::bundle::{Profile, Segments};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The segment a request belongs to, by its place in the profile's list; beyond its end: another than
/// those; none: the request says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Segment(Option<usize>);

impl Segment {
    /// Of a request that says none.
    #[cfg(test)]
    pub(crate) const NONE: Self = Self(None);

    /// Its name.
    pub(crate) fn name(self, segments: &Segments) -> Option<&str> {
        let index = self.0?;
        Some(segments.values.get(index).map_or(OTHER, String::as_str))
    }

    /// By the request's parameter, or else by what the device's owner says of the device.
    pub(crate) fn of(
        profile: Option<&Profile>,
        parameters: Option<&Map<String, Value>>,
        device: &BTreeMap<String, String>,
    ) -> Self {
        let Some(segments) = profile.and_then(|p| p.segments.as_ref()) else {
            return Self(None);
        };
        let said = parameters.and_then(|p| p.get(&segments.key));
        let place = |value: &str| {
            let found = segments.values.iter().position(|known| known == value);
            found.unwrap_or(segments.values.len())
        };
        Self(match said {
            Some(Value::String(value)) => Some(place(value)),
            // A number or a flag is meant as it is written.
            Some(value) => Some(place(&value.to_string())),
            None => device.get(&segments.key).map(|value| place(value)),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use dunlin_protocol::bundle::{ClassProfile, OutputProfile};
    use dunlin_protocol::sketch::Edges;

    fn profile(segments: Option<Segments>) -> Profile {
        let output = OutputProfile {
            edges: Edges::try_from(vec![0.0, 1.0]).unwrap(),
            counts: Vec::new(),
        };
        Profile {
            schema: String::new(),
            rows: 0,
            features: Vec::new(),
            outputs: ClassProfile {
                classes: Vec::new(),
                counts: Vec::new(),
            },
            confidence: output.clone(),
            entropy: output,
            calibration: None,
            segments,
        }
    }

    #[test]
    fn the_request_says_it_or_else_the_device() {
        let segments = Segments {
            key: "shift".to_owned(),
            values: vec!["early".to_owned(), "2".to_owned()],
        };
        let with = profile(Some(segments.clone()));
        let device = BTreeMap::from([("shift".to_owned(), "early".to_owned())]);
        let name = |said: Value, device: &BTreeMap<String, String>| {
            let segment = Segment::of(Some(&with), said.as_object(), device);
            segment.name(&segments).map(str::to_owned)
        };
        let none = BTreeMap::new();
        let of = |text: &str| Some(text.to_owned());
        assert_eq!(name(serde_json::json!({}), &none), None);
        assert_eq!(name(serde_json::json!({}), &device), of("early"));
        assert_eq!(name(serde_json::json!({"shift": 2}), &device), of("2"));
        assert_eq!(
            name(serde_json::json!({"shift": "late"}), &device),
            of(OTHER)
        );
        assert_eq!(
            name(serde_json::json!({"shift": ["early"]}), &none),
            of(OTHER)
        );
        let without = Segment::of(Some(&profile(None)), None, &device);
        assert_eq!(without, Segment::NONE);
    }
}
