"""The subcommand `plan`: devices for a target, whether a batch fits, and questions that have no answer."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import modelmeter
from dsocr_graph import cli_plan, compiling
from dsocr_graph.errors import OptionError, UnknownModelError
from dsocr_graph.models.registry import NamedModel, Variant
from dsocr_graph.workloads import WorkloadError
from dsocr_graph.workloads.errors import ContextTooLongError, CropGridError, UnknownModeError
from modelmeter.capacity import CapacityError, DoesNotFitError, MissingPriceError, NothingMeetsTargetsError
from modelmeter.errors import UnknownDeviceError
from modelmeter.lengths import LengthsError
from modelmeter.model import AnalyticModel
from modelmeter.routing import RoutingError
from modelmeter.whatif import UnknownChoiceError

Ask = Callable[..., list[str]]


def _options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli_plan.add_parser(parser.add_subparsers(required=True))
    return parser.parse_args(["plan", *words])


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Return a function that runs `plan` on short pages and gives back the lines that it prints."""

    def run(*words: str) -> list[str]:
        mode = () if "--model" in words else ("--mode", "Tiny")  # other models have none
        options = _options(*mode, "--new-tokens", "20", *words)
        assert options.run(options) == 0
        return capsys.readouterr().out.splitlines()

    return run


def test_a_plan_is_a_table_with_its_assumptions(ask: Ask) -> None:
    """One row per device, the fewest devices first, then what it rests on."""
    lines = ask("--pages-per-day", "1e7", "--device", "l4,h200", "--batch", "1,8")
    assert lines[0] == "4 candidates meet the targets, 0 do not; the best batch of each device, fewest devices first"
    assert lines[1].split()[:3] == ["devices", "device", "batch"]
    assert [line.split()[1] for line in lines[2:4]] == ["h200", "l4"]
    assert lines[4] == "assumptions"
    assert "a bound that no run reaches" in lines[5]
    assert any(line.startswith("  reserve: 0.9 of each device's memory") for line in lines)


def test_prices_rank_by_cost(ask: Ask) -> None:
    """The H200 has 4.8/0.3 = 16 times the bandwidth of the L4, at a hundred times the price here."""
    words = ("--pages-per-day", "1e7", "--device", "l4,h200", "--batch", "8")
    lines = ask(*words, "--price", "L4=0.1,h200=10", "--currency", "EUR")
    assert [line.split()[1] for line in lines[2:4]] == ["l4", "h200"]
    assert lines[-1] == "  prices: EUR per device hour, as given; idle time is paid for"


def test_a_file_has_every_candidate(ask: Ask, tmp_path: Path) -> None:
    """Rows are in base units, the rejected last; 4096 pages of 83 tokens and more have 20 GB of keys and values."""
    target = tmp_path / "plan.json"
    lines = ask("--pages-per-day", "1e6", "--device", "l4", "--batch", "1,4096", "--continuous", "--json", str(target))
    assert lines[-1] == str(target)
    first, last = json.loads(target.read_text())["candidates"]
    assert (first["batch"], first["meets_targets"], first["continuous"]) == (1, True, True)
    assert first["seconds_per_page"]["seconds"] == pytest.approx(86_400 / first["pages_per_day_per_device"])
    assert (last["batch"], last["meets_targets"], last["devices"]) == (4096, False, None)
    assert last["decided_by"].startswith("memory ")
    assert last["peak_bytes"] > last["usable_bytes"] == int(0.9 * 24 * 2**30)


def test_a_batch_that_does_not_fit(ask: Ask) -> None:
    """Logits of 64 prompts of 921 tokens and more are 30 GB in fp32 and do not fit 24 GiB; the message says so."""
    lines = ask("--fits", "--device", "l4", "--batch", "64", "--mode", "Gundam")
    assert lines[0].startswith("l4 at batch 64: DOES NOT FIT, ")
    stages = ["vision_global", "vision_local", "prefill", "decode", "load"]
    assert [line.split()[0] for line in lines[1:7]] == ["stage", *stages]
    assert "decided by stage prefill at aten::argmax" in lines[7]
    assert lines[8].startswith("  largest tensors alive then: activation clone ")
    assert lines[9].startswith("l4: largest batch that fits is ")
    assert " it needs " in lines[9]


def test_without_a_batch_the_largest_that_fits_is_shown(ask: Ask, tmp_path: Path) -> None:
    """The same table, at that batch; one more has no room."""
    target = tmp_path / "fits.json"
    largest = int(ask("--fits", "--device", "l4", "--json", str(target))[0].split()[3].rstrip(":"))
    (row,) = json.loads(target.read_text())["fits"]
    assert (row["largest_batch"], row["fits"]) == (largest, True)
    assert ask("--fits", "--device", "l4", "--batch", str(largest))[0].split()[4] == "fits,"
    assert "DOES NOT FIT" in ask("--fits", "--device", "l4", "--batch", str(largest + 1))[0]


