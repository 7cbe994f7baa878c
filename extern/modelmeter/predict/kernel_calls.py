"""Kernels of an engine as records: the sizes that measured tables are looked up by, and the work at these sizes."""

from __future__ import annotations

from typing import ClassVar, Self

from attrs import evolve, frozen

from modelmeter.predict.lattice import Sizes

_BYTES = 2  # per element of bf16 and fp16, which engines run


@frozen(kw_only=True)
class KernelWork:
    """What a kernel does."""

    flops: float  # of matrix products
    bytes: float  # operands read and results written, each once
    cold_bytes: float = 0.0  # of them weights and cached keys, which no cache holds from one step to the next


@frozen(kw_only=True)
class Gemm:
    """y[rows, out] = x[rows, in] @ w[out, in].T, the weights cold.

    Examples
    --------
    >>> Gemm(rows=3, out_features=2, in_features=4).work
    KernelWork(flops=48, bytes=52, cold_bytes=16)
    """

    family: ClassVar[str] = "gemm"

    rows: float
    out_features: float
    in_features: float

    @classmethod
    def at(cls, sizes: Sizes) -> Self:
        """Return the product at a point of a table, (n, k, m)."""
        out_features, in_features, rows = sizes
        return cls(rows=rows, out_features=out_features, in_features=in_features)

    @property
    def work(self) -> KernelWork:
        """Two FLOPs per multiply-add, three operands."""
        weights = self.out_features * self.in_features
        rows = self.rows * (self.out_features + self.in_features)
        return KernelWork(flops=2 * self.rows * weights, bytes=_BYTES * (weights + rows), cold_bytes=_BYTES * weights)

    @property
    def sizes(self) -> Sizes:
        """As tables have them: (n, k, m)."""
        return (self.out_features, self.in_features, self.rows)


@frozen(kw_only=True)
class Product:
    """Matrix work that is as efficient as a product of the same sizes, but moves other bytes.

    A convolution is a product over its taps; products in a batch are one with the rows of all.
    """

    family: str  # "convolution" or "batched product"
    like: Gemm
    work: KernelWork


@frozen(kw_only=True)
class Attention:
    """One fused attention; fields as in `modelmeter.layers.ScaledDotProductAttention`.

    Examples
    --------
    >>> Attention.prompt_at((128, 4, 2, 1, 1000)) == Attention(
    ...     batch=1, heads=8, kv_heads=2, query_length=1000, key_length=1000, head_dim=128, causal=True
    ... )
    True
    """

    batch: float
    heads: float
    kv_heads: float
    query_length: float
    key_length: float
    head_dim: float
    causal: bool = False
    mask_bytes: float = 0.0

    @classmethod
    def prompt_at(cls, sizes: Sizes) -> Self:
        """Return the attention of a prompt at a point of a table.

        Parameters
        ----------
        sizes : Sizes
            (head size, heads per key head, key heads, batch, length).
        """
        return evolve(cls._over_itself(sizes), causal=True)

    @classmethod
    def step_at(cls, sizes: Sizes) -> Self:
        """Return the attention of one new token at a point of a table; axes as of a prompt, with keys as the length."""
        return evolve(cls._over_itself(sizes), query_length=1)

    @classmethod
    def encoder_at(cls, sizes: Sizes) -> Self:
        """Return the attention without a mask at a point of a table: (head size, heads, batch, length)."""
        head_dim, heads, batch, length = sizes
        return cls._over_itself((head_dim, 1, heads, batch, length))

    @classmethod
    def _over_itself(cls, sizes: Sizes) -> Self:
        head_dim, heads_per_key_head, kv_heads, batch, length = sizes
        return cls(
            batch=batch,
            heads=heads_per_key_head * kv_heads,
            kv_heads=kv_heads,
            query_length=length,
            key_length=length,
            head_dim=head_dim,
        )

    @property
    def family(self) -> str:
        """A mask that is read makes it another operator."""
        return "attention with bias" if self.mask_bytes else "attention"

    @property
    def work(self) -> KernelWork:
        """A causal kernel skips half of the products; keys and values are cold for a single new token."""
        pairs = self.query_length * self.key_length / (2 if self.causal else 1)
        keys = 2 * self.batch * self.kv_heads * self.key_length * self.head_dim * _BYTES
        queries = 2 * self.batch * self.heads * self.query_length * self.head_dim * _BYTES
        return KernelWork(
            flops=4 * self.batch * self.heads * pairs * self.head_dim,
            bytes=keys + queries + self.mask_bytes,
            cold_bytes=keys if self.query_length == 1 else 0.0,
        )


@frozen(kw_only=True)
class Experts:
    """A mixture of gated experts as one call, from sorting the tokens to the weighted sum."""

    family: ClassVar[str] = "experts"

    tokens: float
    hidden_size: float
    intermediate_size: float
    experts_per_token: float
    experts: float
    active_experts: float  # experts that have rows

    @property
    def rows_per_expert(self) -> float:
        """Mean rows of an expert, which decide how efficient its products are."""
        return self.tokens * self.experts_per_token / self.experts

    @property
    def work(self) -> KernelWork:
        """Three products per row; the weights of the experts that have rows, the rows read and written."""
        rows, expert = self.tokens * self.experts_per_token, 3 * self.hidden_size * self.intermediate_size
        weights = self.active_experts * expert * _BYTES
        return KernelWork(
            flops=2 * rows * expert, bytes=weights + 2 * rows * self.hidden_size * _BYTES, cold_bytes=weights
        )


@frozen(kw_only=True)
class Streaming:
    """A memory-bound kernel: everything that runs between two matrix products, fused."""

    family: ClassVar[str] = "memory"

    bytes: float
    vector_flops: float

    @property
    def work(self) -> KernelWork:
        """Bytes alone."""
        return KernelWork(flops=0.0, bytes=self.bytes)


@frozen(kw_only=True)
class Untabled:
    """Matrix work of a kind that no table has, such as the router's product in fp32."""

    family: str
    work: KernelWork
    on_matrix_units: bool


Call = Gemm | Product | Attention | Experts | Streaming | Untabled
