"""CLIP on SAM's features, the projector, and the order of merged image tokens."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from dsocr_graph.errors import ModelInputError
from dsocr_graph.models.deepseek_ocr.config import ClipConfig
from dsocr_graph.models.deepseek_ocr.modeling import DeepseekOCRForCausalLM
from dsocr_graph.models.deepseek_ocr.vision_clip import NoTPTransformerBlock, VitModel, get_abs_pos, quick_gelu


def test_block_is_transformers_clip_layer() -> None:
    """A block equals transformers' CLIPEncoderLayer with the fused projection taken apart."""
    from transformers import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

    config = ClipConfig(hidden_size=64, num_layers=1, num_heads=4, ffn_hidden_size=96)
    ours = NoTPTransformerBlock(config).eval()
    for parameter in ours.parameters():
        parameter.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    clip = CLIPVisionConfig(hidden_size=64, intermediate_size=96, num_attention_heads=4, hidden_act="quick_gelu")
    clip._attn_implementation = "eager"
    theirs = CLIPEncoderLayer(clip).eval()
    state = {}
    for name, value in ours.state_dict().items():
        if "qkv_proj" in name:
            for part, chunk in zip("qkv", value.chunk(3), strict=True):
                state[name.replace("qkv_proj", f"{part}_proj")] = chunk
        else:
            state[name] = value
    theirs.load_state_dict(state)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(7))
    output = theirs(x, attention_mask=None)
    expected = output[0] if isinstance(output, tuple) else output
    torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4)


def test_quick_gelu_at_one() -> None:
    """1 * sigmoid(1.702) = 1 / (1 + exp(-1.702)) = 1 / 1.182318 = 0.845796."""
    torch.testing.assert_close(quick_gelu(torch.ones(1)), torch.tensor([0.845796]), rtol=1e-5, atol=1e-6)


def test_sam_features_are_the_patch_embeddings(tiny: DeepseekOCRForCausalLM) -> None:
    """The embeddings are the class token, then the features row by row, plus positions; pixels do not matter."""
    embeddings = tiny.model.vision_model.embeddings
    features = torch.randn(2, 64, 4, 4, generator=torch.Generator().manual_seed(5))
    result = embeddings(torch.zeros(2, 3, 256, 256), features)
    positions = embeddings.position_embedding.weight
    assert result.shape == (2, 17, 64)
    torch.testing.assert_close(result[1, 0], embeddings.class_embedding + positions[0])
    # row 2, column 1 is patch 2 * 4 + 1 = 9, after the class token 10
    torch.testing.assert_close(result[1, 10], features[1, :, 2, 1] + positions[10])


def test_without_sam_features_clips_own_patches_are_embedded() -> None:
    """The patch convolution, unused in DeepSeek-OCR, gives 4 * 4 patches of a picture of 56 pixels."""
    config = ClipConfig(image_size=56, hidden_size=16, num_layers=1, num_heads=2, ffn_hidden_size=16)
    assert VitModel(config)(torch.zeros(1, 3, 56, 56)).shape == (1, 17, 16)


def test_positions_of_another_size_keep_the_class_token() -> None:
    """The class token's position is kept; a constant table stays constant when it is resized from 4x4 to 10x10."""
    table = torch.full((1, 17, 3), 2.0)
    table[0, 0] = 9.0
    resized = get_abs_pos(table, 101)
    assert resized.shape == (1, 101, 3)
    assert torch.equal(resized[0, 0], torch.full((3,), 9.0))
    torch.testing.assert_close(resized[0, 1:], torch.full((100, 3), 2.0))


def test_projector_takes_clip_channels_first(tiny: DeepseekOCRForCausalLM) -> None:
    """A view's token is the projection of CLIP's 64 channels, then SAM's 64, at the same place."""
    model = tiny.model
    pixels = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(9))
    sam = model.sam_model(pixels)
    clip = model.vision_model(pixels, sam)
    # second row, first column of 2x2: token 2 of SAM, token 3 of CLIP behind the class token
    expected = model.projector.layers(torch.cat([clip[0, 3], sam[0, :, 1, 0]]))
    # rows are 2 tokens and a newline: the second row begins at 3
    torch.testing.assert_close(tiny.encode_global(pixels)[3], expected)


