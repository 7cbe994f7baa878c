"""Every module of torch.nn, analyzed with a symbolic batch: nothing unclassified, products as torch counts them.

`FlopCounterMode` runs the module on `meta` at another batch than the one that was captured.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

from dsocr_graph import analyze_model

Inputs = tuple[Tensor, ...]
Case = tuple[str, Callable[[], nn.Module], Callable[[int], Inputs]]

CAPTURED, ASKED = 4, 6  # batches; no other axis of an example has these sizes in the same place


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor without data."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def truths(*shape: int) -> Tensor:
    """Return a mask without data."""
    return meta(*shape, dtype=torch.bool)


def rows(batch: int) -> Inputs:
    """Return 16 features an item."""
    return (meta(batch, 16),)


def pair(batch: int) -> Inputs:
    """Return two tensors of equal shape."""
    return meta(batch, 16), meta(batch, 16)


def three(batch: int) -> Inputs:
    """Return three tensors of equal shape."""
    return meta(batch, 16), meta(batch, 16), meta(batch, 16)


def classes(batch: int) -> Inputs:
    """Return scores and the class of each item."""
    return meta(batch, 16), meta(batch, dtype=torch.int64)


def planes(axes: int, channels: int = 8) -> Callable[[int], Inputs]:
    """Return a maker of pictures of 9 places along each of some axes."""
    return lambda batch: (meta(batch, channels, *[9] * axes),)


def sequence(batch: int) -> Inputs:
    """Return 7 steps of each item, items first."""
    return (meta(batch, 7, 16),)


def steps(batch: int) -> Inputs:
    """Return 7 steps of each item, steps first."""
    return (meta(7, batch, 16),)


def source_and_target(batch: int) -> Inputs:
    """Return two sequences of unequal length."""
    return meta(batch, 7, 16), meta(batch, 5, 16)


class Unpool(nn.Module):
    """A pool and its way back."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        self.pool = getattr(nn, f"MaxPool{axes}d")(3, return_indices=True)
        self.unpool = getattr(nn, f"MaxUnpool{axes}d")(3)

    def forward(self, x: Tensor) -> Tensor:
        """Put the maxima back."""
        return self.unpool(*self.pool(x))


