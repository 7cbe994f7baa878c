"""Standard sizes: the points that calibrations are planned for, by the kind of machine; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from dsocr_graph.errors import PlanError
from dsocr_graph.timing.plan import Bindings, Point
from dsocr_graph.workloads.tiling import GRIDS
from modelmeter.model import AnalyticModel

Lattice = tuple[Bindings, ...]
"""Sizes of some dims that go together, such as batch and prompt."""


def standard_points(model: AnalyticModel, lattices: Sequence[Lattice]) -> tuple[Point, ...]:
    """Return the points that a calibration of a model is planned for.

    A stage without dims runs as it is; another takes the sizes of the first lattice that has all of its dims.

    Parameters
    ----------
    model : AnalyticModel
        The compiled model.
    lattices : sequence of Lattice
        Such as those of `STANDARD_LATTICES`.

    Raises
    ------
    PlanError
        When no lattice has the dims of a stage.

    Examples
    --------
    >>> import modelmeter
    >>> len(standard_points(modelmeter.load("deepseek-ocr"), STANDARD_LATTICES["cpu"])) > 50
    True
    """
    points: list[Point] = []
    for stage in model.stages:
        lattice = next((each for each in lattices if set(stage.dims) <= each[0].keys()), None)
        if lattice is None:
            known = "; ".join(", ".join(each[0]) for each in lattices)
            raise PlanError(
                f"stage {stage.name!r} of {model.name} has the dims {', '.join(stage.dims)}, for which there are no "
                f"standard sizes (there are for {known}); give its points one by one, such as --points "
                f"{stage.name}:{','.join(f'{name}=SIZE' for name in stage.dims)}"
            )
        # Sizes that differ in dims of other stages only are one point of this one.
        distinct = {tuple((name, sizes[name]) for name in stage.dims): None for sizes in lattice}
        points += [Point(stage=stage.name, bindings=dict(sizes)) for sizes in distinct]
    return tuple(points)


_TEXT_TOKENS = 10  # of a prompt beside its image, as in the standard workload
_SMALL_BATCHES = (1, 2, 3, 4, 6, 8)
_CACHED_TOKENS = (64, 110, 188, 322, 553, 948, 1626, 2788, 4779, 8191)  # every x1.71
_SHORT_PROMPTS = (64, 76, 91, 108, 128, 153, 182, 217, 258, 307, 365)  # every x1.19
_LONG_PROMPTS = (434, 517, 615, 732, 871, 1037, 1234, 1468)  # every x1.19; 1,283 tokens are the longest page


def _crops(counts: Sequence[int]) -> Lattice:
    """Every grid of some numbers of crops."""
    return tuple({"V": columns * rows, "H": rows} for columns, rows in GRIDS if columns * rows in counts)


def _prompts(prompts: Sequence[tuple[int, int]]) -> Lattice:
    """Batches and lengths, with an image in each prompt."""
    return tuple({"B": batch, "S": length, "N": length - _TEXT_TOKENS} for batch, length in prompts)


def _steps(batches: Sequence[int], most_cached: int) -> Lattice:
    """Batches with cached tokens, as long as the cache of the batch is not too large."""
    return tuple(
        {"B": batch, "T": cached} for batch in batches for cached in _CACHED_TOKENS if batch * cached <= most_cached
    )


STANDARD_LATTICES: Mapping[str, tuple[Lattice, ...]] = MappingProxyType(
    {
        # A third of the time goes into the output head, 0.3 GFLOP per position: few large prompts. What costs hardly
        # anything, the grids of crops and the steps of decode, is as dense as on a GPU.
        "cpu": (
            _crops((2, 6, 9)),
            _prompts(
                [
                    *((1, length) for length in (*_SHORT_PROMPTS, 517, 732, 1037, 1300)),
                    *((2, length) for length in (64, 217)),
                    *((4, length) for length in (64, 128)),
                    (8, 64),
                ]
            ),
            _steps((*_SMALL_BATCHES, 12, 16, 24, 32), 2**16),
        ),
        "cuda": (
            _crops(range(2, 10)),
            _prompts(
                [
                    *((1, length) for length in (*_SHORT_PROMPTS, *_LONG_PROMPTS)),
                    *((batch, length) for batch in (2, 4, 8) for length in (64, 128, 258, 517)),
                ]
            ),
            _steps((*_SMALL_BATCHES, 12, 16, 24, 32), 2**18),
        ),
    }
)
"""Sizes by the kind of machine; interpolation in between is linear in the logarithms."""
