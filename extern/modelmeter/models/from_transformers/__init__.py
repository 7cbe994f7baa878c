"""Models of transformers as analytic models; `data` holds a folder for each, with one file per variant.

>>> QWEN3_8B.load().parameters
8190735360
"""

from modelmeter.registry import RegisteredModel


def _registered(name: str, *, attention: str = "sdpa") -> RegisteredModel:
    return RegisteredModel(name=name, package=__name__, folder=f"data/{name}", default=f"bf16-{attention}")


QWEN3_8B = _registered("qwen3-8b")
QWEN3_30B_A3B = _registered("qwen3-30b-a3b")
DEEPSEEK_V3 = _registered("deepseek-v3")
DEEPSEEK_OCR_2 = _registered("deepseek-ocr-2")
QWEN3_VL_8B = _registered("qwen3-vl-8b")
GOT_OCR2 = _registered("got-ocr2", attention="eager")
SIGLIP_SO400M_PATCH14_384 = _registered("siglip-so400m-patch14-384")
WHISPER_LARGE_V3 = _registered("whisper-large-v3")
