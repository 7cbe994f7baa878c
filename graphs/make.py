"""Makes what the project ships: the standard run's artefacts, and the models that `modelmeter.load` finds.

    python graphs/make.py

Writes graphs/deepseek-ocr/ and extern/modelmeter/models/deepseek_ocr/data/. Takes two minutes on two cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dsocr_graph.cli import main as run_command
from dsocr_graph.compiling import compile_model
from dsocr_graph.model_cache import ModelCache
from dsocr_graph.models.registry import Variant, model_named
from dsocr_graph.workloads import mode_named
from modelmeter.serialize import compress

HERE = Path(__file__).parent
DATA = HERE.parent / "extern" / "modelmeter" / "models" / "deepseek_ocr" / "data"
SHIPPED = {
    "tiny": ("Tiny", "sdpa"),
    "small": ("Small", "sdpa"),
    "base": ("Base", "sdpa"),
    "large": ("Large", "sdpa"),
    "gundam": ("Gundam", "sdpa"),
    "gundam-eager": ("Gundam", "eager"),
}


def main() -> int:
    """Capture what is not in the cache yet, and write everything."""
    named = model_named("deepseek-ocr")
    DATA.mkdir(parents=True, exist_ok=True)
    for name, (mode, attention) in SHIPPED.items():
        variant = Variant(base_size=mode_named(mode).base_size, dtype="bf16", attention=attention)
        compiled = compile_model(named, variant, store=ModelCache.default(), progress=print)
        (DATA / f"{name}.json.gz").write_bytes(compress(compiled.model_json.decode()))
    return run_command(["analyze", "--out", str(HERE / named.name)])


if __name__ == "__main__":
    sys.exit(main())
