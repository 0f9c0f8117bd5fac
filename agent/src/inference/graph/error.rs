//! Why a graph is refused: what the engine said, and at which operator of the file.

use crate::inference::mend::{ALWAYS, LOOKED_FOR, Mend};
use tract_onnx::pb::{GraphProto, ModelProto};
use tract_onnx::tract_hir::internal::TractError;

/// Longest message taken over from tract, in characters; its chains can quote whole nodes.
const MESSAGE_MAX_CHARS: usize = 1500;

/// Why a graph cannot be made ready, or did not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// Not an ONNX file, or one that refers to what is not in it.
    #[error("not a readable ONNX model: {0}")]
    Parse(String),
    /// Operators that the engine has not.
    #[error("operators that this engine has not: {}", .0.join(", "))]
    Operators(Vec<String>),
    /// The graph's inputs are not the manifest's.
    #[error("inputs: {0}")]
    Inputs(String),
    /// The graph's outputs are not the manifest's.
    #[error("outputs: {0}")]
    Outputs(String),
    /// Types and shapes do not work out with the manifest's inputs.
    #[error("the graph cannot be prepared for the manifest's inputs: {0}")]
    Prepare(String),
    /// Failed while computing.
    #[error("the graph failed: {0}")]
    Run(String),
    /// Not taken as it is, and not after what was tried either.
    #[error("{refused}; {tried}")]
    Mended {
        /// Why it was not taken as it is.
        refused: Box<GraphError>,
        /// What was tried, and why that did not do.
        tried: String,
    },
    /// The engine panicked; caught.
    #[error("the engine panicked while {during}: {message}")]
    Panic {
        /// What it was doing.
        during: &'static str,
        /// What it said.
        message: String,
    },
}

impl GraphError {
    /// Whether the graph might be taken if it were written otherwise.
    pub(super) fn may_be_mended(&self) -> bool {
        matches!(
            self,
            Self::Parse(_) | Self::Operators(_) | Self::Prepare(_) | Self::Panic { .. }
        )
    }

    /// With the operator of the file that the engine's words are about in front of them.
    pub(super) fn located(self, proto: &ModelProto) -> Self {
        let locate = |message: String| match culprit(&message, proto) {
            Some((operator, node)) => format!("at {operator} (node {node:?}): {message}"),
            None => message,
        };
        match self {
            Self::Parse(message) => Self::Parse(locate(message)),
            Self::Prepare(message) => Self::Prepare(locate(message)),
            other => other,
        }
    }

    /// Together with what was tried.
    pub(super) fn after(self, mends: &[Mend], then: Option<Self>) -> Self {
        let listed: Vec<String> = mends.iter().map(ToString::to_string).collect();
        let tried = match then {
            None => format!("tried: {ALWAYS}; found none of these: {LOOKED_FOR}"),
            Some(then) if then == self => {
                format!("tried: {ALWAYS}; {}: the same", listed.join("; "))
            }
            Some(then) => format!("tried: {ALWAYS}; {}: then {then}", listed.join("; ")),
        };
        Self::Mended {
            refused: Box::new(self),
            tried,
        }
    }
}

/// The operator and the name of the node that the engine's words are about. They go from the whole to
/// the part, so the last node named is it.
fn culprit(message: &str, proto: &ModelProto) -> Option<(String, String)> {
    let nodes = proto
        .graph
        .iter()
        .flat_map(all_nodes)
        .filter(|(_, name)| !name.is_empty());
    let said = nodes.filter_map(|(operator, name)| {
        // As the engine writes a node that it has read, and one that it reads.
        let [read, reading] = [format!("\"{name}\""), format!("node {name} (")];
        let at = message.rfind(&read).max(message.rfind(&reading));
        // Of two that begin at one place, as inner nodes may, the longer name is the one meant.
        at.map(|at| ((at, name.len()), (operator, name)))
    });
    let last = said.max_by_key(|(place, _)| *place);
    last.map(|(_, (operator, name))| (operator.to_owned(), name.to_owned()))
}

/// Operators and names of all nodes, inside others' graphs too. A node without a name has its first
/// output's, as in the engine.
pub(super) fn all_nodes(graph: &GraphProto) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    for node in &graph.node {
        let name = match node.name.as_str() {
            "" => node.output.first().map_or("", String::as_str),
            name => name,
        };
        found.push((node.op_type.as_str(), name));
        for attribute in &node.attribute {
            let inner = attribute.g.iter().chain(&attribute.graphs);
            inner.for_each(|graph| found.extend(all_nodes(graph)));
        }
    }
    found
}

/// What the engine said, on one line and of bounded length.
pub(super) fn text(error: &TractError) -> String {
    cut(&format!("{error:#}"))
}

pub(super) fn cut(message: &str) -> String {
    let one_line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    match one_line.char_indices().nth(MESSAGE_MAX_CHARS) {
        Some((end, _)) => format!("{}…", &one_line[..end]),
        None => one_line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut() {
        assert!(cut(&"ä ".repeat(4000)).chars().count() <= MESSAGE_MAX_CHARS + 1);
    }
}
