"""Lengths: how many tokens a prompt or an answer has, as one number, several, or a distribution by its quantiles."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any, Self, cast

from attrs import evolve, field, frozen

from modelmeter.errors import ModelMeterError, UnknownNameError

POINTS = 16
"""Quantiles that stand for a distribution, each with the same weight."""

MOST_CLIPPED = 0.05
"""Share of a normal distribution that may lie below one token, where it is clipped to one."""

MOST_DOCUMENTS = 64
"""Of a workload that has each length as often as it is likely; with more, quantiles stand for the lengths."""


class LengthsError(ModelMeterError, ValueError):
    """Lengths that cannot be."""


class UnknownLengthsError(UnknownNameError):
    """A kind of distribution that does not exist."""


class MissingLengthsError(LengthsError, FileNotFoundError):
    """A histogram of lengths that cannot be read at all."""


def _checked_points(_owner: object, _attribute: object, points: tuple[tuple[int, float], ...]) -> None:
    if not points:
        raise LengthsError("there is no length; give at least one")
    for tokens, weight in points:
        if type(tokens) is not int or tokens < 1:
            raise LengthsError(f"a length is {tokens!r}; it must be a whole number of tokens from 1 up")
        if not 0 < weight <= 1:
            raise LengthsError(f"the length {tokens} has weight {weight!r}; weights are above 0 and add up to 1")
    whole = math.fsum(weight for _, weight in points)
    if not math.isclose(whole, 1, rel_tol=1e-9):
        raise LengthsError(f"the weights of the lengths add up to {whole:g}, not to 1")


@frozen(kw_only=True)
class Lengths:
    """Numbers of tokens, each with the share of documents that have it.

    A continuous distribution is stood for by the quantiles (i + 1/2) / n of n equal parts, rounded to whole tokens and
    at least 1: the same points at every run, with nothing drawn. They leave out what lies beyond the outer quantiles,
    so the mean of a law with a long tail falls short; `statement` says by how much. Source: the composite midpoint rule
    in the distribution's probability.

    Examples
    --------
    >>> answers = parse_lengths("uniform:100:300")
    >>> round(answers.mean(float)), round(answers.mean(lambda tokens: tokens**2) ** 0.5)
    (200, 208)
    """

    points: tuple[tuple[int, float], ...] = field(validator=_checked_points)  # tokens and share of documents
    asked_mean: float | None = None  # tokens, of the distribution that the points stand for

    @classmethod
    def equally(cls, tokens: list[int]) -> Self:
        """Return lengths that as many documents have each; repeated ones count as often."""
        counts: dict[int, int] = {}
        for each in tokens:
            counts[each] = counts.get(each, 0) + 1
        return cls(points=tuple((each, count / len(tokens)) for each, count in sorted(counts.items())))

    def mean(self, figure: Callable[[int], float]) -> float:
        """Return the mean of a figure of a document over its lengths, such as the FLOPs of a prefill of S tokens."""
        return math.fsum(weight * figure(tokens) for tokens, weight in self.points)

    @property
    def equally_likely(self) -> tuple[int, ...]:
        """Lengths that as many documents have each, so that a workload of one document of each has their mean.

        These very ones, repeated by their weights, where so few documents make those weights (`MOST_DOCUMENTS`); else
        `POINTS` quantiles, as for a distribution.

        Examples
        --------
        >>> parse_lengths("256,512,256").equally_likely
        (256, 256, 512)
        """
        for documents in range(1, MOST_DOCUMENTS + 1):
            shares = [(tokens, weight * documents) for tokens, weight in self.points]
            if all(math.isclose(share, round(share)) for _, share in shares):
                return tuple(tokens for tokens, share in shares for _ in range(round(share)))
        return tuple(self._quantile((index + 0.5) / POINTS) for index in range(POINTS))

    def _quantile(self, share: float) -> int:
        ordered = sorted(self.points)
        upto = itertools.accumulate(weight for _, weight in ordered)
        return next(tokens for (tokens, _), reached in zip(ordered, upto, strict=True) if reached >= share)

    @property
    def statement(self) -> str:
        """What a workload of these lengths runs, in words.

        Examples
        --------
        >>> parse_lengths("100,300").statement
        '2 equally likely lengths from 100 to 300, 200 in the mean'
        >>> parse_lengths("lognormal:500:500").statement
        '16 equally likely lengths from 75 to 1,667, 482.4 in the mean where 500 was asked'
        """
        lengths = self.equally_likely
        mean = f"{sum(lengths) / len(lengths):,.4g}"
        asked = f"{self.mean(float) if self.asked_mean is None else self.asked_mean:,.4g}"
        return (
            f"{len(lengths)} equally likely lengths from {min(lengths):,} to {max(lengths):,}, {mean} in the mean"
            f"{'' if asked == mean else f' where {asked} was asked'}"
        )


def parse_lengths(text: str) -> Lengths:
    """Return the lengths of a text.

    Parameters
    ----------
    text : str
        A number, numbers with commas, ``uniform:LOW:HIGH``, ``normal:MEAN:SD`` (at most `MOST_CLIPPED` of it below one
        token), ``lognormal:MEAN:SD`` (of the lengths themselves, not of their logarithms) or ``histogram:FILE``: JSON,
        tokens to counts, ``{"256": 3, "512": 1}``.

    Raises
    ------
    UnknownLengthsError
        When it is of another kind.
    LengthsError
        When the numbers cannot be.

    Examples
    --------
    >>> parse_lengths("256,512").points
    ((256, 0.5), (512, 0.5))
    >>> parse_lengths("normal:500:0").points
    ((500, 1.0),)
    """
    kind, colon, rest = text.partition(":")
    if not colon:
        return Lengths.equally([_whole(part, text) for part in text.split(",")])
    if kind == "histogram":
        return read_lengths(rest)
    if kind not in _QUANTILES:
        raise UnknownLengthsError("kind of lengths", kind, [*_QUANTILES, "histogram", "a number"])
    first, second = _two_numbers(rest, text)
    quantile = _QUANTILES[kind](first, second, text)
    quantiles = Lengths.equally([max(1, round(quantile((index + 0.5) / POINTS))) for index in range(POINTS)])
    return evolve(quantiles, asked_mean=(first + second) / 2 if kind == "uniform" else first)


def _whole(part: str, text: str) -> int:
    try:
        return int(part)
    except ValueError:
        raise LengthsError(f"{part!r} in the lengths {text!r} is no whole number of tokens") from None


def _two_numbers(rest: str, text: str) -> tuple[float, float]:
    try:
        first, second = map(float, rest.split(":"))
    except ValueError:
        raise LengthsError(f"the lengths {text!r} need two numbers, as in uniform:100:300 or normal:500:80") from None
    if not (math.isfinite(first) and math.isfinite(second)) or first < 1 or second < 0:
        raise LengthsError(f"the lengths {text!r} need finite numbers, the first from 1 up and the second from 0 up")
    return first, second


Quantile = Callable[[float], float]


def _uniform(low: float, high: float, text: str) -> Quantile:
    if high < low:
        raise LengthsError(f"the lengths {text!r} end before they begin; give the lower end first")
    return lambda share: low + share * (high - low)


def _normal(mean: float, deviation: float, text: str) -> Quantile:
    clipped = NormalDist(mean, deviation).cdf(0.5) if deviation else 0.0  # what would round to less than one token
    if clipped > MOST_CLIPPED:
        raise LengthsError(
            f"{clipped:.0%} of the lengths {text!r} lie below one token, over {MOST_CLIPPED:.0%}, so their mean would "
            f"not be {mean:g}; give a smaller deviation, or a lognormal, which has no such lengths"
        )
    return lambda share: mean + deviation * NormalDist().inv_cdf(share)


def _lognormal(mean: float, deviation: float, _text: str) -> Quantile:
    variance = math.log1p((deviation / mean) ** 2)  # of the logarithm
    return lambda share: mean * math.exp(math.sqrt(variance) * NormalDist().inv_cdf(share) - variance / 2)


_QUANTILES: dict[str, Callable[[float, float, str], Quantile]] = {
    "uniform": _uniform,
    "normal": _normal,
    "lognormal": _lognormal,
}


def read_lengths(path: str | Path) -> Lengths:
    """Read how many documents have each length: JSON, ``{"256": 3, "512": 1}``.

    Raises
    ------
    MissingLengthsError
        When the file cannot be read.
    LengthsError
        When it is no such document.
    """
    try:
        document: object = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise MissingLengthsError(f"cannot read the lengths {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise LengthsError(f"the lengths {path} are no JSON: {error}") from error
    if not isinstance(document, dict) or not document:
        raise LengthsError(f'the lengths {path} must map tokens to counts, as in {{"256": 3, "512": 1}}')
    counts = cast("dict[str, Any]", document)
    wrong = [count for count in counts.values() if type(count) is not int or count < 1]
    if wrong:
        raise LengthsError(f"the lengths {path} have the count {wrong[0]!r}; counts are whole numbers from 1 up")
    whole = sum(counts.values())
    return Lengths(points=tuple((_whole(tokens, str(path)), count / whole) for tokens, count in counts.items()))
