"""The command line as a pipeline sees it: one JSON object, exit codes, one line per error, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from model_zoo import row
from test_comparing import WORDS

from gatenorm_export.cli.main import VERBS, main
from gatenorm_export.errors import ExitCode


def gatenorm(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and a finished run of it, without engines."""
    folder = tmp_path_factory.mktemp("cli")
    row("llama-gqa").save(folder / "model")
    (folder / "text.txt").write_text(WORDS.content)
    arguments = [
        "run",
        folder / "model",
        "--drop",
        "2",
        "--out",
        folder / "out",
        "--flavour",
        "none",
        "--quiet",
        "--json",
    ]
    assert main([str(argument) for argument in [*arguments, "--text", folder / "text.txt"]]) == 0
    return folder


def test_a_run_leaves_everything_in_its_folder(workspace: Path) -> None:
    out = workspace / "out"
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {
        "scores.json",
        "scores.svg",
        "plan.json",
        "base/model.onnx",
        "base/config.json",
        "base/tokenizer.json",
        "base/manifest.json",
        "pruned/model.onnx",
        "pruned/config.json",
        "pruned/tokenizer.json",
        "pruned/manifest.json",
        "compare.json",
        "report.json",
        "report.md",
        "report.html",
        "manifest.json",
    } <= names
    assert not any(name.endswith(".part") for name in names)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["not_run"]["build"]
    assert set(manifest["stages"]) == {"score", "plan", "export", "prune", "compare", "report"}
    dropped = json.loads((out / "plan.json").read_text())["drop"]
    assert [int(layer) for layer, new in manifest["layer_map"].items() if new is None] == dropped
    known = {a["sha256"] for stage in manifest["stages"].values() for a in stage["artifacts"]}
    assert {parent for a in manifest["stages"]["prune"]["artifacts"] for parent in a["parents"]} <= known


