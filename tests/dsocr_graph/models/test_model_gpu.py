"""What only a CUDA device shows: the grouped kernel and a whole run in bfloat16."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dsocr_graph.models.deepseek_ocr.generation import Document, generate
from dsocr_graph.models.deepseek_ocr.modeling import DeepseekOCRForCausalLM
from dsocr_graph.models.deepseek_ocr.ops import grouped_linear

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_grouped_linear_on_the_device_equals_the_host(dtype: torch.dtype) -> None:
    """Full-size experts, some without tokens: the device's products are the host's within bfloat16's rounding."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 1280, generator=generator).to(dtype)
    weight = torch.randn(8, 896, 1280, generator=generator).to(dtype)
    ends = torch.tensor([0, 7, 7, 20, 21, 40, 60, 60], dtype=torch.int32)
    device = grouped_linear(rows.cuda(), weight.cuda(), ends.cuda(), experts_per_token=6).cpu()
    host = grouped_linear(rows, weight, ends, experts_per_token=6)
    torch.testing.assert_close(device, host, rtol=2e-2, atol=0.5 if dtype is torch.bfloat16 else 1e-2)


def test_generation_on_the_device(make_model: Callable[..., DeepseekOCRForCausalLM]) -> None:
    """A model moved to the device writes tokens in bfloat16, its experts still sharing storage."""
    model = make_model(dtype=torch.bfloat16, eos_token_id=254).cuda()
    layer: Any = model.model.layers[1]
    experts = layer.mlp.experts
    assert experts[3].up_proj.weight.data_ptr() == experts.up_weight[3].data_ptr()
    page = Document(global_pixels=torch.zeros(1, 3, 128, 128), prompt_ids=[0, *[255] * 7, 9])
    assert len(generate(model, [page], max_new_tokens=4)[0]) == 4
