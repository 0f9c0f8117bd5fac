//! What steps keep from one call of a stream to the next: bounded in number and age, the stream not used
//! for longest makes room. Time is an argument.

use crate::inference::tensor::Values;
use dunlin_protocol::bundle::step::StreamBounds;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest name of a stream, in bytes.
const NAME_MAX_BYTES: usize = 128;

/// What a stream's next call begins with: one value list for each step that keeps something.
#[derive(Debug, Clone, PartialEq)]
pub struct State(pub(crate) Vec<Values>);

/// Which stream a request belongs to, as its parameters say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// The client's name for it.
    pub name: String,
    /// Begins anew, whatever was kept.
    pub start: bool,
    /// Is forgotten after this call.
    pub end: bool,
    /// Must have been begun with `start` (`sequence_id`); otherwise an unknown stream begins by itself
    /// (`stream`).
    pub strict: bool,
}

/// Why a request has no state to begin with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SequenceError {
    /// The parameters name none, or not well.
    #[error("parameters: {0}")]
    Parameters(String),
    /// Never begun, ended, not used for too long, or it had to make room.
    #[error(
        "sequence_id {0:?} is not known here (not begun, ended, idle for too long, or it made room for others): begin it with sequence_start"
    )]
    Unknown(String),
    /// Another call of the stream is being answered.
    #[error("stream {0:?}: its call before is still being answered; send one at a time")]
    Busy(String),
    /// Every stream that may be kept is being answered.
    #[error("{0} streams are being answered at once, no other can begin")]
    Full(usize),
}

impl Sequence {
    /// Reads `sequence_id`, `sequence_start` and `sequence_end` (as Triton's sequence extension), or
    /// `stream`, from a request's parameters.
    ///
    /// # Errors
    /// None is named, both are, or a value is none of its kind.
    pub fn from_parameters(parameters: Option<&Map<String, Value>>) -> Result<Self, SequenceError> {
        let bad = |problem: String| SequenceError::Parameters(problem);
        let get = |key: &str| parameters.and_then(|p| p.get(key)).filter(|v| !v.is_null());
        let flag = |key: &str| match get(key) {
            None => Ok(false),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(bad(format!("{key}: expected true or false, got {other}"))),
        };
        let (key, value) = match (get("sequence_id"), get("stream")) {
            (Some(id), None) => ("sequence_id", id),
            (None, Some(name)) => ("stream", name),
            (Some(_), Some(_)) => {
                return Err(bad("sequence_id and stream: name one of them".to_owned()));
            }
            (None, None) => {
                let expected = "this model keeps a state for each stream: expected sequence_id (with sequence_start at its first request) or stream";
                return Err(bad(expected.to_owned()));
            }
        };
        let name = match value {
            Value::String(text) if !text.is_empty() && text.len() <= NAME_MAX_BYTES => text.clone(),
            Value::Number(n) if n.as_u64().is_some_and(|n| n > 0) => n.to_string(),
            other => {
                let got: String = other.to_string().chars().take(40).collect();
                return Err(bad(format!(
                    "{key}: expected a number above 0 or a text of 1 to {NAME_MAX_BYTES} bytes, got {got}"
                )));
            }
        };
        Ok(Self {
            name,
            start: flag("sequence_start")?,
            end: flag("sequence_end")?,
            strict: key == "sequence_id",
        })
    }
}

#[derive(Debug)]
struct Stream {
    used: Instant,
    /// `None` while a call is being answered.
    state: Option<Arc<State>>,
}

/// The streams of one loaded bundle.
#[derive(Debug)]
pub(crate) struct Streams {
    bounds: StreamBounds,
    initial: Arc<State>,
    table: Mutex<Table>,
}

type Table = BTreeMap<String, Stream>;

/// A stream held for one call. Dropped without [`done`](Lease::done), the call leaves no trace.
#[derive(Debug)]
pub(crate) struct Lease<'a> {
    streams: &'a Streams,
    name: String,
    end: bool,
    state: Arc<State>,
    next: Option<State>,
}

impl Streams {
    pub(crate) fn new(bounds: StreamBounds, initial: State) -> Self {
        Self {
            bounds,
            initial: Arc::new(initial),
            table: Mutex::default(),
        }
    }

    /// Every change is made in one step, so a panic in another thread cannot have torn it.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds a stream for one call.
    pub(crate) fn hold(&self, ask: &Sequence, now: Instant) -> Result<Lease<'_>, SequenceError> {
        let mut table = self.table();
        let idle_max = Duration::from_millis(self.bounds.idle_ms_max);
        table.retain(|_, s| s.state.is_none() || now.saturating_duration_since(s.used) <= idle_max);
        let state = match table.get_mut(&ask.name) {
            Some(stream) => {
                let kept = stream.state.take();
                let kept = kept.ok_or_else(|| SequenceError::Busy(ask.name.clone()))?;
                stream.used = now;
                let begin = || Arc::clone(&self.initial);
                if ask.start { begin() } else { kept }
            }
            None if ask.strict && !ask.start => {
                return Err(SequenceError::Unknown(ask.name.clone()));
            }
            None => {
                self.begin(&mut table, ask, now)?;
                Arc::clone(&self.initial)
            }
        };
        Ok(Lease {
            streams: self,
            name: ask.name.clone(),
            end: ask.end,
            state,
            next: None,
        })
    }

    /// Makes room for a stream and enters it as being answered.
    fn begin(&self, table: &mut Table, ask: &Sequence, now: Instant) -> Result<(), SequenceError> {
        if table.len() >= self.bounds.max {
            let idle = table.iter().filter(|(_, s)| s.state.is_some());
            let oldest = idle
                .min_by_key(|(_, s)| s.used)
                .map(|(name, _)| name.clone());
            let oldest = oldest.ok_or(SequenceError::Full(self.bounds.max))?;
            table.remove(&oldest);
        }
        let stream = Stream {
            used: now,
            state: None,
        };
        table.insert(ask.name.clone(), stream);
        Ok(())
    }

    #[cfg(test)]
    fn names(&self) -> Vec<String> {
        self.table().keys().cloned().collect()
    }
}

