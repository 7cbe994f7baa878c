"""Small models that the tests of DeepSeek-OCR share."""

import pytest
import torch

from dsocr_graph.models.deepseek_ocr import DeepseekOCRConfig, DeepseekOCRForCausalLM, initialize


def make_model(*, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: object) -> DeepseekOCRForCausalLM:
    """Return a tiny model whose weights are large enough that every part matters to the result."""
    config = DeepseekOCRConfig.tiny(**({"initializer_range": 0.2} | changes))
    return initialize(DeepseekOCRForCausalLM(config), seed=seed).to(dtype).eval()


@pytest.fixture
def tiny() -> DeepseekOCRForCausalLM:
    """Return a tiny model in float32."""
    return make_model()


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    """Run without gradients, as inference does."""
    with torch.no_grad():
        yield
