"""What each side of a comparison runs: the same pages, each model reading them its way, or stages at the same sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import evolve, field, frozen

from dsocr_graph.assumed_readings import read_by_stages, views_of
from dsocr_graph.errors import OptionError
from dsocr_graph.models.registry import MODELS
from dsocr_graph.subjects import stages_text, workload_at
from dsocr_graph.timing.plan import Point
from dsocr_graph.workloads import MODES, Profile, override
from dsocr_graph.workloads.profile import DTYPES
from modelmeter.model import AnalyticModel
from modelmeter.workload import Workload


@frozen(kw_only=True)
class SamePages:
    """Pages that each model reads its way, in the mode that its variant names.

    Attributes
    ----------
    profile : Profile
        The pages.
    mode : str, optional
        Of models whose variant names none.
    """

    profile: Profile
    mode: str | None = None

    def workload(self, model: AnalyticModel, *, label: str, variant: str | None) -> Workload:
        """Return the pages as a workload of a model; one that no one here knows is read by its stages.

        Raises
        ------
        OptionError
            When no reading of pages runs the model's stages, or the pages are for a variant of another kind.
        WorkloadError
            When the model cannot read them.
        """
        dtype = model.variant.get("dtype")
        profile = override(self.profile, mode=mode_of(variant) or self.mode, dtype=dtype if dtype in DTYPES else None)
        stages = {each.name for each in model.stages}
        workload = MODELS[model.name].workload(profile) if model.name in MODELS else None
        if workload is None or not {run.stage for item in workload.items for run in item.runs} <= stages:
            workload = read_by_stages(model, profile)
        if workload is None:
            raise OptionError(
                f"no reading of the pages of profile {profile.name!r} is known: {label} has the stages "
                f"{stages_text(model)}; compare at sizes of these, as --points STAGE:DIM=SIZE,..."
            )
        workload = evolve(workload, facts={**workload.facts, **views_of(model, profile)})
        differing = _differing(model.variant, workload.facts)
        if differing:
            raise OptionError(
                f"the pages are for {', '.join(differing)} as {label} is; choose another --mode or --workload"
            )
        return workload


@frozen(kw_only=True)
class SamePoints:
    """Stages at sizes, each run once, of every model."""

    points: tuple[Point, ...] = field(converter=tuple[Point, ...])

    def workload(self, model: AnalyticModel, *, label: str, variant: str | None) -> Workload:
        """Return the points as a workload of a model.

        Raises
        ------
        PlanError, SizeLimitError
            When one does not fit the model.

        Examples
        --------
        >>> import modelmeter
        >>> decode = SamePoints(points=[Point(stage="decode", bindings={"B": 8, "T": 512})])
        >>> decode.workload(modelmeter.load("qwen3-8b"), label="qwen3-8b", variant=None).name
        'decode B=8, T=512'
        """
        return workload_at(model, self.points)


def mode_of(variant: str | None) -> str | None:
    """Return the mode of pages that a variant is named after, if any.

    Examples
    --------
    >>> mode_of("gundam-eager"), mode_of("bf16"), mode_of(None)
    ('Gundam', None, None)
    """
    first = (variant or "").partition("-")[0]
    return next((mode for mode in MODES if mode.lower() == first), None)


def _differing(variant: Mapping[str, str], facts: Mapping[str, object]) -> Sequence[str]:
    return [
        f"{name} {facts[name]}, not {value}"
        for name, value in sorted(variant.items())
        if name in facts and str(facts[name]) != value
    ]