ENCODER = ("--model", "siglip-so400m-patch14-384", "--device", "l4")


def test_an_encoder_needs_no_first_token(ask: Ask) -> None:
    """Whether it fits, and how many pages a day, with no TTFT and no TPOT."""
    assert "fits, " in ask(*ENCODER, "--fits", "--batch", "8")[0]
    lines = ask(*ENCODER, "--pages-per-day", "1e6", "--batch", "8")
    assert lines[2].split()[4:6] == ["-", "-"]
    assert not any(line.startswith(("  TTFT", "  TPOT")) for line in lines)


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("--pages-per-day", "1", "--ttft", "2"), "target ttft"),
        (("--pages-per-day", "1", "--tpot", "2"), "target tpot"),
        (("--fits", "--continuous"), "continuous batching"),
        (("--pages-per-day", "1", "--continuous"), "continuous batching"),
    ],
)
def test_an_encoder_has_no_answer_about_tokens(ask: Ask, words: tuple[str, ...], asked: str) -> None:
    """The error says what the model runs instead."""
    with pytest.raises(CapacityError, match=f"{asked} is about tokens, .* yields none: it runs encode alone"):
        ask(*ENCODER, *words)


def test_a_factory_is_said_to_have_no_pages(ask: Ask) -> None:
    """What was given is named as what it is."""
    with pytest.raises(UnknownModelError, match="'wrong:three' is a factory, whose module has no reading of pages"):
        ask("--fits", "--model", "wrong:three")


def test_no_torch_is_imported() -> None:
    """A plan comes from shipped data."""
    code = (
        "import argparse, sys\n"
        "from dsocr_graph import cli_plan\n"
        "parser = argparse.ArgumentParser()\n"
        "cli_plan.add_parser(parser.add_subparsers())\n"
        "options = parser.parse_args('plan --pages-per-day 1 --device l4 --batch 1 --new-tokens 2'.split())\n"
        "options.run(options)\n"
        "print({'torch', 'transformers', 'networkx'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "set()"


PLAN = ("--pages-per-day", "1000", "--device", "l4", "--batch", "1")


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ((), OptionError, "give --pages-per-day N, or ask about memory with --fits"),
        (("--fits", "--device", "l4", "--ttft", "2"), OptionError, "--ttft about more; leave one of them out"),
        (("--pages-per-day", "0"), CapacityError, "target pages_per_day in pages is 0.0"),
        ((*PLAN, "--ttft", "-1"), CapacityError, "target ttft in seconds is -1.0"),
        ((*PLAN, "--batch", "0"), CapacityError, "batch is 0; expected a whole number from 1 up"),
        ((*PLAN, "--batch", "many"), OptionError, "batch is 'many'; write whole numbers"),
        ((*PLAN, "--batch", "5000"), WorkloadError, "batch is 5,000; expected a whole number from 1 to 4,096"),
        ((*PLAN, "--device", "h201"), UnknownDeviceError, "unknown device 'h201'"),
        ((*PLAN, "--price", "h200=3"), MissingPriceError, "device 'l4' has no price; there is one for h200"),
        ((*PLAN, "--price", "l4"), OptionError, "price 'l4' has no amount"),
        ((*PLAN, "--price", "l4=0"), CapacityError, "price of an hour of l4 is 0.0"),
        ((*PLAN, "--ttft", "1e-9"), NothingMeetsTargetsError, "TTFT"),
        ((*PLAN, "--new-tokens", "8193"), WorkloadError, "expected a whole number from 1 to 8,192"),
        ((*PLAN, "--new-tokens", "8192"), ContextTooLongError, "over the model's 8,192 positions"),
        ((*PLAN, "--mode", "Huge"), UnknownModeError, "no mode 'Huge'"),
        ((*PLAN, "--model", "gpt2"), UnknownModelError, "unknown model 'gpt2'"),
        ((*PLAN, "--kv-dtype", "int7"), UnknownChoiceError, "unknown kv_dtype 'int7'"),
        ((*PLAN, "--routing", "zipf:steep"), RoutingError, "finite number from 0 (uniform) to 100"),
        ((*PLAN, "--routing", "histogram:none.json"), RoutingError, "cannot read the histogram none.json"),
        ((*PLAN, "--new-tokens", "normal:5"), LengthsError, "need two numbers"),
        ((*PLAN, "--crops", "2x3"), CropGridError, "mode Tiny, which crops no page"),
        (("--fits", "--model", "qwen3-8b", "--mode", "Base"), OptionError, "--mode would say nothing of qwen3-8b"),
        ((*PLAN, "--page", "letter"), OptionError, "'letter' is no size; write width x height in pixels"),
        ((*PLAN, "--usable", "0"), CapacityError, "usable is 0.0; expected a fraction"),
        ((*PLAN, "--efficiency", "0.5", "--runtime", "engine"), OptionError, "--runtime chooses other times"),
        ((*PLAN, "--workload", "x", "--image", "a.png"), OptionError, "not from both; leave one out"),
        (("--fits", "--physical", "--currency", "EUR"), OptionError, "--currency, --physical about more"),
        ((*PLAN, "--currency", "EUR"), OptionError, "--currency is of prices, and there are none"),
        ((*PLAN, "--price", "l4=3,L4=9"), OptionError, "--price names l4 twice, last as 'L4=9'"),
        ((*PLAN, "--group-size", "64"), OptionError, "--group-size 64 is of int8 and int4 weights"),
        (
            (*PLAN, "--efficiency", "1.5"),
            CapacityError,
            "the share of every peak that a device is assumed to reach, is 1.5",
        ),
        (("--fits", "--device", "l4", "--usable", "0.1"), DoesNotFitError, "one request does not fit NVIDIA L4"),
    ],
)
def test_a_question_without_an_answer_is_an_error(
    ask: Ask, words: tuple[str, ...], error: type[Exception], message: str
) -> None:
    """Each message names the limit or the known alternatives."""
    with pytest.raises(error) as caught:
        ask(*words)
    assert message in str(caught.value)


