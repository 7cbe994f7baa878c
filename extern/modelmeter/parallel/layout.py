"""Layout: how many devices share a model, and in which ways."""

from __future__ import annotations

from attrs import Attribute, field, frozen

from modelmeter.parallel.errors import LayoutError

DECODER_DEGREES = ("tensor", "expert", "pipeline", "data", "micro_batches")
"""The degrees of a layout that share a decoder."""


def divisors(number: int) -> tuple[int, ...]:
    """Return the divisors of a number, smallest first.

    Examples
    --------
    >>> divisors(12)
    (1, 2, 3, 4, 6, 12)
    """
    return tuple(candidate for candidate in range(1, number + 1) if number % candidate == 0)


def _positive(_layout: object, attribute: Attribute[int], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LayoutError(f"{attribute.name} is {value!r}; a degree is a whole number from 1 up, and 1 divides nothing")


@frozen(kw_only=True)
class Layout:
    """Degrees of parallelism; 1 everywhere is one device.

    The decoder's devices are a grid of tensor x data x pipeline. Experts are spread over `expert` devices of one
    pipeline stage: over the tensor ranks of a replica first, then over replicas. With fewer expert ranks than tensor
    ranks, the ranks that are left divide each expert.

    Attributes
    ----------
    tensor : int
        Devices that share each layer.
    expert : int
        Devices that share the experts of each layer; 1 leaves them to the tensor ranks.
    pipeline : int
        Groups of layers, each on devices of its own.
    data : int
        Replicas of the decoder, each with an equal share of the batch.
    vision_data : int
        Devices that encode pages or sound, each with an equal share of the documents.
    micro_batches : int
        Parts into which a replica's batch is cut for a pipeline in prefill.
    link : str or None
        Name of the link between the devices; the device's fastest when None.

    Raises
    ------
    LayoutError
        When a degree is below 1, or experts cannot be spread over the grid.

    Examples
    --------
    >>> layout = Layout(tensor=2, expert=8, pipeline=2, data=4)
    >>> layout.devices, layout.expert_replicas, layout.expert_width
    (16, 4, 1)
    """

    tensor: int = field(default=1, validator=_positive)
    expert: int = field(default=1, validator=_positive)
    pipeline: int = field(default=1, validator=_positive)
    data: int = field(default=1, validator=_positive)
    vision_data: int = field(default=1, validator=_positive)
    micro_batches: int = field(default=1, validator=_positive)
    link: str | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse experts that the grid has no place for."""
        allowed = [degree for degree in divisors(self.stage_devices) if _nested(degree, self.tensor)]
        if self.expert not in allowed:
            raise LayoutError(
                f"expert={self.expert} does not fit tensor={self.tensor} and data={self.data}: experts are spread over "
                f"whole groups of tensor ranks, or within one; allowed are {', '.join(map(str, allowed))}"
            )

    @property
    def stage_devices(self) -> int:
        """Devices that hold one pipeline stage."""
        return self.tensor * self.data

    @property
    def devices(self) -> int:
        """All devices; those that encode pages hold the decoder as well, as far as there are."""
        return max(self.stage_devices * self.pipeline, self.vision_data)

    @property
    def cuts_layers(self) -> bool:
        """Whether devices share what one replica of the decoder has."""
        return max(self.tensor, self.expert, self.pipeline) > 1

    @property
    def expert_width(self) -> int:
        """Tensor ranks that divide one expert."""
        return max(1, self.tensor // self.expert)

    @property
    def expert_replicas(self) -> int:
        """Replicas whose tokens meet the same experts."""
        return max(1, self.expert // self.tensor)

    @property
    def bubble(self) -> float:
        """Share of a prefill for which a device of an even pipeline waits: (p - 1) / (m + p - 1).

        Source: Narayanan et al. 2021, "Efficient large-scale language model training on GPU clusters using
        Megatron-LM", section 2.2.
        """
        return (self.pipeline - 1) / (self.micro_batches + self.pipeline - 1)


def _nested(expert: int, tensor: int) -> bool:
    return expert % tensor == 0 or tensor % expert == 0
