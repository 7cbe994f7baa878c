"""The figures of a call graph's nodes: amounts at a workload and FLOPs as expressions, own and inclusive."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from dsocr_graph.emit.predicted import has_interval
from modelmeter.categories import Category
from modelmeter.costs import Amount, Number, Time
from modelmeter.model import AnalyticModel
from modelmeter.reports import Report

Value = str | int | float | bool
"""What an attribute of a graph file may be."""


class Figures:
    """The figures of modules and of their categories, rolled up once.

    Parameters
    ----------
    model : AnalyticModel
        The compiled model.
    report : Report or None
        The model at a workload; without one there are no amounts.
    """

    def __init__(self, model: AnalyticModel, report: Report | None) -> None:
        self.stages = [stage.name for stage in model.stages]
        self._report = report
        self._calls: Counter[tuple[str, Category, str]] = Counter()
        self._own: dict[tuple[str, Category, str], Counter[str]] = {}
        for leaf in model.leaves:
            key = (leaf.module, leaf.category, leaf.stage)
            self._calls[key] += leaf.calls
            flops = self._own.setdefault(key, Counter())
            flops[leaf.cost.matmul_flops.text] += leaf.calls
            flops[leaf.cost.vector_flops.text] += leaf.calls
        for free in model.free:
            self._calls[free.module, Category.HOST, free.stage] += free.calls
        self._below: dict[tuple[str, str], Counter[str]] = {}
        for (module, _, stage), flops in self._own.items():
            self._below.setdefault((module, stage), Counter()).update(flops)
        self.parameters = {node.id: node.parameters for node in model.modules}
        self._categories: dict[str, dict[Category, Amount]] = {}  # inclusive
        if report is not None:
            self._categories = {module: dict(own) for module, own in report.total.module_categories.items()}
        for node in reversed(model.modules):  # children before parents
            if node.parent is None:
                continue
            self.parameters[node.parent] += self.parameters[node.id]
            for stage in self.stages:
                if (node.id, stage) in self._below:
                    above = self._below.setdefault((node.parent, stage), Counter())
                    above.update(self._below[node.id, stage])
            above = self._categories.setdefault(node.parent, {})
            for category, amount in self._categories.get(node.id, {}).items():
                above[category] = above[category] + amount if category in above else amount

    def own_categories(self, module: str) -> list[Category]:
        """Return the categories of what a module runs itself; its views only where they are given a time."""
        found = {category for owner, category, _ in self._own if owner == module}
        if self._report is not None:
            found |= self._report.total.module_categories.get(module, {}).keys()
        return [category for category in Category if category in found]

    def calls(self, module: str, category: Category, stage: str) -> int:
        """Return operator calls in one run of a stage."""
        return self._calls[module, category, stage]

    def flops_text(self, module: str, stage: str) -> str:
        """Return the inclusive FLOPs of one run of a stage."""
        return sum_texts(self._below.get((module, stage), {}))

    def own_flops_text(self, module: str, category: Category, stage: str) -> str:
        """Return the FLOPs of one category of a module's own operators in one run of a stage."""
        return sum_texts(self._own.get((module, category, stage), {}))

    def module(self, module: str) -> dict[str, Value]:
        """Return the amounts of a module at the workload; nothing without a report."""
        if self._report is None:
            return {}
        found = self._report.total.modules.get(module)
        amounts = self._amounts(
            found.own if found else Amount(), found.inclusive if found else Amount(), ran=found is not None
        )
        categories = self._categories.get(module, {})
        for name in ("flops", "bytes"):
            amounts[f"categories_{name}"] = _split_text(
                {category: _number(amount, name) for category, amount in categories.items()}
            )
        return amounts

    def category(self, module: str, category: Category) -> dict[str, Value]:
        """Return the amounts of one category of a module's own operators; nothing without a report."""
        if self._report is None:
            return {}
        found = self._report.total.module_categories.get(module, {}).get(category)
        amounts = self._amounts(found or Amount(), found or Amount(), ran=found is not None)
        return {**amounts, "categories_flops": "", "categories_bytes": ""}

    def _amounts(self, own: Amount, inclusive: Amount, *, ran: bool) -> dict[str, Value]:
        assert self._report is not None
        whole = self._report.total.total
        names = ("flops", "bytes", "fused_bytes", *(("seconds",) if whole.time is not None else ()))
        result: dict[str, Value] = {"ran": ran}
        for name in names:
            result[f"{name}_self"] = _typed(name, _number(own, name))
            result[f"{name}_inclusive"] = _typed(name, _number(inclusive, name))
            result[f"share_{name}"] = _number(inclusive, name) / (_number(whole, name) or 1)
        if has_interval(whole):
            for time, where in ((own.time or Time(), "self"), (inclusive.time or Time(), "inclusive")):
                result[f"seconds_p10_{where}"] = time.p10 or 0.0
                result[f"seconds_p90_{where}"] = time.p90 or 0.0
                result[f"bound_by_{where}"] = time.bound_by if time.seconds else ""
        return result


