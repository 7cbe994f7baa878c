"""Run steps: from what one side runs to what another runs, one cause after the other: executions, then each size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

from attrs import evolve, frozen

from modelmeter.compare.setup import ItemRun, Setup
from modelmeter.compare.side import mean_size
from modelmeter.compare.words import arrow
from modelmeter.workload import StageRun


@frozen(kw_only=True)
class RunStep:
    """A setup after one more change of what runs, and that change in words."""

    text: str
    setup: Setup


@frozen(kw_only=True)
class _Part:
    """Executions of a stage on their way from a run of one side to a run of the other."""

    item: str
    executions: Fraction
    run: StageRun
    target: StageRun

    @property
    def weighted(self) -> ItemRun:
        """The executions as a share of the run."""
        whole = self.executions == self.run.count
        return ItemRun(item=self.item, run=self.run, weight=1 if whole else float(self.executions / self.run.count))

    def with_size(self, dim: str) -> _Part:
        """Return the executions at the target's size of a dim; one that the target does not name stays."""
        if dim not in self.target.bindings:
            return self
        run = evolve(self.run, bindings={**self.run.bindings, dim: self.target.bindings[dim]})
        if dim in {run.sweep, self.target.sweep}:
            run = evolve(run, count=self.target.count, sweep=self.target.sweep)
        return evolve(self, run=run)


def run_steps(old: Setup, new: Setup) -> Iterator[RunStep]:
    """Yield the first setup with more and more of what the second runs, in the stages that both models have.

    Runs that continue one another item by item, such as more steps of the same pages, change their counts first.
    Elsewhere, whatever the items are called, the executions of a stage are scaled at the sizes that they have, and
    then each size changes, small ones to small ones.

    Sizes that the second model does not ask for stay as they are. A stage stays as it is where it would run items that
    the first does not, without a size for them.

    Parameters
    ----------
    old, new : Setup

    Examples
    --------
    >>> import modelmeter
    >>> from modelmeter.expert_counts import uniform_routing
    >>> def decode(count, cached):
    ...     run = StageRun(stage="decode", count=count, bindings={"B": 1, "T": cached}, sweep="T")
    ...     return Setup(
    ...         model=modelmeter.load("qwen3-8b"),
    ...         runs=(ItemRun(item="page", run=run),),
    ...         routing=uniform_routing,
    ...         routing_name="uniform_routing",
    ...         clock=None,
    ...     )
    >>> [step.text for step in run_steps(decode(3, 10), decode(4, 20))]
    ['decode executions 3 → 4', 'decode mean T 11.5 → 21.5']
    """
    now = old
    for stage in old.model.stages:
        if stage.name not in {each.name for each in new.model.stages}:
            continue
        a, b = old.stages.get(stage.name, []), new.stages.get(stage.name, [])
        if [each.run for each in a] == [each.run for each in b]:
            continue
        if not a and any(set(stage.dims) - each.run.bindings.keys() for each in b):
            continue
        parts = _parts(a, b)
        before, after = (sum(each.run.count for each in runs) for runs in (a, b))
        if before != after:
            now = _with_runs(now, stage.name, parts)
            yield RunStep(text=f"{stage.name} executions {arrow(before, after)}", setup=now)
        for dim in stage.dims:
            changed = [part.with_size(dim) for part in parts]
            if changed != parts:
                now = _with_runs(now, stage.name, changed)
                yield RunStep(text=_sizes(stage.name, dim, parts, changed), setup=now)
            parts = changed


# --- which executions become which


def _parts(a: Sequence[ItemRun], b: Sequence[ItemRun]) -> list[_Part]:
    """Return as many executions as there are after, at the sizes before where there were any."""
    if not a:
        return [_part(each, each.run, each) for each in b]
    pairs = _paired(a, b)
    if not _continue(pairs):
        return _coupled(a, b)
    return [_part(one, evolve(one.run, count=other.run.count), other) for one, other in pairs]


def _part(of: ItemRun, run: StageRun, target: ItemRun) -> _Part:
    return _Part(item=of.item, executions=Fraction(target.run.count), run=run, target=target.run)


def _paired(a: Sequence[ItemRun], b: Sequence[ItemRun]) -> list[tuple[ItemRun, ItemRun]]:
    """Return runs in pairs, those of items of one name first and the rest by their order; none of unequal numbers."""
    if len(a) != len(b):
        return []
    others = [*b]
    pairs: list[tuple[ItemRun, ItemRun]] = []
    rest: list[ItemRun] = []
    for one in a:
        named = next((other for other in others if other.item == one.item), None)
        if named is None:
            rest.append(one)
        else:
            others.remove(named)
            pairs.append((one, named))
    return [*pairs, *zip(rest, others, strict=True)]


def _continue(pairs: Sequence[tuple[ItemRun, ItemRun]]) -> bool:
    """Whether pairs run in the same way and none more often where another runs less often."""
    ways = {(other.run.count > one.run.count) - (other.run.count < one.run.count) for one, other in pairs}
    sweeps = all(one.run.sweep == other.run.sweep or one.run.count == other.run.count for one, other in pairs)
    return bool(pairs) and sweeps and not {1, -1} <= ways


def _coupled(a: Sequence[ItemRun], b: Sequence[ItemRun]) -> list[_Part]:
    """Return the executions before, scaled to the number after, each with a run of about its rank in size as target."""
    before, after = [*sorted(a, key=_rank)], [*sorted(b, key=_rank)]
    scale = Fraction(sum(each.run.count for each in after), sum(each.run.count for each in before))
    parts: list[_Part] = []
    left_before, left_after = Fraction(), Fraction()
    one: ItemRun | None = None
    other: ItemRun | None = None
    while (before or left_before) and (after or left_after):
        if not left_before:
            one = before.pop(0)
            left_before = one.run.count * scale
        if not left_after:
            other = after.pop(0)
            left_after = Fraction(other.run.count)
        assert one is not None
        assert other is not None
        taken = min(left_before, left_after)
        left_before, left_after = left_before - taken, left_after - taken
        parts.append(_Part(item=one.item, executions=taken, run=one.run, target=other.run))
    return parts


def _rank(of: ItemRun) -> list[tuple[str, float]]:
    return [(dim, mean_size(of.run, dim)) for dim in sorted(of.run.bindings)]


# --- the steps


def _with_runs(now: Setup, stage: str, parts: Sequence[_Part]) -> Setup:
    others = [each for each in now.runs if each.run.stage != stage]
    return evolve(now, runs=(*others, *(part.weighted for part in parts)))


def _sizes(stage: str, dim: str, a: Sequence[_Part], b: Sequence[_Part]) -> str:
    (before, one), (after, other) = _mean(dim, a), _mean(dim, b)
    if before == after:
        return f"{stage} {dim} spread otherwise"
    return f"{stage} {'' if one and other else 'mean '}{dim} {arrow(before, after)}"


def _mean(dim: str, parts: Sequence[_Part]) -> tuple[float, bool]:
    """Return the mean of a dim over executions, and whether it is the same in all."""
    held = [part for part in parts if dim in part.run.bindings]
    executions = sum((part.executions for part in held), Fraction())
    summed = sum((part.executions * Fraction(mean_size(part.run, dim)) for part in held), Fraction())
    fixed = len({part.run.bindings[dim] for part in held}) == 1 and all(part.run.sweep != dim for part in held)
    return float(summed / executions), fixed
