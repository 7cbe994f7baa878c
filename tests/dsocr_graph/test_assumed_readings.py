"""Readings that are assumed for models without a name here: by their stages, each as the models that have them."""

import pytest
from attrs import evolve

import modelmeter
from dsocr_graph.assumed_readings import READ, READINGS, read_by_stages, views_of
from dsocr_graph.compared_workloads import SamePages
from dsocr_graph.errors import OptionError
from dsocr_graph.models.registry import MODELS
from dsocr_graph.workloads import load_profile
from modelmeter.model import AnalyticModel, Stage

PAGES = load_profile("dsocr-standard-v1")


def of_stages(**dims: str) -> AnalyticModel:
    """Return a model of stages with dims, such as ``decode="B T"``, that nothing more is known of."""
    made = [
        Stage(name=name, description="", dims=tuple(names.split()), weight_bytes=0, kv_cache_bytes=0, peaks=())
        for name, names in dims.items()
    ]
    return evolve(modelmeter.load("qwen3-8b"), name="unknown", stages=tuple(made), leaves=(), free=(), limits={})


@pytest.mark.parametrize(
    "name",
    [
        "deepseek-ocr",
        "deepseek-ocr-2",
        "deepseek-v3",
        "got-ocr2",
        "qwen3-8b",
        "qwen3-vl-8b",
        "siglip-so400m-patch14-384",
        "whisper-large-v3",
    ],
)
def test_a_model_under_another_name_reads_as_the_known_one_does(name: str) -> None:
    """What the stages tell is what the family of the model says: the same runs of every page."""
    read = read_by_stages(evolve(modelmeter.load(name), name="unknown"), PAGES)
    assert read is not None
    known = MODELS[name].workload(PAGES)
    assert [item.runs for item in read.items] == [item.runs for item in known.items]
    assert str(read.facts[READ]).endswith("(assumed from the stages)")


@pytest.mark.parametrize(
    ("stages", "runs"),
    [
        # the letter: 1,100 tokens of text and a prompt of 10
        ({"encode": "B S"}, {"encode": {"B": 1, "S": 1110}}),
        (
            {"encode": "B S", "prefill": "B S P", "decode": "B S T"},
            {
                "encode": {"B": 1, "S": 1110},
                "prefill": {"B": 1, "S": 1110, "P": 1},
                "decode": {"B": 1, "S": 1110, "T": 1},
            },
        ),
    ],
)
def test_encoders_of_text_read_the_text_of_a_page(stages: dict[str, str], runs: dict[str, dict[str, int]]) -> None:
    """Alone, and with a decoder."""
    read = read_by_stages(of_stages(**stages), PAGES)
    assert read is not None
    assert {run.stage: run.bindings for run in read.items[0].runs} == runs


@pytest.mark.parametrize("stages", [{"forward": "B"}, {"prefill": "B S"}, {"prefill": "B S X", "decode": "B T"}])
def test_other_stages_have_no_reading(stages: dict[str, str]) -> None:
    """Nothing is assumed of them: the message says how to compare all the same."""
    model = of_stages(**stages)
    assert read_by_stages(model, PAGES) is None
    with pytest.raises(OptionError, match=r"no reading of the pages .*: mine has the stages .*; compare .* --points"):
        SamePages(profile=PAGES).workload(model, label="mine", variant=None)


def test_pages_beyond_the_room_of_a_model_are_refused() -> None:
    """With advice that a compiled model can follow."""
    small = evolve(modelmeter.load("qwen3-8b"), name="unknown", limits={"S": 256, "T": 255})
    with pytest.raises(OptionError, match=r"S = 1,110; .* up to 256 .*; ask for fewer .*, or compare at .* --points"):
        read_by_stages(small, PAGES)
    longest = evolve(small, limits={"S": 8192, "T": 2207})  # the letter's last step has 1,110 + 1,098 tokens cached
    with pytest.raises(OptionError, match=r"stage 'decode' for 'letter' runs at T = 2,208"):
        read_by_stages(longest, PAGES)


def test_each_reading_has_stages_of_its_own() -> None:
    """No two readings take the same model."""
    stages = {tuple(sorted((name, *sorted(dims)) for name, dims in each.stages.items())) for each in READINGS}
    assert len(stages) == len(READINGS)


def test_views_are_those_of_the_models_own_reading() -> None:
    """Of a mode, of a preprocessor and of a configuration; none where pages keep their size."""
    found = {name: views_of(modelmeter.load(name), PAGES) for name in ("deepseek-ocr", "got-ocr2", "qwen3-vl-8b")}
    assert found["deepseek-ocr"] == {
        "views of vision_global": "1024 x 1024 pixels",
        "views of vision_local": "640 x 640 pixels",
    }
    assert found["got-ocr2"] == {"views of vision": "1024 x 1024 pixels"}
    assert found["qwen3-vl-8b"] == {}
    assert views_of(modelmeter.load("siglip-so400m-patch14-384"), PAGES) == {"views of encode": "384 x 384 pixels"}