def percent(share: float) -> str:
    """Write a share so that only nothing is written as nothing.

    Examples
    --------
    >>> percent(0.1234), percent(0.0001), percent(0.0)
    ('12.3 %', '<0.1 %', '0 %')
    """
    if 0 < share < 0.0005:
        return "<0.1 %"
    return f"{100 * share:.1f} %" if share else "0 %"


def _number(amount: Amount, name: str) -> Number:
    if name == "seconds":
        return 0.0 if amount.time is None else amount.time.seconds
    return amount.cost.flops if name == "flops" else getattr(amount.cost, name)


def _typed(name: str, value: Number) -> Number:
    """Return FLOPs as they are, whole; everything else as a float: expectations are."""
    return value if name == "flops" else float(value)


def _split_text(parts: Mapping[Category, Number]) -> str:
    """Write shares, largest first, such as "linear 93.1 %, attention 6.9 %"."""
    whole = sum(parts.values()) or 1
    ordered = sorted(parts.items(), key=lambda item: (-item[1], item[0].value))
    return ", ".join(f"{category.value} {percent(value / whole)}" for category, value in ordered if value)


def sum_texts(counts: Mapping[str, int]) -> str:
    """Add expressions in their text form, each some times; like terms are joined.

    The texts are expanded sums, as `modelmeter.dim_text.to_text` writes them, so terms add without building
    expressions: a warm run writes hundreds of these.

    Examples
    --------
    >>> sum_texts({"2*B*S": 3, "B*S + 7": 1, "5 - B": 2})
    '-2*B + 7*B*S + 17'
    """
    terms: Counter[str] = Counter()
    for text, count in counts.items():
        for coefficient, factors in _terms(text):
            terms[factors] += coefficient * count
    written = ""
    for factors, coefficient in sorted(terms.items(), key=lambda item: (item[0] == "", item[0])):
        if coefficient == 0:
            continue
        sign = "-" if coefficient < 0 else "+"
        size = "" if abs(coefficient) == 1 and factors else str(abs(coefficient))
        term = f"{size}*{factors}" if size and factors else size or factors
        written += f" {sign} {term}" if written else f"{'-' if coefficient < 0 else ''}{term}"
    return written or "0"


def _terms(text: str) -> Iterator[tuple[int, str]]:
    """Yield coefficient and factors of each term of an expanded sum; a number has no factors."""
    depth, start, sign = 0, 0, 1
    pieces: list[tuple[int, str]] = []
    for match in re.finditer(r"[()]| ([+-]) ", text):
        if match[1] is None:
            depth += 1 if match[0] == "(" else -1
        elif depth == 0:
            pieces.append((sign, text[start : match.start()]))
            start, sign = match.end(), 1 if match[1] == "+" else -1
    pieces.append((sign, text[start:]))
    for direction, piece in pieces:
        if piece.startswith("-"):
            direction, piece = -direction, piece[1:]  # noqa: PLW2901 - the sign moves from one to the other
        whole = re.fullmatch(r"(\d+)(?:\*(?!\*)(.+))?", piece)
        yield (direction * int(whole[1]), whole[2] or "") if whole else (direction, piece)