impl Lease<'_> {
    /// What the call begins with.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The call was answered; the stream's next one begins with this.
    pub(crate) fn done(mut self, next: State) {
        self.next = Some(next);
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut table = self.streams.table();
        let Some(stream) = table.get_mut(&self.name) else {
            return;
        };
        match self.next.take() {
            Some(_) if self.end => {
                table.remove(&self.name);
            }
            Some(next) => stream.state = Some(Arc::new(next)),
            None => stream.state = Some(Arc::clone(&self.state)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn streams(max: usize) -> Streams {
        let bounds = StreamBounds {
            max,
            idle_ms_max: 1000,
        };
        Streams::new(bounds, state(0.0))
    }

    fn state(x: f32) -> State {
        State(vec![Values::FP32(vec![x])])
    }

    fn ask(parameters: &Value) -> Result<Sequence, String> {
        Sequence::from_parameters(parameters.as_object()).map_err(|e| e.to_string())
    }

    fn stream(name: &str) -> Sequence {
        ask(&json!({ "stream": name })).unwrap()
    }

    #[test]
    fn parameters_name_a_stream() {
        let sequence = ask(&json!({"sequence_id": 7, "sequence_start": true})).unwrap();
        assert_eq!(
            (sequence.name.as_str(), sequence.start, sequence.strict),
            ("7", true, true)
        );
        assert!(!stream("mic").strict);
        for (parameters, hint) in [
            (json!({}), "keeps a state for each stream"),
            (json!({"sequence_id": 0}), "expected a number above 0"),
            (
                json!({"sequence_id": "a", "stream": "b"}),
                "name one of them",
            ),
            (
                json!({"stream": "a", "sequence_end": 1}),
                "sequence_end: expected true or false, got 1",
            ),
            (json!({"stream": "a".repeat(129)}), "of 1 to 128 bytes"),
        ] {
            let error = ask(&parameters).unwrap_err();
            assert!(error.contains(hint), "{parameters}: {error}");
        }
    }

    #[test]
    fn a_stream_keeps_what_its_calls_leave() {
        let (streams, now) = (streams(4), Instant::now());
        let lease = streams.hold(&stream("a"), now).unwrap();
        assert_eq!(lease.state(), &state(0.0));
        assert_eq!(
            streams.hold(&stream("a"), now).unwrap_err(),
            SequenceError::Busy("a".to_owned())
        );
        lease.done(state(1.0));
        // A call that fails leaves the stream as it was.
        drop(streams.hold(&stream("a"), now).unwrap());
        let mut again = stream("a");
        assert_eq!(streams.hold(&again, now).unwrap().state(), &state(1.0));
        again.start = true;
        let lease = streams.hold(&again, now).unwrap();
        assert_eq!(lease.state(), &state(0.0));
        lease.done(state(2.0));
        again = Sequence {
            start: false,
            end: true,
            ..again
        };
        streams.hold(&again, now).unwrap().done(state(3.0));
        assert_eq!(streams.names(), [""; 0]);
    }

    #[test]
    fn a_sequence_must_be_begun() {
        let (streams, now) = (streams(4), Instant::now());
        let mut sequence = ask(&json!({"sequence_id": "s"})).unwrap();
        let error = streams.hold(&sequence, now).unwrap_err();
        assert!(
            error.to_string().contains("begin it with sequence_start"),
            "{error}"
        );
        sequence.start = true;
        streams.hold(&sequence, now).unwrap().done(state(1.0));
        sequence.start = false;
        assert_eq!(streams.hold(&sequence, now).unwrap().state(), &state(1.0));
        // Idle for longer than it may.
        let later = now + Duration::from_millis(1001);
        assert!(matches!(
            streams.hold(&sequence, later),
            Err(SequenceError::Unknown(_))
        ));
    }

    #[test]
    fn the_stream_not_used_for_longest_makes_room() {
        let (streams, start) = (streams(2), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        for (ms, name) in [(0, "a"), (1, "b"), (2, "a"), (3, "c")] {
            streams
                .hold(&stream(name), at(ms))
                .unwrap()
                .done(state(1.0));
        }
        assert_eq!(streams.names(), ["a", "c"]);
        let _a = streams.hold(&stream("a"), at(4)).unwrap();
        let _d = streams.hold(&stream("d"), at(5)).unwrap();
        assert_eq!(
            streams.hold(&stream("e"), at(6)).unwrap_err(),
            SequenceError::Full(2)
        );
        assert_eq!(streams.names(), ["a", "d"]);
    }
}