class Attention(nn.Module):
    """An attention of queries to keys, with masks and weights as asked."""

    def __init__(self, *, need_weights: bool, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, **options)
        self.need_weights = need_weights

    def forward(
        self, x: Tensor, keys: Tensor | None = None, padding: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to the keys, or to x itself."""
        keys = x if keys is None else keys
        return self.attention(x, keys, keys, key_padding_mask=padding, attn_mask=mask, need_weights=self.need_weights)


class Causal(nn.Module):
    """An encoder whose caller says that its mask is causal: torch otherwise looks at the mask's values."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Run the encoder."""
        return self.encoder(x, mask=mask, is_causal=True)


class Method(nn.Module):
    """A module by another method than `forward`."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module, self.name = module, name

    def forward(self, x: Tensor) -> Tensor:
        """Call the method."""
        return getattr(self.module, self.name)(x)


def _of_pictures() -> Iterator[Case]:
    """Yield the modules that exist in one, two and three dimensions."""
    for axes in (1, 2, 3):
        picture = planes(axes)

        def case(name: str, *arguments: Any, axes: int = axes, **options: Any) -> Case:
            label = "-".join([f"{name}{axes}d", *(f"{key}={value}" for key, value in options.items())])
            return label, lambda: getattr(nn, f"{name}{axes}d")(*arguments, **options), planes(axes)

        for convolution in ("Conv", "ConvTranspose"):
            yield case(convolution, 8, 4, 3, stride=2, padding=1)
            yield case(convolution, 8, 4, 3, groups=2, bias=False)
        yield case("Conv", 8, 4, 3, padding="same")
        yield case("Conv", 8, 4, 3, padding=1, padding_mode="circular")
        for kind in ("Max", "Avg"):
            yield case(f"{kind}Pool", 3, padding=1)
            yield case(f"Adaptive{kind}Pool", 4)
            yield case(f"Adaptive{kind}Pool", 1)
        yield case("MaxPool", 3, return_indices=True)
        yield case("LPPool", 2, 3)
        yield f"MaxUnpool{axes}d", lambda axes=axes: Unpool(axes), picture
        for norm in ("BatchNorm", "InstanceNorm"):
            yield case(norm, 8)
            yield case(norm, 8, affine=True, track_running_stats=True)
            yield case(norm, 8, affine=False, track_running_stats=False)
        for pad in ("ReflectionPad", "ReplicationPad", "ZeroPad", "CircularPad"):
            yield case(pad, 2)
        yield case("ConstantPad", 2, value=1.5)
        yield case("Dropout")
        for mode in {1: ("nearest", "linear"), 2: ("nearest", "bilinear", "bicubic"), 3: ("nearest", "trilinear")}[
            axes
        ]:
            yield f"Upsample-{mode}-{axes}d", lambda mode=mode: nn.Upsample(scale_factor=2, mode=mode), picture
        yield f"Upsample-nearest-exact-{axes}d", lambda: nn.Upsample(scale_factor=2, mode="nearest-exact"), picture


def _of_rows() -> Iterator[Case]:
    """Yield activations, norms and others that take rows or one picture."""
    activations = (
        "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 "
        "SELU SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink"
    )
    for name in activations.split():
        yield name, getattr(nn, name), rows
    yield "GELU-tanh", lambda: nn.GELU(approximate="tanh"), rows
    for name in ("CELU", "ELU", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "Mish", "ReLU", "SELU", "SiLU"):
        yield f"{name}-inplace", lambda name=name: nn.Sequential(nn.Tanh(), getattr(nn, name)(inplace=True)), rows
    for name in ("Softmax", "Softmin", "LogSoftmax"):
        yield name, lambda name=name: getattr(nn, name)(dim=-1), rows
    yield "Softmax2d", nn.Softmax2d, planes(2)
    yield "Threshold", lambda: nn.Threshold(0.1, 2.0), rows
    for name in ("Dropout", "AlphaDropout", "FeatureAlphaDropout", "Identity"):
        yield name, getattr(nn, name), rows
    yield "Linear", lambda: nn.Linear(16, 3), rows
    yield "LayerNorm", lambda: nn.LayerNorm(16), rows
    yield "RMSNorm", lambda: nn.RMSNorm(16), rows
    yield "GroupNorm", lambda: nn.GroupNorm(2, 8), planes(2)
    yield "SyncBatchNorm", lambda: nn.SyncBatchNorm(8), planes(2)
    yield "LocalResponseNorm", lambda: nn.LocalResponseNorm(2), planes(2)
    yield "CosineSimilarity", nn.CosineSimilarity, pair
    yield "PairwiseDistance", nn.PairwiseDistance, pair
    yield "PixelShuffle", lambda: nn.PixelShuffle(2), planes(2)
    yield "PixelUnshuffle", lambda: nn.PixelUnshuffle(3), planes(2)
    yield "ChannelShuffle", lambda: nn.ChannelShuffle(2), planes(2)
    yield "Flatten", nn.Flatten, planes(2)
    yield "Unflatten", lambda: nn.Unflatten(1, (2, 4)), planes(2)
    yield "UpsamplingNearest2d", lambda: nn.UpsamplingNearest2d(scale_factor=2), planes(2)
    yield "UpsamplingBilinear2d", lambda: nn.UpsamplingBilinear2d(scale_factor=2), planes(2)
    yield "Unfold", lambda: nn.Unfold(3, padding=1), planes(2)
    yield "Fold", lambda: nn.Fold((9, 9), 3, stride=3), lambda batch: (meta(batch, 18, 9),)
    yield "FractionalMaxPool2d", lambda: nn.FractionalMaxPool2d(2, output_size=5), planes(2)
    log_prob = "AdaptiveLogSoftmaxWithLoss-log_prob"
    yield log_prob, lambda: Method(nn.AdaptiveLogSoftmaxWithLoss(16, 20, [5, 10]), "log_prob"), rows


def _of_sequences() -> Iterator[Case]:
    """Yield recurrent layers, transformers, attention and embeddings."""
    for name in ("RNN", "LSTM", "GRU"):
        make = getattr(nn, name)
        yield name, lambda make=make: make(16, 12), steps
        stack: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "batch_first": True}
        yield f"{name}-stack", lambda make=make, stack=stack: make(16, 12, **stack), sequence
        yield f"{name}-no-bias", lambda make=make: make(16, 12, bias=False, num_layers=3, dropout=0.1), steps
        cell = getattr(nn, f"{name}Cell")
        yield f"{name}Cell", lambda cell=cell: cell(16, 12), rows
        yield f"{name}Cell-no-bias", lambda cell=cell: cell(16, 12, bias=False), rows
    yield "RNN-relu", lambda: nn.RNN(16, 12, nonlinearity="relu"), steps
    yield "RNNCell-relu", lambda: nn.RNNCell(16, 12, nonlinearity="relu"), rows
    yield "LSTM-projection", lambda: nn.LSTM(16, 12, 2, proj_size=5, bidirectional=True), steps
    encoder, decoder = nn.TransformerEncoderLayer, nn.TransformerDecoderLayer
    yield "TransformerEncoderLayer", lambda: encoder(16, 2, 32, batch_first=True), sequence
    yield "TransformerEncoderLayer-norm-first", lambda: encoder(16, 2, 32, 0.1, "gelu", norm_first=True), steps
    yield "TransformerDecoderLayer", lambda: decoder(16, 2, 32, batch_first=True), source_and_target
    batched_encoder = lambda: nn.TransformerEncoder(encoder(16, 2, 32, batch_first=True), 2)  # noqa: E731
    yield "TransformerEncoder", batched_encoder, sequence
    yield "TransformerEncoder-causal", lambda: Causal(batched_encoder()), lambda batch: (*sequence(batch), meta(7, 7))
    yield (
        "TransformerDecoder",
        lambda: nn.TransformerDecoder(decoder(16, 2, 32, batch_first=True), 2),
        source_and_target,
    )
    yield "Transformer", lambda: nn.Transformer(16, 2, 2, 2, 32, batch_first=True), source_and_target
    for weights in (True, False):
        label = f"MultiheadAttention-weights={weights}"
        yield label, lambda w=weights: Attention(need_weights=w, batch_first=True), sequence
        yield f"{label}-steps-first", lambda w=weights: Attention(need_weights=w), steps
        yield f"{label}-cross", lambda w=weights: Attention(need_weights=w, batch_first=True), source_and_target
        masked = lambda batch: (*sequence(batch) * 2, truths(batch, 7), truths(7, 7))  # noqa: E731
        yield f"{label}-masks", lambda w=weights: Attention(need_weights=w, batch_first=True), masked
        biased: dict[str, Any] = {"batch_first": True, "add_bias_kv": True, "add_zero_attn": True}
        yield f"{label}-bias", lambda w=weights, biased=biased: Attention(need_weights=w, **biased), sequence
        other: dict[str, Any] = {"batch_first": True, "kdim": 12, "vdim": 12}
        narrow = lambda batch: (meta(batch, 7, 16), meta(batch, 5, 12))  # noqa: E731
        yield f"{label}-kdim", lambda w=weights, other=other: Attention(need_weights=w, **other), narrow
    tokens = lambda batch: (meta(batch, 7, dtype=torch.int64),)  # noqa: E731
    yield "Embedding", lambda: nn.Embedding(50, 8), tokens
    for mode in ("mean", "sum", "max"):
        yield f"EmbeddingBag-{mode}", lambda mode=mode: nn.EmbeddingBag(50, 8, mode=mode), tokens
    weighted = lambda batch: (*tokens(batch), None, meta(batch, 7))  # noqa: E731
    yield "EmbeddingBag-weighted", lambda: nn.EmbeddingBag(50, 8, mode="sum"), weighted  # type: ignore[misc]


def _of_losses() -> Iterator[Case]:
    """Yield the losses, with inputs that fit."""
    for name in (
        *("L1Loss", "MSELoss", "HuberLoss", "SmoothL1Loss", "SoftMarginLoss", "BCELoss", "BCEWithLogitsLoss"),
        *("PoissonNLLLoss", "HingeEmbeddingLoss", "MultiLabelSoftMarginLoss"),
    ):
        yield name, getattr(nn, name), pair
    for name in ("CrossEntropyLoss", "NLLLoss", "MultiMarginLoss"):
        yield name, getattr(nn, name), classes
    yield "CrossEntropyLoss-smoothed", lambda: nn.CrossEntropyLoss(label_smoothing=0.1, reduction="none"), classes
    yield "KLDivLoss", lambda: nn.KLDivLoss(reduction="batchmean"), pair
    yield "LinearCrossEntropyLoss", lambda: nn.LinearCrossEntropyLoss(16, 20), classes
    yield "TripletMarginLoss", nn.TripletMarginLoss, three
    yield "TripletMarginWithDistanceLoss", nn.TripletMarginWithDistanceLoss, three
    yield "MarginRankingLoss", nn.MarginRankingLoss, lambda batch: (meta(batch), meta(batch), meta(batch))
    yield "CosineEmbeddingLoss", nn.CosineEmbeddingLoss, lambda batch: (*pair(batch), meta(batch))
    yield (
        "MultiLabelMarginLoss",
        nn.MultiLabelMarginLoss,
        lambda batch: (meta(batch, 16), meta(batch, 16, dtype=torch.int64)),
    )


CASES: list[Case] = [*_of_pictures(), *_of_rows(), *_of_sequences(), *_of_losses()]

LEFT_OUT: dict[str, str] = {
    **dict.fromkeys(
        ("Module", "Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict", "Container"),
        "a container or a base class",
    ),
    "AdaptiveLogSoftmaxWithLoss": "its forward picks rows by value; log_prob above does not",
    "Bilinear": "torch counts none of its products; below",
    "CTCLoss": "torch.export has no kernel for it on meta",
    "CrossMapLRN2d": "takes one size of batch, below",
    "GaussianNLLLoss": "its forward looks at values",
    "NLLLoss2d": "an old name of NLLLoss",
    "DataParallel": "is refused: it runs on several devices",
    "FractionalMaxPool3d": "takes one size of batch, below",
    **dict.fromkeys(("RNNBase", "RNNCellBase"), "the base of recurrent layers"),
}


def _analyzed(module: nn.Module, inputs: Inputs, others: Inputs, points: list[str] | None) -> Any:
    dims = None
    if points:
        dims = tuple(
            None
            if one is None
            else {axis: "B" for axis, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b} or None
            for one, two in zip(inputs, others, strict=True)
        )
    before = logging.root.manager.disable
    logging.disable(logging.DEBUG)  # torch traces each step of an export; pytest would keep it all
    try:
        return analyze_model(module, inputs, dims=dims, points=points, device="none")
    finally:
        logging.disable(before)


def _counted(module: nn.Module, inputs: Inputs) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_a_module_costs_what_torch_counts_at_any_batch(case: Case) -> None:
    """Captured at a batch of 4 and asked at 6, a module has the FLOPs in products that torch counts at 6."""
    _, make, inputs = case
    with torch.device("meta"):
        module = make().eval()
    total = _analyzed(module, inputs(CAPTURED), inputs(ASKED), [f"forward:B={ASKED}"]).report.total.total
    assert total.cost.matmul_flops == _counted(module, inputs(ASKED))


def test_every_module_of_torch_is_named() -> None:
    """A class of torch.nn is analyzed above or left out with a reason; lazy ones become others at their first call."""
    classes = {
        name
        for name, value in vars(nn).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and not name.startswith("Lazy")
    }
    analyzed = {name.partition("-")[0] for name, *_ in CASES}
    assert classes - analyzed - LEFT_OUT.keys() == set()
    assert analyzed & LEFT_OUT.keys() <= {"AdaptiveLogSoftmaxWithLoss"}


def test_a_bilinear_layer_is_one_product() -> None:
    """6 rows of 16 times 8 products each, times 3 results: 2*6*128*3 = 4,608; torch counts none of it."""
    with torch.device("meta"):
        module = nn.Bilinear(16, 8, 3)
    inputs = [(meta(batch, 16), meta(batch, 8)) for batch in (CAPTURED, ASKED)]
    total = _analyzed(module, inputs[0], inputs[1], ["forward:B=6"]).report.total.total
    assert total.cost.matmul_flops == 4_608


@pytest.mark.parametrize(
    ("make", "axes"), [(lambda: nn.CrossMapLRN2d(2), 2), (lambda: nn.FractionalMaxPool3d(2, output_size=5), 3)]
)
def test_what_fixes_its_batch_is_captured_at_one(make: Callable[[], nn.Module], axes: int) -> None:
    """These two of torch read their batch as a number; they have no products, and FLOPs elsewhere."""
    with torch.device("meta"):
        module = make().eval()
    total = _analyzed(module, planes(axes)(4), planes(axes)(4), None).report.total.total
    assert total.cost.matmul_flops == 0 < total.cost.vector_flops


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_the_length_of_a_sequence_stays_symbolic(name: str) -> None:
    """Captured at 7 steps and asked at 100, a bidirectional stack has the FLOPs that torch counts at 100."""
    with torch.device("meta"):
        module = getattr(nn, name)(16, 12, 2, bidirectional=True, batch_first=True)
    analysis = analyze_model(
        module, meta(4, 7, 16), dims={"input": {0: "B", 1: "S"}}, points=["forward:B=2,S=100"], device="none"
    )
    assert analysis.report.total.total.cost.matmul_flops == _counted(module, (meta(2, 100, 16),))


def test_lengths_of_pictures_stay_symbolic() -> None:
    """Convolutions, pools and a resize of any length: asked at 90, what torch counts at 90.

    max_pool1d would fix its length if torch found its shape, and bicubic resizes reckon sizes in floating point.
    """
    with torch.device("meta"):
        signal = nn.Sequential(nn.Conv1d(8, 4, 3), nn.MaxPool1d(2), nn.ConvTranspose1d(4, 8, 4, 2), nn.LPPool1d(2, 3))
        resize = nn.Sequential(nn.Upsample(scale_factor=2, mode="bicubic"), nn.Conv2d(8, 4, 3))
    for module, inputs, asked in (
        (signal, meta(2, 8, 30), meta(2, 8, 90)),
        (resize, meta(2, 8, 9, 30), meta(2, 8, 9, 90)),
    ):
        analysis = analyze_model(
            module, inputs, dims={"input": {inputs.dim() - 1: Dim("L", min=8)}}, points=["forward:L=90"], device="none"
        )
        assert analysis.report.total.total.cost.matmul_flops == _counted(module, (asked,)) > 0
