"""Family: what models that run in the same stages have in common; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

    from dsocr_graph.models.from_transformers.variant import TransformersVariant
    from dsocr_graph.models.stage_spec import StageSpec
    from dsocr_graph.workloads.request import Request
    from modelmeter.workload import WorkloadItem


@frozen(kw_only=True)
class Family:
    """Models that run in the same stages.

    Attributes
    ----------
    mappings : tuple of str
        The mappings of transformers' `modeling_auto` whose classes form the family, such as
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"; what comes first is built where a configuration names no class.
    main_input : str
        `main_input_name` of those classes, such as "input_ids".
    stages : callable
        (module on `meta`, transformers config, variant) to the stages to capture; needs torch.
    runs : callable
        (settings of the config file, with the positions that its class has by default; request) to what runs. Needs
        neither torch nor transformers, so that a model that is compiled already is evaluated without them.
    takes : callable
        (transformers config, name of a class of the mappings) to whether the family runs that class; all by default.
    fit : callable
        (settings, stage, random inputs in order) to inputs that a real run takes, where not any will do; needs torch.
    """

    name: str
    description: str
    mappings: tuple[str, ...]
    main_input: str
    stages: Callable[[PreTrainedModel, PreTrainedConfig, TransformersVariant], tuple[StageSpec, ...]]
    runs: Callable[[Mapping[str, Any], Request], WorkloadItem]
    takes: Callable[[PreTrainedConfig, str], bool] = lambda config, class_name: True
    fit: Callable[[Mapping[str, Any], str, Sequence[Tensor]], list[Tensor]] = lambda settings, stage, inputs: [*inputs]
