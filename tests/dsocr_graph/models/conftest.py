"""Small models that the tests of DeepSeek-OCR share."""

from collections.abc import Callable, Iterator

import pytest
import torch

from dsocr_graph.models.deepseek_ocr import DeepseekOCRConfig, DeepseekOCRForCausalLM, initialize

MakeModel = Callable[..., DeepseekOCRForCausalLM]


@pytest.fixture
def make_model() -> MakeModel:
    """Return a maker of tiny models whose weights are large enough that every part matters to the result."""

    def make(*, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: object) -> DeepseekOCRForCausalLM:
        config = DeepseekOCRConfig.tiny(**({"initializer_range": 0.2} | changes))
        return initialize(DeepseekOCRForCausalLM(config), seed=seed).to(dtype).eval()

    return make


@pytest.fixture
def tiny(make_model: MakeModel) -> DeepseekOCRForCausalLM:
    """Return a tiny model in float32."""
    return make_model()


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    """Run without gradients, as inference does."""
    with torch.no_grad():
        yield
