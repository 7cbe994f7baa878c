"""Data movement: copies, casts, joins, pads, fills; and the views that move nothing."""

from __future__ import annotations

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering.registry import free, lowers, operand, operands
from modelmeter.layers import DataMovement, Operand

free(
    "aten::view",
    "aten::view_as",
    "aten::_unsafe_view",
    "aten::alias",
    "aten::detach",
    "aten::detach_",
    "aten::transpose",
    "aten::t",
    "aten::permute",
    "aten::movedim",
    "aten::expand",
    "aten::expand_as",
    "aten::broadcast_to",
    "aten::unsqueeze",
    "aten::squeeze",
    "aten::select",
    "aten::slice",
    "aten::narrow",
    "aten::split",
    "aten::split_with_sizes",
    "aten::chunk",
    "aten::tensor_split",
    "aten::unbind",
    "aten::unflatten",
    "aten::unfold",
    "aten::diagonal",
    "aten::as_strided",
    "aten::real",
    "aten::lift_fresh_copy",  # a constant of the model, made once
    "aten::lift_fresh",
    "aten::empty",  # allocates, moves nothing
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::sym_size",
    *(
        f"aten::{name}_"
        for name in ("squeeze", "unsqueeze", "transpose", "t", "swapaxes", "swapdims", "as_strided", "requires_grad")
    ),
    "aten::swapaxes",
    "aten::swapdims",
    "aten::moveaxis",
    "aten::numpy_T",
    "aten::matrix_H",
    "aten::mT",
    "aten::mH",
    "aten::adjoint",
    "aten::linalg_diagonal",
    "aten::imag",
    "aten::view_as_real",
    "aten::view_as_complex",
    "aten::conj",
    "aten::_conj",
    "aten::_neg_view",
    "aten::broadcast_tensors",
    "aten::meshgrid",
    "aten::positive",
    "aten::hsplit",
    "aten::vsplit",
    "aten::dsplit",
    "aten::atleast_1d",
    "aten::atleast_2d",
    "aten::atleast_3d",
    "aten::unsafe_split",
    "aten::unsafe_split_with_sizes",
    "aten::unsafe_chunk",
    "aten::resize_as_",  # allocates
)


@lowers(
    *(f"aten::{kind}dropout{suffix}" for kind in ("", "feature_", "alpha_", "feature_alpha_") for suffix in ("", "_")),
    "aten::native_dropout",
)
def dropout(call: OpCall) -> DataMovement | None:
    """y = x at inference, which moves nothing; a masked copy in training."""
    if not call.value("train", False):
        return None
    return _moved(call, "dropout")


def _moved(call: OpCall, op: str | None = None) -> DataMovement:
    return DataMovement(op=op or call.op.partition("::")[2], reads=operands(call.reads), writes=operands(call.writes))


@lowers(
    "aten::reshape",
    "aten::contiguous",
    "aten::flatten",
    "aten::to",
    "aten::_to_copy",
    "aten::type_as",
    "aten::clone",
    "aten::ravel",
    *(
        f"aten::{view}_copy"
        for view in ("alias", "as_strided", "detach", "diagonal", "expand", "narrow", "permute", "select", "slice")
    ),
    *(f"aten::{view}_copy" for view in ("squeeze", "t", "transpose", "unfold", "unsqueeze", "view")),
)
def copy_if_needed(call: OpCall) -> DataMovement | None:
    """y = x in another layout or dtype: free when the result shares x's memory, a copy otherwise.

    The schema does not say which; the captured storages do.
    """
    if call.is_view:
        return None
    x, y = call.reads[0], call.result
    kind = "cast" if x.dtype is not y.dtype else "copy"
    return DataMovement(op=kind, reads=(operand(x),), writes=(operand(y),))


@lowers("aten::copy_")
def copy_into(call: OpCall) -> DataMovement:
    """x = y in place."""
    target, source = call.tensor("self"), call.tensor("src")
    return DataMovement(op="copy", reads=(operand(source),), writes=(operand(target),))


@lowers(
    "aten::cat",
    "aten::concat",
    "aten::concatenate",
    "aten::pad_sequence",
    "aten::stack",
    "aten::pad",
    "aten::constant_pad_nd",
    "aten::repeat",
    "aten::tile",
    "aten::repeat_interleave",
    "aten::roll",
    "aten::flip",
    "aten::pixel_shuffle",
    "aten::pixel_unshuffle",
    "aten::channel_shuffle",
    "aten::native_channel_shuffle",
    "aten::im2col",
    "aten::hstack",
    "aten::vstack",
    "aten::dstack",
    "aten::row_stack",
    "aten::column_stack",
    "aten::block_diag",
    "aten::cartesian_prod",
    "aten::diag",
    "aten::diag_embed",
    "aten::diagflat",
    "aten::fliplr",
    "aten::flipud",
    "aten::rot90",
    "aten::fft_fftshift",
    "aten::fft_ifftshift",
    "aten::reflection_pad1d",
    "aten::reflection_pad2d",
    "aten::reflection_pad3d",
    "aten::replication_pad1d",
    "aten::replication_pad2d",
    "aten::replication_pad3d",
    "aten::select_scatter",
    "aten::slice_scatter",
    "aten::diagonal_scatter",
    "aten::unravel_index",
)
def join(call: OpCall) -> DataMovement:
    """y = the operands in a new arrangement: every one read once, the result written once."""
    return _moved(call)


@lowers(
    "aten::arange",
    "aten::zeros",
    "aten::zeros_like",
    "aten::new_zeros",
    "aten::ones",
    "aten::ones_like",
    "aten::new_ones",
    "aten::full",
    "aten::full_like",
    "aten::new_full",
    "aten::linspace",
    "aten::scalar_tensor",
    "aten::eye",
    "aten::logspace",
    "aten::tril_indices",
    "aten::triu_indices",
    "aten::fft_fftfreq",
    "aten::fft_rfftfreq",
    "aten::hann_window",
    "aten::hamming_window",
    "aten::blackman_window",
    "aten::bartlett_window",
    "aten::kaiser_window",
    "aten::one_hot",
)
def create(call: OpCall) -> DataMovement:
    """y = a constant or a ramp: nothing read, the result written."""
    reads = call.reads if call.op == "aten::one_hot" else ()
    return DataMovement(op=call.op.partition("::")[2], reads=operands(reads), writes=operands(call.writes))


@lowers("aten::fill_", "aten::zero_", "aten::fill")
def fill(call: OpCall) -> DataMovement:
    """x = a constant, in place."""
    y = call.result
    return DataMovement(op="fill", reads=(), writes=(Operand(elements=y.stored_elements, dtype=y.dtype),))
