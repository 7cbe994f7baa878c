"""Element types: their size, and which unit of a device computes with them."""

from __future__ import annotations

from enum import Enum


class DType(Enum):
    """An element type, by its short name.

    Examples
    --------
    >>> DType("bf16").itemsize, DType.FP32.on_tensor_cores
    (2, False)
    """

    FP64 = "fp64"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8_E4M3 = "fp8_e4m3"
    FP8_E5M2 = "fp8_e5m2"
    INT64 = "int64"
    INT32 = "int32"
    INT16 = "int16"
    INT8 = "int8"
    INT4 = "int4"
    UINT8 = "uint8"
    BOOL = "bool"

    @property
    def bits(self) -> int:
        """Bits per element."""
        return _BITS[self]

    @property
    def itemsize(self) -> int:
        """Bytes per element; a type whose elements share bytes has none, only `bits`."""
        assert self.bits % 8 == 0, f"an element of {self.value} is no whole number of bytes; reckon in bits"
        return self.bits // 8

    @property
    def is_floating(self) -> bool:
        """Whether arithmetic on this type counts as floating-point work."""
        return self.value.startswith(("fp", "bf"))

    @property
    def on_tensor_cores(self) -> bool:
        """Whether matrix products of this type run on tensor cores (fp32 without TF32 does not)."""
        return self in _TENSOR_CORE


_BITS = {
    DType.FP64: 64,
    DType.FP32: 32,
    DType.BF16: 16,
    DType.FP16: 16,
    DType.FP8_E4M3: 8,
    DType.FP8_E5M2: 8,
    DType.INT64: 64,
    DType.INT32: 32,
    DType.INT16: 16,
    DType.INT8: 8,
    DType.INT4: 4,
    DType.UINT8: 8,
    DType.BOOL: 8,
}
_TENSOR_CORE = frozenset({DType.BF16, DType.FP16, DType.FP8_E4M3, DType.FP8_E5M2, DType.INT8})
