"""Makes what the project ships: the standard run's artefacts, and the models that `modelmeter.load` finds.

    python graphs/make.py

Writes graphs/deepseek-ocr/ and the data folders of extern/modelmeter/models/. Takes a quarter of an hour on two cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dsocr_graph.cli import main as run_command
from dsocr_graph.compiling import compile_model
from dsocr_graph.model_cache import ModelCache
from dsocr_graph.models.from_transformers import CATALOG, TransformersVariant
from dsocr_graph.models.named_model import ModelVariant, NamedModel
from dsocr_graph.models.registry import Variant, model_named, transformers_model
from dsocr_graph.workloads import mode_named
from modelmeter.serialize import compress

HERE = Path(__file__).parent
SHIPPED = HERE.parent / "extern" / "modelmeter" / "models"
DEEPSEEK_OCR = {
    "tiny": ("Tiny", "sdpa"),
    "small": ("Small", "sdpa"),
    "base": ("Base", "sdpa"),
    "large": ("Large", "sdpa"),
    "gundam": ("Gundam", "sdpa"),
    "gundam-eager": ("Gundam", "eager"),
}


def main() -> int:
    """Capture what is not in the cache yet, and write everything."""
    for name, (mode, attention) in DEEPSEEK_OCR.items():
        variant = Variant(base_size=mode_named(mode).base_size, dtype="bf16", attention=attention)
        _ship(model_named("deepseek-ocr"), variant, SHIPPED / "deepseek_ocr" / "data" / f"{name}.json.gz")
    for model in map(transformers_model, CATALOG.values()):
        shipped = TransformersVariant(dtype="bf16", attention=model.attention)
        folder = SHIPPED / "from_transformers" / "data" / model.name
        _ship(model, shipped, folder / f"{shipped.name}.json.gz")
    return run_command(["analyze", "--out", str(HERE / "deepseek-ocr")])


def _ship(model: NamedModel, variant: ModelVariant, file: Path) -> None:
    compiled = compile_model(model, variant, store=ModelCache.default(), progress=print)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(compress(compiled.model_json.decode()))


if __name__ == "__main__":
    sys.exit(main())