def _mark(model: DeepseekOCRForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a view's feature at (y, x) be 100 * view + 10 * y + x, a newline -1, the separator -2."""

    def features(pixels: torch.Tensor) -> torch.Tensor:
        views, side = pixels.shape[0], pixels.shape[-1] // 64
        marks = [[100 * view + 10 * y + x for y in range(side) for x in range(side)] for view in range(views)]
        return torch.tensor(marks, dtype=torch.float32)[..., None].expand(-1, -1, 64)

    monkeypatch.setattr(model.model, "_encode_views", features)
    model.model.image_newline.fill_(-1.0)
    model.model.view_seperator.fill_(-2.0)


def test_global_tokens_are_rows_newlines_separator(
    tiny: DeepseekOCRForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view of 2x2 tokens is row, newline, row, newline, separator."""
    _mark(tiny, monkeypatch)
    assert tiny.encode_global(torch.zeros(1, 3, 128, 128))[:, 0].tolist() == [0, 1, -1, 10, 11, -1, -2]


def test_local_tokens_are_one_map_before_the_global_ones(
    tiny: DeepseekOCRForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grid of 2 rows and 3 columns of 2x2 tokens is 4 rows of 6 with newlines, then the global tokens."""
    _mark(tiny, monkeypatch)
    merged = tiny.encode_local(torch.zeros(2, 3, 3, 128, 128), torch.full((2, 64), 7.0))[:, 0].tolist()
    assert merged == [
        *(0, 1, 100, 101, 200, 201, -1),  # upper rows of views 0, 1, 2
        *(10, 11, 110, 111, 210, 211, -1),
        *(300, 301, 400, 401, 500, 501, -1),  # views 3, 4, 5
        *(310, 311, 410, 411, 510, 511, -1),
        *(7, 7),
    ]


def test_views_are_encoded_independently(tiny: DeepseekOCRForCausalLM) -> None:
    """A crop's tokens do not depend on the crops beside it."""
    views = torch.randn(1, 2, 3, 128, 128, generator=torch.Generator().manual_seed(11))
    alone = tiny.encode_local(views[:, :1], torch.zeros(0, 64))
    both = tiny.encode_local(views, torch.zeros(0, 64))
    # the first row of the first view: tokens 0 and 1 in both
    torch.testing.assert_close(both[:2], alone[:2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(100, 100), (128, 192)])
def test_a_view_that_is_no_square_of_64s_is_refused(tiny: DeepseekOCRForCausalLM, shape: tuple[int, int]) -> None:
    """The error says the size and what is allowed."""
    with pytest.raises(ModelInputError, match=f"{shape[0]}x{shape[1]}.*multiple of 64"):
        tiny.encode_global(torch.zeros(1, 3, *shape))


def test_bfloat16_keeps_clips_residual_stream_in_float32_and_sams_in_bfloat16(
    make_model: Callable[..., DeepseekOCRForCausalLM],
) -> None:
    """As autocast does: layer norms return float32, so CLIP's stream begins in it; SAM's adds to bfloat16."""
    model = make_model(dtype=torch.bfloat16)
    seen = SimpleNamespace(sam=[], clip=[])
    for block in model.model.sam_model.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: seen.sam.append(output.dtype))
    for block in model.model.vision_model.transformer.layers:
        block.register_forward_hook(lambda _module, _inputs, output: seen.clip.append(output.dtype))
    result = model.encode_global(torch.zeros(1, 3, 128, 128, dtype=torch.bfloat16))
    assert set(seen.sam) == {torch.bfloat16}
    assert set(seen.clip) == {torch.float32}
    assert result.dtype is torch.bfloat16
