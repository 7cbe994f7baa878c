"""Element types: their size, and which unit of a device computes with them."""

from __future__ import annotations

from enum import Enum


class DType(Enum):
    """An element type, by its short name.

    A complex number is two real ones. Its arithmetic is counted in FLOPs of its parts, since that is what a device's
    peaks are in: an addition is 2, a multiplication 4 multiplications and 2 additions, a multiply-add 8. Counters that
    only look at shapes, such as ``torch.utils.flop_counter``, count a complex multiply-add as 2.

    Examples
    --------
    >>> DType("bf16").itemsize, DType.FP32.on_tensor_cores
    (2, False)
    >>> DType.COMPLEX64.itemsize, DType.COMPLEX64.multiply_add_flops, DType.FP32.multiply_add_flops
    (8, 8, 2)
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
    COMPLEX128 = "complex128"
    COMPLEX64 = "complex64"

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
        """Whether arithmetic on this type counts as floating-point work; that of complex numbers does."""
        return self.value.startswith(("fp", "bf", "complex"))

    @property
    def is_complex(self) -> bool:
        """Whether an element is a real and an imaginary part."""
        return self.value.startswith("complex")

    @property
    def addition_flops(self) -> int:
        """FLOPs of one addition: both parts of a complex number are added."""
        return 2 if self.is_complex else 1

    @property
    def multiply_add_flops(self) -> int:
        """FLOPs of one multiply-add; (a + bi)(c + di) takes 4 multiplications and 2 additions, and 2 to add it."""
        return 8 if self.is_complex else 2

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
    DType.COMPLEX128: 128,
    DType.COMPLEX64: 64,
}
_TENSOR_CORE = frozenset({DType.BF16, DType.FP16, DType.FP8_E4M3, DType.FP8_E5M2, DType.INT8})
