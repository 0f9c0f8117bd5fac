//! What is tried on a model that the engine does not take as it is, before it is refused: the graph is
//! written otherwise, with the same meaning.
//!
//! Nothing here looks at data or at weights' values beyond what decides a branch, so the same file and
//! the same shapes give the same graph wherever they are loaded: when the bundle is packed and on every
//! device. The file that is signed stays as it was given.

mod branches;
mod einsum;
mod functions;
mod loops;
mod names;
mod part;
mod quantised;
mod recurrent;

use dunlin_protocol::bundle::TensorSpec;
use std::fmt;
use tract_onnx::Onnx;
use tract_onnx::pb::ModelProto;

/// What a model was mended by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mend {
    /// Calls of functions that the file defines, written out.
    Functions(usize),
    /// Operators of ONNX Runtime's quantiser (`com.microsoft`), written as standard ones.
    Contributed(usize),
    /// `If` nodes whose condition follows from the inputs' shapes, replaced by the branch taken.
    Branches(usize),
    /// `If` nodes one branch of which cannot be computed for the inputs' shapes, replaced by the other;
    /// a run whose condition chooses the first fails.
    OnlyBranches(usize),
    /// `Loop` nodes whose number of rounds follows from the inputs' shapes, written out.
    Loops(usize),
}

impl fmt::Display for Mend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let many = |count: &usize| if *count == 1 { "" } else { "s" };
        match self {
            Self::Functions(n) => {
                write!(
                    f,
                    "wrote out {n} call{} of the model's own functions",
                    many(n)
                )
            }
            Self::Contributed(n) => write!(
                f,
                "wrote {n} operator{} of com.microsoft as standard ones",
                many(n)
            ),
            Self::Branches(n) => write!(
                f,
                "replaced {n} If{} whose condition the inputs' shapes decide by the branch taken",
                many(n)
            ),
            Self::OnlyBranches(n) => write!(
                f,
                "replaced {n} If{} one branch of which cannot be computed for the inputs' shapes by \
                 the other, the condition checked on each run",
                many(n)
            ),
            Self::Loops(n) => write!(
                f,
                "wrote out {n} Loop{} whose rounds the inputs' shapes decide",
                many(n)
            ),
        }
    }
}

/// What every graph gets, whether it needs it or not; told when a model is refused.
pub(super) const ALWAYS: &str =
    "the manifest's shapes in place of the file's inputs, value info and output shapes";

/// What is looked for, told when a model is refused and none of it is there.
pub(super) const LOOKED_FOR: &str = "functions of the model's own, operators of ONNX Runtime's \
     quantiser, Ifs of which the inputs' shapes leave one branch, and Loops whose rounds they decide";

/// Writes out what the engine takes, but computes otherwise than the specification says.
pub(super) fn correct(model: &mut ModelProto) {
    quantised::write_out_standard(model);
    recurrent::write_out(model);
    einsum::write_out(model);
}

/// The model written otherwise, and how; nothing if none of the mends has anything to do.
pub(super) fn mend(
    engine: &Onnx,
    mut model: ModelProto,
    inputs: &[TensorSpec],
) -> Option<(ModelProto, Vec<Mend>)> {
    // Functions first: they may hold what the others are for.
    let functions = functions::write_out(&mut model);
    correct(&mut model);
    let contributed = quantised::write_out_contributed(&mut model);
    let folded = branches::fold(engine, &mut model, inputs);
    let done = [
        Mend::Functions(functions),
        Mend::Contributed(contributed),
        Mend::Branches(folded.known),
        Mend::OnlyBranches(folded.only),
        Mend::Loops(folded.loops),
    ];
    let done: Vec<Mend> = done.into_iter().filter(Mend::did_something).collect();
    (!done.is_empty()).then_some((model, done))
}

impl Mend {
    fn did_something(&self) -> bool {
        let (Self::Functions(count)
        | Self::Contributed(count)
        | Self::Branches(count)
        | Self::OnlyBranches(count)
        | Self::Loops(count)) = self;
        *count > 0
    }
}

#[cfg(test)]
mod einsum_tests;
#[cfg(test)]
mod tests;
