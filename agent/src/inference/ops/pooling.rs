//! Windows over tensors whose padding tract reads otherwise than ONNX Runtime.

use super::tracts::{Parsed, boxed, read};
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

/// `pads` count only where `auto_pad` leaves them to the file, and without padding sizes are rounded up
/// if `ceil_mode` says so; tract looks at `pads` first, and rounds down.
pub(super) fn window(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    let auto_pad: &str = node.get_attr_opt("auto_pad")?.unwrap_or("NOTSET");
    let dilations: Vec<i64> = node.get_attr_opt_vec("dilations")?.unwrap_or_default();
    let same = auto_pad.starts_with("SAME");
    let pooled = node.op_type != "Conv";
    // ONNX Runtime pads as if there were none, the specification does not say.
    ensure!(
        !(pooled && same && dilations.iter().any(|&d| d != 1)),
        "{}: dilations {dilations:?} with auto_pad {auto_pad} are not supported",
        node.op_type
    );
    let mut node = node.clone();
    if auto_pad != "NOTSET" {
        let no_padding = auto_pad == "VALID";
        let dropped = |name: &str| name == "pads" || (no_padding && name == "auto_pad");
        node.attribute.retain(|a| !dropped(&a.name));
    }
    Ok((boxed(read(ctx, &node)?), vec![]))
}