def test_a_second_run_reuses_every_stage_and_says_so(workspace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", workspace / "model", "--drop", 2, "--out", workspace / "out", "--flavour", "none"]
    before = (workspace / "out" / "report.html").stat().st_mtime_ns
    code, out, err = gatenorm(capfd, *arguments, "--text", workspace / "text.txt", "--json")
    result = json.loads(out)
    assert code == 0
    assert result["reused"] == ["score", "export", "plan", "prune", "compare", "report"]
    assert "export: unchanged inputs, reusing" in err
    assert (workspace / "out" / "report.html").stat().st_mtime_ns == before
    assert result["faithfulness"]["passed"] is True
    assert result["quality"]["ppl_ratio"] > 0
    assert {"latency", "verdict", "schema", "drop"} <= set(result)


def test_the_verbs_do_by_themselves_what_run_does(workspace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    work, model = workspace / "steps", workspace / "model"
    code, out, err = gatenorm(capfd, "score", model, "--json", "--quiet")
    assert (code, err) == (0, "")
    scores = json.loads(out)
    assert [entry["layer"] for entry in scores["layers"]] == [0, 1, 2, 3]
    (work).mkdir()
    (work / "scores.json").write_text(out)
    code, out, _ = gatenorm(capfd, "plan", work / "scores.json", "--drop", 2, "-o", work / "plan.json", "--json")
    assert json.loads(out)["drop"] == json.loads((workspace / "out" / "plan.json").read_text())["drop"]
    code, out, _ = gatenorm(capfd, "export", model, "-o", work / "base", "--json", "-q")
    assert json.loads(out)["max_abs_error"] < json.loads(out)["tolerance"]
    code, out, _ = gatenorm(
        capfd, "prune", work / "base", "--plan", work / "plan.json", "-o", work / "pruned", "--json"
    )
    assert json.loads(out)["after"]["n_attention"] == 2
    same = (work / "pruned" / "model.onnx").read_bytes() == (workspace / "out" / "pruned" / "model.onnx").read_bytes()
    assert same, "the same inputs give the same bytes"
    compare = ["compare", work / "base", work / "pruned", "--text", workspace / "text.txt", "--no-latency", "--json"]
    code, out, _ = gatenorm(capfd, *compare)
    assert code == 0
    assert json.loads(out)["faithfulness"]["passed"] is True
    code, out, err = gatenorm(capfd, *compare, "--max-ppl-ratio", "0.5", "-q")
    assert code == ExitCode.THRESHOLD
    assert err.startswith("gatenorm: a limit was missed: --max-ppl-ratio 0.5, measured ")
    assert err.count("\n") == 1
    assert json.loads(out)["thresholds"][0]["passed"] is False
    code, _, err = gatenorm(capfd, "compare", work / "pruned", work / "base", "--text", workspace / "text.txt")
    assert code == ExitCode.REFUSED
    assert "swapped" in err
    code, out, _ = gatenorm(capfd, "report", workspace / "out", "-o", work / "again", "--json")
    assert {Path(name).name for name in json.loads(out)["files"]} >= {"report.json", "report.md", "report.html"}


def test_a_model_without_tokenizer_is_judged_on_random_tokens_and_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in row("qwen2-gqa").save(tmp_path / "model").glob("*token*"):
        path.unlink()
    run = ["run", tmp_path / "model", "--layers", "0", "--out", tmp_path / "out", "--flavour", "none", "--no-latency"]
    code, out, err = gatenorm(capfd, *run, "--json")
    assert code == 0
    assert json.loads(out)["quality"]["text"] == "random tokens (the model has no tokenizer)"
    assert "no tokenizer was found" in err
    (tmp_path / "model" / "tokenizer.json").write_text("{ no tokenizer")
    code, _, err = gatenorm(capfd, "export", tmp_path / "model", "-o", tmp_path / "again", "-q")
    assert code == ExitCode.BAD_INPUT
    assert "its tokenizer cannot be loaded" in err
    (tmp_path / "model" / "tokenizer.json").unlink()
    (tmp_path / "text.txt").write_text("some words")
    code, _, err = gatenorm(capfd, *run, "--text", tmp_path / "text.txt", "-q")
    assert code == ExitCode.BAD_INPUT
    assert "holds no tokenizer to read --text with" in err


def test_outputs_may_be_file_names(workspace: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, _ = gatenorm(capfd, "export", workspace / "model", "-o", tmp_path / "whole.onnx", "-q")
    assert code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole.manifest.json", "whole.onnx"]
    cut = ["prune", tmp_path / "whole.onnx", "--layers", "0", "-o", tmp_path / "cut.onnx", "-q"]
    assert gatenorm(capfd, *cut)[0] == 0
    compare = ["compare", tmp_path / "whole.onnx", tmp_path / "cut.onnx", "--no-latency", "--json", "-q"]
    code, out, _ = gatenorm(capfd, *compare, "--text", workspace / "text.txt", "-o", tmp_path / "proof.json")
    assert code == 0
    assert json.loads((tmp_path / "proof.json").read_text()) == json.loads(out)


def test_an_unfaithful_graph_has_its_own_exit_code(workspace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A foreign graph that says it lacks a layer but computes with it."""
    import onnx_ir as ir

    model = ir.load(workspace / "out" / "pruned" / "model.onnx")
    weight = next(
        v for v in model.graph.initializers.values() if v.const_value is not None and v.const_value.shape.rank() == 2
    )
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * 1.5, name=weight.name)
    ir.save(model, workspace / "wrong.onnx")
    code, out, _ = gatenorm(
        capfd, "compare", workspace / "out" / "base", workspace / "wrong.onnx", "--model", workspace / "model",
        "--text", workspace / "text.txt", "--no-latency", "--json", "-q",
    )  # fmt: skip
    assert code == ExitCode.UNFAITHFUL
    assert json.loads(out)["verdict"].startswith("NOT FAITHFUL")


def errors(workspace: Path) -> dict[str, tuple[list[object], ExitCode, str]]:
    out = workspace / "out"
    return {
        "no such model": (["score", workspace / "absent"], ExitCode.BAD_INPUT, "no such folder or file"),
        "a folder without weights": (["score", workspace / "out"], ExitCode.BAD_INPUT, "holds no weights"),
        "too many": (["plan", out / "scores.json", "--drop", 9], ExitCode.REFUSED, "there are 4"),
        "no such layer": (["plan", out / "scores.json", "--layers", "4"], ExitCode.REFUSED, "has 4 layers, 0 to 3"),
        "not scores": (["plan", out / "plan.json", "--drop", 1], ExitCode.BAD_INPUT, "not a LayerScores record"),
        "no graph": (["prune", workspace, "--layers", 0, "-o", workspace / "x"], ExitCode.BAD_INPUT, "no such ONNX"),
        "no such layer in the graph": (
            ["prune", out / "base", "--layers", "2,7", "-o", workspace / "x"], ExitCode.REFUSED, "layer 7 does not",
        ),
        "onto itself": (
            ["prune", out / "base", "--layers", "2", "-o", out / "base"], ExitCode.REFUSED, "choose another output",
        ),
        "an unwritable output": (
            ["plan", out / "scores.json", "--drop", 1, "-o", "/proc/no/p.json"], ExitCode.OUTPUT, "cannot be written",
        ),
        "no run": (["report", workspace / "model"], ExitCode.BAD_INPUT, "holds no scores.json"),
    }  # fmt: skip


@pytest.mark.parametrize("case", sorted(errors(Path())))
def test_bad_input_is_one_clear_line(workspace: Path, case: str, capfd: pytest.CaptureFixture[str]) -> None:
    arguments, expected, complaint = errors(workspace)[case]
    code, out, err = gatenorm(capfd, *arguments, "--quiet")
    assert code == expected
    assert out == ""
    assert complaint in err
    assert err.count("\n") == 1
    assert not (workspace / "x").exists()


def test_a_plan_of_another_model_is_refused(workspace: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    row("llama-gqa").save(tmp_path / "other", seed=1)
    row("llama-gqa").with_layers(3).save(tmp_path / "shallow")
    for name, complaint in (
        ("other", "the plan was made from"),
        ("shallow", "plan is for 3 attention layers, the graph has 4"),
    ):
        gatenorm(capfd, "score", tmp_path / name, "-o", tmp_path)
        gatenorm(capfd, "plan", tmp_path / "scores.json", "--drop", 1, "-o", tmp_path / "plan.json")
        prune = ["prune", workspace / "out" / "base", "--plan", tmp_path / "plan.json", "-o", tmp_path / "pruned", "-q"]
        code, _, err = gatenorm(capfd, *prune)
        assert code == ExitCode.REFUSED
        assert complaint in err
        assert not (tmp_path / "pruned").exists()


def test_wrong_usage_is_exit_code_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        [],
        ["prune", "model.onnx"],
        ["plan", "s.json", "--drop", "1", "--ratio", "0.1"],
        ["no-such-verb"],
        ["plan", "s.json", "--drop", "two"],
        ["compare", "a", "b", "--max-text-tokens", "0"],
        ["compare", "a", "b", "--max-kl", "nan"],
        ["run", "model", "--drop", "1", "--out", "out", "--wait", "-1"],
    ):
        assert main(arguments) == ExitCode.USAGE == 2
        said = capsys.readouterr().err
        assert said.startswith("gatenorm: ")
        assert "--help" in said
        assert said.count("\n") == 1


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    shown = capsys.readouterr().out
    assert "example" in shown
    assert f"gatenorm {verb}" in shown


def test_a_full_disk_leaves_nothing_half_written(workspace: Path, tmp_path: Path) -> None:
    """A limit on file size stands in for the full disk: writing the graph fails in the middle."""
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from gatenorm_export.cli.main import main\n"
        f"sys.exit(main({['prune', str(workspace / 'out' / 'base'), '--layers', '1', '-o', str(tmp_path / 'p')]!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == ExitCode.OUTPUT, done.stderr
    assert "cannot be written" in done.stderr
    assert not any(path.is_file() for path in (tmp_path / "p").rglob("*"))