def test_a_model_that_is_not_shipped_is_compiled(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped models are in bf16; one in fp32 comes from the cache or is captured, here it is the toy of a test."""
    asked: list[str] = []

    def compiled(named: NamedModel, variant: Variant, **_: object) -> AnalyticModel:
        asked.append(f"{named.name} {variant.name}")
        return modelmeter.load("deepseek-ocr", "tiny")

    monkeypatch.setattr(compiling, "analytic_model", compiled)
    ask(*PLAN, "--dtype", "fp32")
    assert asked == ["deepseek-ocr base512-fp32-sdpa-grouped"]


def test_what_ifs_make_room_and_are_said(ask: Ask) -> None:
    """Keys and values in one byte instead of two leave room for more pages; each what-if says what it assumes."""
    words = ("--fits", "--device", "l4", "--continuous", "--new-tokens", "4000")
    plain, narrow = ask(*words), ask(*words, "--kv-dtype", "fp8", "--logits", "last")
    assert int(narrow[0].split()[3].rstrip(":")) > 1.5 * int(plain[0].split()[3].rstrip(":"))
    assert "what-ifs" not in plain
    said = narrow[narrow.index("what-ifs") :]
    assert "  kv_dtype: the KV cache is kept and read in fp8" in said
    assert "    assumed: no scales are counted" in said


def test_routing_moves_the_times(ask: Ask) -> None:
    """Tokens that pick the same six experts read fewer of them than tokens that pick evenly."""

    def pages(*words: str) -> int:
        lines = ask("--pages-per-day", "1", "--device", "h200", "--batch", "16", *words)
        return int(lines[2].split()[3].replace(",", ""))

    assert pages("--routing", "top-k") > pages() > pages("--routing", "most")


def test_a_distribution_of_lengths_is_said(ask: Ask) -> None:
    """Two kinds of answers in equal shares, of 100 and 300 tokens."""
    lines = ask(*PLAN, "--new-tokens", "100,300")
    assert "  new_tokens: 2 equally likely lengths from 100 to 300, 200 in the mean" in lines


FP8 = ("--weight-dtype", "fp8", "--activation-dtype", "fp8")


def test_a_device_without_a_peak_is_rejected(ask: Ask) -> None:
    """An A10 does not multiply fp8, an L4 does: the plan is of the L4 and says why the other is none."""
    lines = ask("--pages-per-day", "1000", "--batch", "1", "--device", "a10,l4", *FP8)
    assert lines[0].startswith("1 candidates meet the targets, 1 do not")
    (rejected,) = (line for line in lines if line.startswith("  a10 at batch 1: "))
    assert "NVIDIA A10 24GB has no peak for 'fp8'" in rejected


def test_a_plan_without_any_peak_is_an_error(ask: Ask) -> None:
    """Where the only device has none."""
    with pytest.raises(NothingMeetsTargetsError, match=r"has times: .* has no peak for 'fp8'"):
        ask("--pages-per-day", "1000", "--batch", "1", "--device", "a10", *FP8)


@pytest.mark.parametrize(
    "what_if", [("--logits", "last"), ("--kv-growth", "preallocated"), ("--activation-dtype", "fp32")]
)
def test_memory_that_is_a_lower_bound_is_said(ask: Ask, what_if: tuple[str, ...]) -> None:
    """A batch may fit then; without a what-if, and with other types of the cache, it does."""
    verdict, *_, largest = (line for line in ask("--fits", "--device", "l4", *what_if) if line.startswith("l4"))
    assert "may fit, needs at least " in verdict
    assert "(a lower bound)" in verdict
    assert largest.startswith("l4: largest batch that may fit, by a lower bound of memory, is ")
    assert ": fits, " in ask("--fits", "--device", "l4", "--kv-dtype", "fp8")[0]
    assert any(line.startswith("  memory: a lower bound") for line in ask(*PLAN, *what_if))
