"""Lengths of prompts and answers: points by hand, moments of distributions, impossible ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import modelmeter
from modelmeter.evaluate import evaluate_stage
from modelmeter.lengths import POINTS, Lengths, LengthsError, MissingLengthsError, UnknownLengthsError, parse_lengths


def test_one_number_is_every_document() -> None:
    """A value is a distribution of one point."""
    assert parse_lengths("512").points == ((512, 1.0),)


def test_a_repeated_number_weighs_more() -> None:
    """Three of four documents have 100 tokens."""
    assert parse_lengths("100,200,100,100").points == ((100, 0.75), (200, 0.25))


def test_uniform_points_are_the_middles_of_equal_parts() -> None:
    """16 parts of 0 to 1,600 above 100: 150, 250, ..., 1,650, each a sixteenth."""
    assert parse_lengths("uniform:100:1700").points == tuple((150 + 100 * part, 1 / 16) for part in range(POINTS))


@given(mean=st.integers(200, 5000), share=st.floats(0.01, 0.25))
def test_distributions_keep_their_mean(mean: int, share: float) -> None:
    """Quantile points lose little of the tails: the mean of both laws within 1 %, rounding included."""
    for kind in ("normal", "lognormal"):
        lengths = parse_lengths(f"{kind}:{mean}:{share * mean}")
        assert lengths.mean(float) == pytest.approx(mean, rel=0.01)


def test_a_length_is_at_least_one_token() -> None:
    """A normal law of 20 and 11 has its lowest of 16 quantiles at 20 - 1.86*11 < 0, which no document has."""
    assert min(tokens for tokens, _ in parse_lengths("normal:20:11").points) == 1


def test_a_figure_is_averaged_over_lengths_not_taken_at_their_mean() -> None:
    """Attention grows with S**2, so two prompts of 100 and 300 cost more than two of 200."""
    model = modelmeter.load("deepseek-ocr")

    def flops(tokens: int) -> float:
        return evaluate_stage(model, "prefill", B=1, S=tokens, N=90).total.cost.matmul_flops

    assert parse_lengths("100,300").mean(flops) == (flops(100) + flops(300)) / 2 > flops(200)


def test_a_histogram_is_read_from_a_file(tmp_path: Path) -> None:
    """Three documents of 256 tokens and one of 512."""
    (tmp_path / "lengths.json").write_text('{"256": 3, "512": 1}')
    assert parse_lengths(f"histogram:{tmp_path / 'lengths.json'}").points == ((256, 0.75), (512, 0.25))


@pytest.mark.parametrize("text", ["[]", "{}", '{"256": 0}', '{"256": 1.5}', '{"many": 1}', '{"0": 1}', "{"])
def test_an_impossible_histogram_is_refused(tmp_path: Path, text: str) -> None:
    """Lengths are whole numbers from 1 up, with counts from 1 up."""
    (tmp_path / "lengths.json").write_text(text)
    with pytest.raises(LengthsError, match=r"lengths|length"):
        parse_lengths(f"histogram:{tmp_path / 'lengths.json'}")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("many", LengthsError, "'many' in the lengths 'many' is no whole number"),
        ("0", LengthsError, "from 1 up"),
        ("gamma:1:2", UnknownLengthsError, "Known: a number, histogram, lognormal, normal, uniform"),
        ("uniform:5", LengthsError, "need two numbers"),
        ("uniform:300:100", LengthsError, "end before they begin"),
        ("normal:nan:1", LengthsError, "finite numbers"),
        ("lognormal:0:1", LengthsError, "the first from 1 up"),
        ("normal:5:100", LengthsError, "48% of the lengths 'normal:5:100' lie below one token, over 5%"),
        ("histogram:none.json", MissingLengthsError, "cannot read the lengths none.json"),
    ],
)
def test_impossible_lengths_name_the_limit(text: str, error: type[Exception], message: str) -> None:
    """Each mistake gets one message with what is possible."""
    with pytest.raises(error, match=message):
        parse_lengths(text)


def test_weights_add_up_to_one() -> None:
    """Shares of documents that add up to more or less are none."""
    with pytest.raises(LengthsError, match=r"add up to 0\.9"):
        Lengths(points=((1, 0.5), (2, 0.4)))


def test_equally_likely_lengths_are_exact_where_they_can_be() -> None:
    """Three of four documents have 100 tokens; a distribution has its 16 points."""
    assert parse_lengths("100,200,100,100").equally_likely == (100, 100, 100, 200)
    assert parse_lengths("uniform:100:1700").equally_likely == tuple(range(150, 1700, 100))


def test_quantiles_stand_for_many_lengths() -> None:
    """Of 1,000 documents 999 have 10 tokens: too many to repeat, and no sixteenth of them has 90."""
    rare = Lengths(points=((10, 0.999), (90, 0.001)))
    assert rare.equally_likely == (10,) * POINTS
    halves = Lengths(points=((90, 0.501), (10, 0.499)))
    assert halves.equally_likely == (10,) * 8 + (90,) * 8


@given(st.lists(st.integers(1, 8192), min_size=1, max_size=64))
def test_equally_likely_lengths_keep_the_mean_of_a_list(tokens: list[int]) -> None:
    """However they repeat."""
    found = Lengths.equally(tokens).equally_likely
    assert sum(found) / len(found) == pytest.approx(sum(tokens) / len(tokens))


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("normal:500:80", "500 in the mean"),
        ("lognormal:500:500", "482.4 in the mean where 500 was asked"),
    ],
)
def test_a_mean_that_was_not_kept_is_said(text: str, end: str) -> None:
    """Beyond the last of 16 quantiles a lognormal law still has weight; a normal one has as much on both sides."""
    assert parse_lengths(text).statement.endswith(end)


def test_quantiles_of_a_list_say_its_mean() -> None:
    """0.999*10 + 0.001*90 = 10.08."""
    assert Lengths(points=((10, 0.999), (90, 0.001))).statement.endswith("10 in the mean where 10.08 was asked")
