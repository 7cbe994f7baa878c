"""The subcommand `formulas`: closed forms in four formats, and a page for review."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dsocr_graph.cli import main


def test_a_module_in_one_stage(capsys: pytest.CaptureFixture[str]) -> None:
    """The output head multiplies B rows: 2*1280*129280 = 330,956,800 FLOPs each."""
    assert main(["formulas", "lm_head", "--stage", "decode"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "decode: lm_head (Linear), called 1 times"
    assert "  tensor_core_flops = 330956800*B  [FLOPs]" in lines


def test_the_whole_model_says_what_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a module, memory stands beside the costs, stage by stage."""
    assert main(["formulas", "--format", "json"]) == 0
    stages = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in stages] == ["vision_global", "vision_local", "prefill", "decode"]
    cache = next(item for item in stages[2]["formulas"] if item["quantity"] == "kv_cache_bytes")
    assert cache["expression"] == "61440*B*S"
    assert [(peak["at"], peak["module"]) for peak in stages[2]["peaks"]] == [("aten::argmax", "")]


def test_quantities_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    """Two quantities of the whole model, and the allocations that can decide one of them."""
    assert main(["formulas", "--stage", "vision_local", "--quantity", "peak_bytes,parameter_bytes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" = ")[0].strip() for line in lines if " = " in line] == ["parameter_bytes", "peak_bytes"]
    assert [line.split(":")[0] for line in lines if "peak, if" in line] == ["  peak, if at aten"] * 2


def test_a_decode_summed_over_its_steps_runs_as_python(capsys: pytest.CaptureFixture[str]) -> None:
    """The source that is printed defines a function per quantity; one step is the unsummed formula at T."""
    assert main(["formulas", "lm_head", "--stage", "decode", "--sum-over", "T", "--format", "python"]) == 0
    space: dict[str, object] = {}
    exec(capsys.readouterr().out, space)  # noqa: S102 - the source is what is tested
    flops = space["decode_tensor_core_flops"]
    assert callable(flops)
    assert flops(B=2, n=3) == 2 * 3 * 330_956_800


def test_own_leaves_out_what_is_below(capsys: pytest.CaptureFixture[str]) -> None:
    """The attention of a decoder layer has its projections below it: 4 * 2 * 1280 * 1280 FLOPs a row."""
    arguments = ["formulas", "model.layers.0.self_attn", "--stage", "decode", "--format", "latex"]
    main(arguments)
    everything = capsys.readouterr().out
    main([*arguments, "--own"])
    own = capsys.readouterr().out
    assert r"tensor_core_flops = 5120 \cdot B \cdot \left(T + 2561\right)" in everything
    assert r"tensor_core_flops = 5120 \cdot B \cdot \left(T + 1\right)" in own


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lm_heat"], "unknown module 'lm_heat'; did you mean lm_head?"),
        (["model.layers.0", "--stage", "vision_local"], "runs in vision_local; it runs in prefill, decode"),
        (["--stage", "decoder"], "unknown stage 'decoder'"),
        (["--stage", "decode", "--sum-over", "S"], "stage decode has no dim 'S' to sum over; it has B, T"),
        (["--format", "word"], "format 'word' is not known; choose one of text, latex, python, json, page"),
        (["lm_head", "--format", "page"], "leave out module"),
        (["lm_head", "--quantity", "bytes,kv_cache_bytes"], "nothing is stated here of the quantity 'kv_cache_bytes'"),
        (["--variant", "huge"], "unknown variant of deepseek-ocr 'huge'"),
        (["--model", "no-model"], "unknown model 'no-model'"),
    ],
)
def test_mistakes_are_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A user's mistake ends with status 2 and names the alternatives."""
    assert main(["formulas", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_one_of_equal_layers_is_resolved_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Layer 5 has the formulas of the eleven that it is folded with; the messages say so, the output names them."""
    assert main(["formulas", "model.layers.5.mlp", "--stage", "decode"]) == 0
    written = capsys.readouterr()
    assert written.out.startswith("decode: model.layers.[1-11].mlp (DeepseekV2MoE), called 11 times\n")
    assert written.err == (
        "model.layers.5.mlp is one of model.layers.[1-11].mlp: the formulas are of these 11 equal modules together\n"
    )


def test_a_file_is_written_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --out the text goes into the file, whose path is printed."""
    out = tmp_path / "head.txt"
    assert main(["formulas", "lm_head", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert "330956800*B" in out.read_text(encoding="utf-8")


def test_formulas_need_no_torch() -> None:
    """The subcommand imports neither torch nor transformers."""
    code = (
        "import sys; from dsocr_graph.cli import main; main(['formulas', 'lm_head']); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
