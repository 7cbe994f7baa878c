"""NamedModel: a model that can be analysed by name, whatever its code; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol

from attrs import frozen

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dsocr_graph.models.deepseek_ocr.running import RunnableModel
    from dsocr_graph.models.stage_spec import StageSpec
    from dsocr_graph.workloads.profile import Profile
    from modelmeter.dtypes import DType
    from modelmeter.workload import Workload


class ModelVariant(Protocol):
    """What tells captures of one model apart; each kind of model has a record of its own."""

    @property
    def name(self) -> str:
        """A short name, usable in file names."""
        ...

    def facts(self) -> dict[str, str]:
        """Return the variant as text, for reports."""
        ...


@frozen(kw_only=True)
class NamedModel:
    """A model that can be analysed by name.

    Attributes
    ----------
    name, description, source : str
        As reports and `dsocr-graph models` have them.
    variant : callable
        (profile, implementation of attention) to the variant that is captured for them.
    workload : callable
        (profile) to what the model runs for it.
    config : callable
        (variant) to the settings that decide its cost; part of the cache key.
    build : callable
        (variant) to the module without weights and its stages; needs torch.
    load_dtype : DType or None
        Type of all weights while they are loaded, before a cast; None: each in its own.
    limits : mapping of str to int
        The largest size of each dim that has one.
    attention : str
        The implementation of attention that is meant when none is asked for.
    shipped : callable
        (variant) to the name that a package which registers the model with modelmeter would ship it under.
    packages : tuple of str
        Packages beside torch whose versions decide what is captured; part of the cache key and of the provenance.
    runnable : callable or None
        (variant, implementation of experts) to how it runs with weights; needs torch. None: it cannot be measured.
    fit : callable
        (stage, random inputs in order) to inputs that a real run takes, where not any will do; needs torch.
    """

    name: str
    description: str
    source: str
    variant: Callable[[Profile, str], ModelVariant]
    workload: Callable[[Profile], Workload]
    config: Callable[[Any], Mapping[str, object]]  # of the model's own variant
    build: Callable[[Any], tuple[nn.Module, tuple[StageSpec, ...]]]
    load_dtype: DType | None = None
    limits: Mapping[str, int] = {}
    attention: str = "sdpa"
    shipped: Callable[[Any], str] = lambda variant: variant.name
    packages: tuple[str, ...] = ()
    runnable: Callable[[Any, Any], RunnableModel] | None = None
    fit: Callable[[str, Sequence[Tensor]], list[Tensor]] = lambda stage, inputs: [*inputs]

    @property
    def versions(self) -> Mapping[str, str]:
        """The installed version of each of `packages`."""
        return {package: metadata.version(package) for package in self.packages}
