"""The declared list of calibrated sizes and held-out cases: cases.toml as records."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from dsocr_graph.models.deepseek_ocr.config import ClipConfig, DeepseekOCRConfig, MoEImplementation, SamConfig
from dsocr_graph.models.named_model import NamedModel
from dsocr_graph.models.registry import deepseek_ocr_model, model_named
from dsocr_graph.workloads import mode_named

HERE = Path(__file__).parent
DATA = HERE / "data"
PUBLISHED = "deepseek-ocr"
BASE_SIZE = mode_named("Base").base_size  # of all stages but the global view, which has no dims of its own


@frozen(kw_only=True)
class Sizes:
    """One execution of a stage."""

    stage: str
    base_size: int  # pixels per side of the global view
    bindings: Mapping[str, int]


@frozen(kw_only=True)
class Case(Sizes):
    """A stage that is measured and predicted, and never calibrated."""

    split: str
    repeats: int

    @property
    def name(self) -> str:
        """The stage with its sizes, such as "decode B=1 T=913"."""
        sizes = {"base": self.base_size} if self.stage == "vision_global" else self.bindings
        return " ".join((self.stage, *(f"{name}={size}" for name, size in sizes.items())))


@frozen(kw_only=True)
class Target:
    """A device, a dtype and a model, with what is calibrated and what is held out."""

    name: str
    model: NamedModel = field(repr=False)  # whose stages are measured and predicted
    calibrated: NamedModel = field(repr=False)  # whose calls are timed
    moe: MoEImplementation  # how its experts run
    device: str  # "cpu" or "cuda"
    dtype: str
    threads: int
    passes: int
    workload: str | None  # a profile whose total is compared too
    calibrate: tuple[Sizes, ...] = field(repr=False)
    cases: tuple[Case, ...] = field(repr=False)

    @property
    def data(self) -> Path:
        """Where its calibration, its measurements and the compiled models lie."""
        return DATA / self.name

    @property
    def base_sizes(self) -> tuple[int, ...]:
        """Every page size that occurs, the one of the other stages first."""
        return tuple(dict.fromkeys((BASE_SIZE, *(sizes.base_size for sizes in (*self.calibrate, *self.cases)))))


def read_targets(path: Path = HERE / "cases.toml") -> dict[str, Target]:
    """Return every target of the list, by name."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    models = {name: _model(name, sizes) for name, sizes in document.pop("models").items()}
    return {name: _target(name, entry, models) for name, entry in document.items()}


def _target(name: str, entry: Mapping[str, Any], models: Mapping[str, NamedModel]) -> Target:
    calibrate = [
        sizes
        for stage, grids in entry["calibrate"].items()
        for grid in (grids if isinstance(grids, list) else [grids])
        for sizes in _sizes(stage, grid)
    ]
    cases = [
        Case(
            stage=sizes.stage,
            base_size=sizes.base_size,
            bindings=sizes.bindings,
            split=case["split"],
            repeats=case["repeats"],
        )
        for case in entry["cases"]
        for sizes in _sizes(
            case["stage"], {**case.get("dims", {}), **({"mode": case["mode"]} if "mode" in case else {})}
        )
    ]
    measured = entry.get("model", PUBLISHED)
    calibrated = entry.get("calibrated", measured)
    return Target(
        name=name,
        model=models.get(measured) or model_named(measured),
        calibrated=models.get(calibrated) or model_named(calibrated),
        moe=entry.get("moe", "grouped"),
        device=entry["device"],
        dtype=entry["dtype"],
        threads=entry["threads"],
        passes=entry["passes"],
        workload=entry.get("workload"),
        calibrate=tuple(calibrate),
        cases=tuple(cases),
    )


def _model(name: str, entry: Mapping[str, Any]) -> NamedModel:
    """Return a model of DeepSeek-OCR's code at the sizes of the list; what it leaves out is as published."""
    sizes = {name: size for name, size in entry.items() if name not in {"sam", "clip"}}
    config = DeepseekOCRConfig(sam=SamConfig(**_tuples(entry["sam"])), clip=ClipConfig(**entry["clip"]), **sizes)
    return deepseek_ocr_model(name, config, description="DeepSeek-OCR at other sizes", source="cases.toml")


def _tuples(sizes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(size) if isinstance(size, list) else size for name, size in sizes.items()}


def _sizes(stage: str, grid: Mapping[str, Any]) -> Iterator[Sizes]:
    """Yield the points of a grid: dims with a list take every value; "S - 10" follows from another dim."""
    base_size = mode_named(grid["mode"]).base_size if "mode" in grid else BASE_SIZE
    axes = {name: value if isinstance(value, list) else [value] for name, value in grid.items() if name != "mode"}
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        for name, value in point.items():
            if isinstance(value, str):
                dim, _, less = value.partition(" - ")
                point[name] = point[dim] - int(less)
        yield Sizes(stage=stage, base_size=base_size, bindings=point)
