"""What an operator call costs the host: its class, whose time a calibration measures with tiny tensors."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from modelmeter.errors import UnknownNameError

HOST_CLASSES: tuple[str, ...] = (
    "view",  # a new tensor over the same memory
    "elementwise",  # pointwise kernels and copies into one result of the operand's shape
    "reduction",  # one figure per row or slice, norms and softmax included
    "gemm",  # products and convolutions
    "attention",
    "indexing",  # gather, scatter, sort and search: several kernels, some with temporaries
    "allocating",  # joins, pads and fills: a result of another shape than any operand
    "module",  # the call of an nn.Module around its operators
    "turn",  # on a CPU, what any call takes longer in turn with others than in a row: its code has left the caches
)
"""Classes of host time per call; `modelmeter.predict.calibration.HostCosts.classes` is keyed by them."""


class UnknownOperatorError(UnknownNameError):
    """An operator of no class: its host time is not known."""


# Names without "aten::"; an in-place form (a name with "_" at its end) is of the class of its out-of-place form.
_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "view": """
            _unsafe_view alias as_strided broadcast_to chunk detach diagonal expand expand_as lift_fresh
            lift_fresh_copy movedim narrow permute real select slice split split_with_sizes squeeze sym_size t
            tensor_split transpose unbind unflatten unfold unsqueeze view view_as
        """,
        "elementwise": """
            __and__ __or__ __xor__ _to_copy abs add addcmul alpha_dropout bitwise_and bitwise_not bitwise_or ceil
            clamp clamp_max clamp_min clone contiguous copy cos div dropout elu eq erf exp feature_dropout fill
            flatten floor floor_divide ge gelu gt hardswish isinf isnan le leaky_relu lerp log logical_and
            logical_not logical_or lt masked_fill maximum minimum mul ne neg pow reciprocal relu remainder reshape
            reshape_as round rsqrt rsub sigmoid silu sin softplus sqrt square sub tanh to tril triu true_divide
            type_as where zero
        """,
        "reduction": """
            _is_all_true _softmax all amax amin any argmax argmin cumprod cumsum group_norm layer_norm
            linalg_vector_norm log_softmax logsumexp max mean min norm prod quantize_rows rms_norm softmax sum var
            var_mean
        """,
        "gemm": """
            _grouped_mm addmm block_scaled_grouped_linear block_scaled_linear bmm conv1d conv2d conv3d einsum
            grouped_linear linear matmul mm
        """,
        "attention": "flash_attention scaled_dot_product_attention",
        "indexing": """
            argsort bincount bucketize embedding gather histc index index_add index_copy index_put index_select isin
            masked_scatter one_hot repeat_interleave scatter scatter_add searchsorted sort take_along_dim topk
        """,
        "allocating": """
            _upsample_bicubic2d_aa _upsample_bilinear2d_aa arange cat concat constant_pad_nd empty empty_like
            empty_strided eye flip full full_like im2col linspace new_empty new_full new_ones new_zeros ones
            ones_like pad pixel_shuffle pixel_unshuffle repeat roll scalar_tensor stack tile upsample_bicubic2d
            upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d zeros zeros_like
        """,
    }
)
_CLASS: Mapping[str, str] = MappingProxyType({name: kind for kind, names in _NAMES.items() for name in names.split()})


def host_class(op: str) -> str:
    """Return the class of an operator by its ATen name.

    Raises
    ------
    UnknownOperatorError
        When no class has it; there is no default.

    Examples
    --------
    >>> host_class("aten::transpose"), host_class("aten::mul_"), host_class("dsocr_graph::grouped_linear")
    ('view', 'elementwise', 'gemm')
    """
    name = op.rpartition("::")[2]
    in_place = name.endswith("_") and not name.endswith("__")
    found = _CLASS.get(name[:-1] if in_place else name)
    if found is None:
        hint = "Add the name to the class of operators that cost the host alike, in modelmeter/predict/host.py"
        raise UnknownOperatorError("operator", op, _CLASS, hint=hint)
    return found
