"""The SAM encoder: against transformers, against plain loops, and what it does at other sizes."""

import math

import pytest
import torch
from torch.nn import functional as F

from dsocr_graph.models.deepseek_ocr.config import DeepseekOCRConfig, SamConfig
from dsocr_graph.models.deepseek_ocr.modeling import DeepseekOCRForCausalLM
from dsocr_graph.models.deepseek_ocr.vision_sam import (
    Block,
    ImageEncoderViT,
    get_abs_pos,
    get_rel_pos,
    window_partition,
    window_unpartition,
)


def _randomize(module: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.normal_(0.0, 0.2, generator=generator)


def test_encoder_up_to_the_neck_is_transformers_sam() -> None:
    """At the size the tables are made for, blocks and neck equal transformers' SamVisionEncoder."""
    from transformers import SamVisionConfig
    from transformers.models.sam.modeling_sam import SamVisionEncoder

    config = DeepseekOCRConfig.tiny().sam
    ours = ImageEncoderViT(config).eval()
    _randomize(ours)
    sam = SamVisionConfig(
        hidden_size=config.embed_dim,
        output_channels=config.neck_channels,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        window_size=config.window_size,
        global_attn_indexes=list(config.global_attn_indexes),
        mlp_dim=config.mlp_dim,
    )
    sam._attn_implementation = "eager"
    theirs = SamVisionEncoder(sam).eval()
    renames = {
        "patch_embed.proj": "patch_embed.projection",
        "blocks.": "layers.",
        "norm1.": "layer_norm1.",
        "norm2.": "layer_norm2.",
        "neck.0.": "neck.conv1.",
        "neck.1.": "neck.layer_norm1.",
        "neck.2.": "neck.conv2.",
        "neck.3.": "neck.layer_norm2.",
    }
    state = {}
    for name, value in ours.state_dict().items():
        if name.startswith("net_"):
            continue
        for old, new in renames.items():
            name = name.replace(old, new)  # noqa: PLW2901 - the renames build on one another
        state[name] = value
    theirs.load_state_dict(state)

    pixels = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    seen = []
    ours.neck.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    features = ours(pixels)
    torch.testing.assert_close(seen[0], theirs(pixels)[0], rtol=1e-4, atol=1e-4)
    # 256 / 16 patches, halved twice
    assert features.shape == (2, 64, 4, 4)


def test_window_attention_equals_plain_loops_over_windows_and_padding() -> None:
    """Windows of 3 over 4x4 patches: padded to 6x6, the padding attended to, the bias per query and key."""
    config = SamConfig(image_size=64, embed_dim=8, num_heads=2, mlp_dim=16, window_size=3, depth=1)
    block = Block(config, window_size=3).eval()
    _randomize(block)
    x = torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(2))

    # Independently: pad the normed patches with zeros, then every window, head and query by itself.
    padded = torch.zeros(6, 6, 8)
    padded[:4, :4] = block.norm1(x)[0]
    attended = torch.zeros(6, 6, 8)
    weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
    for top in (0, 3):
        for left in (0, 3):
            cells = [(row, column) for row in range(3) for column in range(3)]
            tokens = torch.stack([padded[top + row, left + column] for row, column in cells])
            q, k, v = (tokens @ weight.T + bias).split(8, dim=-1)
            for head in range(2):
                part = slice(4 * head, 4 * head + 4)
                for query, (row, column) in enumerate(cells):
                    scores = torch.stack(
                        [
                            q[query, part] @ k[key, part] / math.sqrt(4)
                            + q[query, part] @ block.attn.rel_pos_h[row - key_row + 2]
                            + q[query, part] @ block.attn.rel_pos_w[column - key_column + 2]
                            for key, (key_row, key_column) in enumerate(cells)
                        ]
                    )
                    weights = scores.exp() / scores.exp().sum()
                    attended[top + row, left + column, part] = weights @ v[:, part]
    after_attention = x[0] + (attended @ block.attn.proj.weight.T + block.attn.proj.bias)[:4, :4]
    expected = after_attention + block.mlp(block.norm2(after_attention))
    torch.testing.assert_close(block(x)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("side", "padded"), [(32, 42), (40, 42), (64, 70), (80, 84)])
def test_windows_of_14_pad_the_published_grids(side: int, padded: int) -> None:
    """Grids of 32, 40, 64 and 80 patches become 3, 3, 5 and 6 windows per side, and come back unchanged."""
    x = torch.arange(side * side, dtype=torch.float32).view(1, side, side, 1)
    windows = window_partition(x, 14)
    assert windows.shape[0] == (padded // 14) ** 2
    assert windows.sum() == x.sum()  # zeros were added and nothing lost
    assert torch.equal(window_unpartition(windows, 14, 1, side, side), x)


def test_relative_positions_of_another_size_are_interpolated() -> None:
    """Three rows stretched to five: positions -0.2, 0.4, 1, 1.6, 2.2 of the table, clamped at its ends."""
    table = torch.tensor([[10.0], [20.0], [30.0]])
    # source position of row i is (i + 0.5) * 3 / 5 - 0.5
    stretched = [10.0, 14.0, 20.0, 26.0, 30.0]
    expected = [[stretched[query - key + 2] for key in range(3)] for query in range(3)]
    torch.testing.assert_close(get_rel_pos(3, 3, table)[..., 0], torch.tensor(expected))


def test_position_table_of_another_size_is_resized_with_antialiasing() -> None:
    """A column of ones at 20 of 32, resized to 8: output 4 has its centre at 17.5, at 2.5 / 4 = 0.625 kernel widths.

    The cubic kernel (a = -0.5) there is 1.5 * 0.625^3 - 2.5 * 0.625^2 + 1 = 0.389648, and 16 samples of it add up to 4:
    0.389648 / 4 = 0.097412. Without antialiasing the four nearest columns alone count, and the result is 0.
    """
    table = torch.zeros(1, 32, 32, 1)
    table[:, :, 20] = 1.0
    torch.testing.assert_close(get_abs_pos(table, 8)[0, :, 4, 0], torch.full((8,), 0.097412), rtol=1e-4, atol=1e-5)


def test_position_table_of_its_own_size_is_not_touched() -> None:
    """The same size gives the same tensor, not a copy."""
    table = torch.zeros(1, 16, 16, 1)
    assert get_abs_pos(table, 16) is table


def test_resizing_keeps_the_tables_dtype() -> None:
    """A bfloat16 table is resized in float32 and comes back in bfloat16."""
    assert get_abs_pos(torch.ones(1, 4, 4, 2, dtype=torch.bfloat16), 6).dtype is torch.bfloat16


def test_convolutions_downsample_by_four(tiny: DeepseekOCRForCausalLM) -> None:
    """The features are the neck's output through two 3x3 convolutions of stride 2 without bias."""
    sam = tiny.model.sam_model
    seen = []
    sam.neck.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    features = sam(torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(3)))
    step = F.conv2d(seen[0], sam.net_2.weight, stride=2, padding=1)
    torch.testing.assert_close(features, F.conv2d(step, sam.net_3.weight, stride=2, padding=1))
    assert features.shape[-2:] == (2, 2)  # 128 pixels: 8 patches, 4, 2
