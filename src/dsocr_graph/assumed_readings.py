"""How a model that no one here knows by name reads pages: by its stages, as the models do that have the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen

from dsocr_graph.errors import OptionError
from dsocr_graph.models.from_transformers import (
    CATALOG,
    causal_lm,
    image_encoder,
    image_text,
    speech,
    text_encoder,
    text_to_text,
)
from dsocr_graph.models.from_transformers.page_views import (
    PREPROCESSORS,
    PackedPages,
    Preprocessor,
    TiledPages,
    WholePages,
)
from dsocr_graph.workloads import Profile, bind_profile
from dsocr_graph.workloads.request import MAX_TOKENS, Request, requests_of
from modelmeter.compare.side import PIXELS
from modelmeter.model import AnalyticModel, SizeLimitError
from modelmeter.workload import Fact, Workload, WorkloadItem

READ = "read"
"""Name of the fact that says which reading of pages is assumed."""

_WINDOW_SECONDS = 30  # of speech: what one window of the models of speech holds

_LANGUAGE = {"prefill": "B S", "decode": "B T"}
_WITH_IMAGES = {"prefill": "B N S", "decode": "B T"}


@frozen(kw_only=True)
class Reading:
    """A way of reading pages, and the stages with their dims that tell that a model reads so."""

    stages: Mapping[str, frozenset[str]] = field(
        converter=lambda stages: {stage: frozenset(dims.split()) for stage, dims in stages.items()}
    )
    what: str  # in words, after "as"
    workload: Callable[[Profile], Workload] = field(repr=False)


def read_by_stages(model: AnalyticModel, profile: Profile) -> Workload | None:
    """Return pages as a workload of a model, read as models of the same stages do; None where none has these.

    What a compiled model does not say, such as how many tokens an image becomes, is as in those models, and the facts
    say which reading is assumed.

    Parameters
    ----------
    model : AnalyticModel
        One that has no name here.
    profile : Profile
        The pages.

    Raises
    ------
    OptionError
        When the model has no room for them.
    WorkloadError
        When there is nothing in them for it to read.

    Examples
    --------
    >>> from attrs import evolve
    >>> import modelmeter
    >>> from dsocr_graph.workloads import load_profile
    >>> unknown = evolve(modelmeter.load("qwen3-8b"), name="my-lm")
    >>> read_by_stages(unknown, load_profile("dsocr-standard-v1")).facts["read"]
    'the text of each page, as decoder-only language models do (assumed from the stages)'
    """
    stages = {stage.name: frozenset(stage.dims) for stage in model.stages}
    reading = next((each for each in READINGS if _matches(each.stages, stages)), None)
    if reading is None:
        return None
    workload = reading.workload(profile)
    _require_room(model, workload)
    facts: dict[str, Fact] = {**workload.facts, READ: f"{reading.what} (assumed from the stages)"}
    return Workload(name=workload.name, items=workload.items, facts=facts)


def _matches(read: Mapping[str, frozenset[str]], stages: Mapping[str, frozenset[str]]) -> bool:
    """Whether a model has the stages of a reading and no others; a size that nothing follows may be missing."""
    return read.keys() == stages.keys() and all(dims <= read[stage] for stage, dims in stages.items())


def views_of(model: AnalyticModel, profile: Profile) -> dict[str, str]:
    """Return how large the views are that each vision stage of a model takes, where that is known.

    Examples
    --------
    >>> import modelmeter
    >>> from dsocr_graph.workloads import load_profile
    >>> views_of(modelmeter.load("deepseek-ocr-2"), load_profile("dsocr-standard-v1"))
    {'views of vision_global': '1024 x 1024 pixels', 'views of vision_local': '768 x 768 pixels'}
    """
    stages = {stage.name: frozenset(stage.dims) for stage in model.stages}
    known = CATALOG.get(model.name)
    if known is not None:
        sizes = _sizes_known(known.settings)
    elif _matches(_CUT.stages, stages):
        sizes = {"vision_global": profile.mode.base_size}
        sizes |= {"vision_local": profile.mode.image_size} if profile.mode.crop else {}
    else:
        sizes = {}
    return {f"{PIXELS}{stage}": f"{size} x {size} pixels" for stage, size in sizes.items() if stage in stages}


def _sizes_known(settings: Mapping[str, Any]) -> dict[str, int]:
    preprocessor = PREPROCESSORS.get(str(settings.get("model_type")))
    if isinstance(preprocessor, TiledPages):
        return {"vision_global": preprocessor.view, "vision_local": preprocessor.tile}
    size = settings.get("vision_config", settings).get("image_size")
    if isinstance(preprocessor, PackedPages) or not isinstance(size, int):
        return {}
    return {"vision": size, "encode": size}


# --- the readings


def _by_request(
    runs: Callable[[Mapping[str, Any], Request], WorkloadItem], settings: Mapping[str, Any] | None = None
) -> Callable[[Profile], Workload]:
    """Return a reading that a family of models has; what the model in hand has room for is seen to afterwards."""

    def workload(profile: Profile) -> Workload:
        return Workload(
            name=profile.name,
            items=tuple(runs(settings or {}, request) for request in requests_of(profile)),
            facts={"dtype": profile.dtype, "batch": profile.batch, "pages": len(profile.pages), **profile.lengths},
        )

    return workload


def _require_room(model: AnalyticModel, workload: Workload) -> None:
    """Refuse pages beyond the sizes that a model has room for."""
    for item in workload.items:
        for run in item.runs:
            last = {} if run.sweep is None else {run.sweep: run.bindings[run.sweep] + run.count - 1}
            try:
                model.require_room(f"stage {run.stage!r} for {item.name!r}", {**run.bindings, **last})
            except SizeLimitError as error:
                raise OptionError(
                    f"{error}; ask for fewer with --new-tokens, or compare at sizes of its stages, as --points "
                    "STAGE:DIM=SIZE,..."
                ) from error


def _type_of(kind: type[Preprocessor]) -> dict[str, str]:
    """Return settings whose preprocessor is the known one of a kind."""
    return {"model_type": next(name for name, known in PREPROCESSORS.items() if isinstance(known, kind))}


_CUT = Reading(
    stages={"vision_global": "", "vision_local": "V H W", **_WITH_IMAGES},
    what="a global view and crops of each page, as DeepSeek-OCR does",
    workload=bind_profile,
)

READINGS = (
    Reading(
        stages={"vision_global": "", "vision_local": "V", **_WITH_IMAGES},
        what="a global view and square tiles of each page, as models of a fixed grid do",
        workload=_by_request(image_text.runs, _type_of(TiledPages)),
    ),
    _CUT,
    Reading(
        stages={"vision": "N", **_WITH_IMAGES},
        what="each page near its own size in packed patches, as models of images and text do",
        workload=_by_request(image_text.runs, _type_of(PackedPages)),
    ),
    Reading(
        stages={"vision": "V", **_WITH_IMAGES},
        what="each page as one square view, as models of images and text do",
        workload=_by_request(image_text.runs, _type_of(WholePages)),
    ),
    Reading(
        stages=_LANGUAGE,
        what="the text of each page, as decoder-only language models do",
        workload=_by_request(causal_lm.runs),
    ),
    Reading(
        stages={"encode": "B"},
        what="each page as one image, as encoders of images do",
        workload=_by_request(image_encoder.runs),
    ),
    Reading(
        stages={"encode": "B S"},
        what="the text of each page, as encoders of text do",
        workload=_by_request(text_encoder.runs),
    ),
    Reading(
        stages={"encode": "B", **_LANGUAGE},
        what=f"each page read aloud, in windows of {_WINDOW_SECONDS} s, as models of speech do",
        workload=_by_request(
            speech.runs,
            {
                "max_source_positions": _WINDOW_SECONDS * speech.POSITIONS_PER_SECOND,
                "max_target_positions": MAX_TOKENS,
            },
        ),
    ),
    Reading(
        stages={"encode": "B S", "prefill": "B S P", "decode": "B S T"},
        what="the text of each page, as models with an encoder of text do",
        workload=_by_request(text_to_text.runs),
    ),
)
"""The known readings; of two that a model's stages fit, the first."""
