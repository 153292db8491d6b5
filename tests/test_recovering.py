"""Recovery: LoRA where it belongs, a checkpoint that is the adapter model, a faithful graph, and honest figures."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from calibration_cases import repair_graph
from model_zoo import NAMES, row
from test_repository import HEAVY

from gatenorm_export.cli.main import main
from gatenorm_export.comparing import measure_quality
from gatenorm_export.comparing.text import load_text, tokenize
from gatenorm_export.errors import ExitCode, InputError
from gatenorm_export.framework import load_framework_model, zeroed_attention
from gatenorm_export.progress import Quiet
from gatenorm_export.records import ComparisonReport, ModelSpec, PrunePlan, RecoveryQuality, RecoveryReport
from gatenorm_export.recovering import RecoverRequest, recover
from gatenorm_export.recovering.judging import judge
from gatenorm_export.recovering.request import split_windows
from gatenorm_export.recovering.student import Student
from gatenorm_export.recovering.training import train
from gatenorm_export.recovering.verdict import verdict
from gatenorm_export.sources import resolve_model

LAYERS = (1, 3)
WINDOW = 32


def walk(n: int, seed: int) -> str:
    """Text that can be learned: each word is three or five numbers on from the last."""
    steps = np.random.default_rng(seed).choice([3, 5], size=n).cumsum()
    return " ".join(f"w{4 + step % 120}" for step in steps)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, exported) -> Path:
    """A checkpoint, its plan, a text to train on, another to judge on, and one recovery of it, made by the verb."""
    spec, graph, _ = exported("llama-gqa")
    folder = tmp_path_factory.mktemp("recover")
    (folder / "model").symlink_to(spec.path)
    (folder / "base").symlink_to(graph.parent)
    (folder / "text.txt").write_text(walk(2000, seed=1))
    (folder / "other.txt").write_text(walk(300, seed=2))
    plan = PrunePlan(
        model_name="m",
        model_digest=spec.query_key_digest,
        scores_sha256="0",
        n_layers=4,
        policy="p",
        protect=(),
        drop=LAYERS,
    )
    plan.save(folder / "plan.json")
    assert (
        run(folder, "--plan", folder / "plan.json", "--out", folder / "out", "--steps", 24, "--learning-rate", "5e-3")
        == ExitCode.OK
    )
    return folder


def run(folder: Path, *arguments: object, text: str = "text.txt") -> int:
    common = ["recover", folder / "model", "--text", folder / text, "--window", WINDOW, "--batch", 4, "--quiet"]
    if "--eval-text" not in arguments:
        common += ["--eval-text", folder / "other.txt"]
    return main([str(word) for word in [*common, *arguments]])


def report_of(folder: Path) -> RecoveryReport:
    return RecoveryReport.load(folder / "out" / "recovery.json")


def request(folder: Path, **settings) -> RecoverRequest:
    return RecoverRequest(folder / "text.txt", **{"window": WINDOW, "batch": 4, "steps": 16, **settings})


def student_of(spec: ModelSpec, seed: int = 0) -> Student:
    return Student(load_framework_model(spec)[0], spec, LAYERS, rank=4, seed=seed)


def windows_of(folder: Path, spec: ModelSpec):
    return split_windows(tokenize(load_text(folder / "text.txt"), folder, spec, limit=10_000), WINDOW, "text.txt")


def trained(folder: Path, **settings):
    spec = resolve_model(str(folder / "model"))
    asked = request(folder, **settings)
    student = student_of(spec, asked.seed)
    return student, train(student, windows_of(folder, spec), asked, progress=Quiet())


@pytest.mark.parametrize("name", NAMES)
def test_the_three_states_are_the_framework_models(name: str, tmp_path: Path) -> None:
    """Skipping is zeroing, LoRA starts from nothing, the teacher is the checkpoint, and no LoRA sits on what is out."""
    spec = resolve_model(str(row(name).save(tmp_path)))
    model, _ = load_framework_model(spec)
    tokens = torch.arange(4, 24)[None]
    with torch.no_grad():
        unpruned = model(tokens).logits
        with zeroed_attention(model, spec, LAYERS):
            zeroed = model(tokens).logits
        student = student_of(spec)
        assert torch.equal(student.logits(tokens), zeroed)
        torch.nn.init.normal_(student.parameters[1])
        assert not torch.allclose(student.logits(tokens), zeroed)
        with student.pruned():
            assert torch.equal(student.logits(tokens), zeroed)
        with student.unpruned():
            assert torch.equal(student.logits(tokens), unpruned)
    assert (unpruned - zeroed).abs().max() > 1e-2
    expected = {
        f"model.layers.{layer}.{part}_proj"
        for layer in range(4)
        for part in ("mlp.gate", "mlp.up", "mlp.down", *(f"self_attn.{name}" for name in "qkvo"))
        if layer not in LAYERS or part.startswith("mlp")
    }
    assert set(student.targets) == expected
    assert len(student.parameters) == 2 * len(expected)


@pytest.mark.parametrize(("loss", "rate"), [("text", 2e-2), ("distill", 5e-3)])
def test_training_lowers_what_it_minimises(loss: str, rate: float, folder: Path) -> None:
    student, training = trained(folder, loss=loss, steps=32, learning_rate=rate)
    assert [point.step for point in training.points] == [0, 8, 12, 16, 20, 24, 28, 32]
    losses = [point.train_loss_nats for point in training.points[1:]]
    assert losses[-1] < 0.9 * losses[0]
    text = load_text(folder / "other.txt")
    tokens = tokenize(text, folder, resolve_model(str(folder / "model")), limit=2 * WINDOW)
    quality = judge(student, tokens, text, held_out=False, progress=Quiet())
    if loss == "text":
        assert quality.recovered_ppl < 0.9 * quality.pruned_ppl
    else:
        assert quality.recovered_kl_nats < 0.95 * quality.pruned_kl_nats


def test_the_merged_model_is_the_adapter_model(folder: Path) -> None:
    student, _ = trained(folder, steps=6, learning_rate=5e-3)
    tokens = torch.arange(4, 24)[None]
    spec = resolve_model(str(folder / "model"))
    with torch.no_grad():
        expected = student.logits(tokens)
        with student.pruned():
            assert (student.logits(tokens) - expected).abs().max() > 1e-2
        model = student.merge()
        with zeroed_attention(model, spec, LAYERS):
            merged = model(tokens).logits
    assert (merged - expected).abs().max() < 1e-5 * (expected.max() - expected.min())


def test_the_same_seed_gives_the_same_weights_and_another_one_others(folder: Path) -> None:
    first, again, other = (trained(folder, steps=3, seed=seed)[0].state() for seed in (5, 5, 6))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(first, other, strict=True))


def test_a_run_of_minutes_is_repeated_by_its_number_of_steps(folder: Path) -> None:
    first, training = trained(folder, steps=None, minutes=0.02, learning_rate=5e-3)
    again, repeated = trained(folder, steps=training.steps, learning_rate=5e-3)
    assert training.steps > 5
    assert repeated.points == training.points
    assert all(torch.equal(*pair) for pair in zip(first.state(), again.state(), strict=True))


def test_training_that_does_harm_is_not_kept(folder: Path) -> None:
    student, training = trained(folder, steps=2, learning_rate=30.0)
    tokens = torch.arange(4, 24)[None]
    assert training.best_step == 0
    assert training.points[-1].held_out_loss_nats > training.points[0].held_out_loss_nats
    with torch.no_grad(), student.pruned():
        expected = student.logits(tokens)
    with torch.no_grad():
        assert torch.equal(student.logits(tokens), expected)


def a_quality(base: float, pruned: float, recovered: float, *, held_out: bool = False) -> RecoveryQuality:
    figures = {f"{state}_{name}": 0.5 for state in ("pruned", "recovered") for name in ("kl_nats", "top1_agreement")}
    share = math.log(pruned / recovered) / math.log(pruned / base) if pruned > base else None
    return RecoveryQuality(
        text="held out" if held_out else "prose",
        text_sha256="0",
        held_out=held_out,
        n_tokens=100,
        base_ppl=base,
        pruned_ppl=pruned,
        recovered_ppl=recovered,
        recovered_share=share,
        **figures,
    )


@pytest.mark.parametrize(
    ("held_out", "unseen", "best_step", "says"),
    [
        (
            (20, 40, 30),
            (20, 80, 40),
            9,
            "On prose recovery gave back 50% of the loss pruning added (80.00 -> 40.00, unp",
        ),
        (
            (20, 40, 30),
            (20, 40, 50),
            9,
            "made perplexity no better (40.00 -> 50.00, unpruned 20.00). Recovery did not ",
        ),
        ((20, 40, 30), (20, 19, 18), 9, "On prose pruning had cost nothing (19.00 -> 18.00, unpruned 20.00)."),
        ((20, 40, 10), (20, 40, 30), 9, "it has learned the text itself, which is no recovery"),
        ((20, 40, 30), (20, 40, 30), 5, "The held-out loss was lowest at step 5 of 9; that state was kept."),
        ((20, 40, 40), (20, 40, 40), 0, "at no step was the held-out loss below the pruned model's"),
    ],
)
def test_the_verdict_says_what_happened(held_out, unseen, best_step: int, says: str) -> None:
    assert says in verdict((a_quality(*held_out, held_out=True), a_quality(*unseen)), best_step, 9)


def test_an_output_folder_holds_the_recovery_and_no_graph_with_all_attention(folder: Path) -> None:
    out, report = folder / "out", report_of(folder)
    assert {path.name for path in out.iterdir()} == {"checkpoint", "pruned", "plan.json", "recovery.json"}
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.onnx")} == {"pruned/model.onnx"}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (out / "checkpoint").iterdir()}
    manifest = json.loads((out / "pruned" / "manifest.json").read_text())
    assert manifest["model"]["digest"] == report.recovered_model.digest
    assert manifest["parent_path"].startswith("not kept")
    plan = PrunePlan.load(out / "plan.json")
    assert (plan.drop, plan.model_digest) == (LAYERS, report.recovered_model.query_key_digest)
    config = json.loads((out / "checkpoint" / "config.json").read_text())
    assert config["gatenorm"]["trained_without_attention_of_layers"] == list(LAYERS)


def test_the_removed_attention_keeps_its_weights_and_the_rest_is_trained(folder: Path) -> None:
    from safetensors.numpy import load_file

    before, after = (load_file(folder / place / "model.safetensors") for place in ("model", "out/checkpoint"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    targets = report_of(folder).targets
    assert changed == {f"{target}.weight" for target in targets}
    assert any(f"layers.{layer}.self_attn" in name for name in before for layer in LAYERS)


def test_the_recovered_graph_is_faithful_and_the_figures_are_those_of_the_graphs(folder: Path) -> None:
    report = report_of(folder)
    assert report.faithfulness.passed is True
    assert "layers 1, 3" in report.faithfulness.reference
    held_out, other = report.qualities
    assert (held_out.held_out, other.held_out) == (True, False)
    text = load_text(folder / "other.txt")
    tokens = tokenize(text, folder, report.model, limit=10_000)
    graphs = folder / "base" / "model.onnx", folder / "out" / "pruned" / "model.onnx"
    quality = measure_quality(*graphs, tokens, text)
    assert other.base_ppl == pytest.approx(quality.base_ppl, rel=1e-4)
    assert other.recovered_ppl == pytest.approx(quality.pruned_ppl, rel=1e-4)
    assert other.recovered_kl_nats == pytest.approx(quality.kl_nats, rel=1e-3)
    assert other.recovered_top1_agreement == pytest.approx(quality.top1_agreement, abs=0.01)
    assert abs(other.recovered_kl_nats - other.pruned_kl_nats) > 5e-3 * other.pruned_kl_nats


def test_a_recovered_graph_is_compared_with_the_unpruned_one(folder: Path, tmp_path: Path) -> None:
    report, out = report_of(folder), tmp_path / "compare.json"
    graphs = [str(folder / "base"), str(folder / "out" / "pruned")]
    command = ["compare", *graphs, "--text", str(folder / "other.txt"), "--no-latency", "-q"]
    assert main([*command, "-o", str(out)]) == ExitCode.OK
    compared = ComparisonReport.load(out)
    assert compared.quality.pruned_ppl == pytest.approx(report.qualities[1].recovered_ppl, rel=1e-4)
    # Judged against the fine-tuned checkpoint, which it must equal; the unpruned one it must not.
    assert compared.faithfulness.passed is True
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    for file in (folder / "base").iterdir():
        (stranger / file.name).symlink_to(file.resolve())
    (stranger / "manifest.json").unlink()
    assert main(["compare", str(stranger), graphs[1], "--no-latency", "-q"]) == ExitCode.REFUSED


def repaired_graph(folder: Path, name: str, layers: tuple[int, ...]) -> Path:
    """The base without the attention of ``layers``, with linear stand-ins."""
    repair_graph(folder / "base" / "model.onnx", folder / name, "linear:4", layers)
    return folder / name


def test_a_repair_is_judged_beside_the_recovery(folder: Path) -> None:
    graph = repaired_graph(folder, "repaired", LAYERS)
    out = folder / "beside"
    assert run(folder, "--plan", folder / "plan.json", "-o", out, "--steps", 2, "--against", graph) == ExitCode.OK
    report = RecoveryReport.load(out / "recovery.json")
    assert report.against == "linear:4"
    text = load_text(folder / "other.txt")
    tokens = tokenize(text, folder, report.model, limit=10_000)
    quality = measure_quality(folder / "base" / "model.onnx", graph / "model.onnx", tokens, text)
    other = report.qualities[1]
    assert other.repaired_ppl == pytest.approx(quality.pruned_ppl, rel=1e-4)
    assert other.repaired_kl_nats == pytest.approx(quality.kl_nats, rel=1e-3)
    assert other.repaired_top1_agreement == pytest.approx(quality.top1_agreement, abs=0.01)
    assert f"stands at {other.repaired_ppl:.2f}" in report.verdict
    # Without --against nothing stands beside it.
    assert report_of(folder).against is None
    assert "stands at" not in report_of(folder).verdict


def test_the_recovered_graph_loads_in_optimum(folder: Path) -> None:
    from optimum.onnxruntime import ORTModelForCausalLM

    report = report_of(folder)
    client = ORTModelForCausalLM.from_pretrained(folder / "out" / "pruned")
    tokens = torch.arange(4, 16)[None]
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
    model, _ = load_framework_model(report.recovered_model)
    with torch.inference_mode(), zeroed_attention(model, report.recovered_model, LAYERS):
        expected = model.generate(tokens, **options)
    assert client.generate(tokens, **options).tolist() == expected.tolist()


def test_a_graph_that_is_not_the_recovered_model_fails_the_run(folder: Path, monkeypatch) -> None:
    def prune_another_layer(graph: Path, output: Path, **options) -> object:
        return real(graph, output, **{**options, "layers": (0, 3)})

    real = recover.prune_graph
    monkeypatch.setattr(recover, "prune_graph", prune_another_layer)
    code = run(folder, "--layers", "1,3", "-o", folder / "wrong", "--steps", 1)
    assert code == ExitCode.UNFAITHFUL
    assert not (folder / "wrong" / "plan.json").exists()
    assert "FAILED" in RecoveryReport.load(folder / "wrong" / "recovery.json").faithfulness.reason


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--layers", "4"], ExitCode.REFUSED, "layer 4 does not exist"),
        (["--layers", ""], ExitCode.USAGE, "neither a layer nor a range"),
        (["--layers", "1", "--window", "129"], ExitCode.REFUSED, "takes 128 tokens at most"),
        (["--layers", "1", "--text", "short.txt"], ExitCode.BAD_INPUT, "give a text of at least 320 tokens"),
        (["--layers", "1", "--steps", "0"], ExitCode.USAGE, "--steps 0"),
        (["--layers", "1", "--minutes", "nan"], ExitCode.USAGE, "--minutes nan"),
        (["--layers", "1", "--rank", "0"], ExitCode.USAGE, "--rank 0"),
        (["--layers", "1", "--learning-rate", "-1"], ExitCode.USAGE, "--learning-rate -1"),
        (["--layers", "1", "--eval-text", "text.txt"], ExitCode.BAD_INPUT, "is the text to train on too"),
        (["--layers", "1", "--eval-text", "short.txt"], ExitCode.BAD_INPUT, "short.txt: 10 tokens are too few"),
        (["--layers", "1", "--eval-text", "none.txt"], ExitCode.BAD_INPUT, "none.txt: the text cannot be read"),
        (["--layers", "1", "--against", "base"], ExitCode.BAD_INPUT, "is no repaired graph"),
        (["--layers", "1", "--against", "nowhere"], ExitCode.BAD_INPUT, "nowhere"),
        (["--layers", "1", "--against", "other-repair"], ExitCode.REFUSED, "lacks attention in layers 2"),
        (["--plan", "stranger.json"], ExitCode.REFUSED, "the plan was made from another"),
        (["--plan", "empty.json"], ExitCode.REFUSED, "nothing to recover"),
        (["--layers", "1", "-o", "out"], ExitCode.OUTPUT, "not overwritten"),
        (["--layers", "1", "--steps", "9", "--learning-rate", "1e30"], ExitCode.REFUSED, "training diverged"),
    ],
    ids=str,
)
def test_bad_input_gets_one_clear_line_and_leaves_nothing(
    arguments: list[str], code: int, says: str, folder: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = PrunePlan.load(folder / "plan.json")
    plan.model_copy(update={"model_name": "another", "model_digest": "f" * 64}).save(folder / "stranger.json")
    plan.model_copy(update={"drop": ()}).save(folder / "empty.json")
    (folder / "short.txt").write_text(walk(10, seed=3))
    if "other-repair" in arguments:
        repaired_graph(folder, "other-repair", (2,))
    monkeypatch.chdir(folder)
    out = [] if "-o" in arguments else ["-o", "bad"]
    assert run(folder, *arguments, *out) == code
    captured = capsys.readouterr()
    assert says in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""
    assert not (folder / "bad").exists()


def test_a_checkpoint_without_tokenizer_is_refused(tmp_path: Path, folder: Path) -> None:
    row("llama-gqa").make().save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="has no tokenizer"):
        recover.recover_model(resolve_model(str(tmp_path / "model")), tmp_path / "out", request(folder), layers=(1,))


def test_an_interrupt_leaves_nothing(folder: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gatenorm_export.recovering.training._step", interrupt)
    assert run(folder, "--layers", "1", "-o", folder / "bad") == ExitCode.INTERRUPTED
    assert "interrupted" in capsys.readouterr().err
    assert not (folder / "bad").exists()


def test_without_peft_the_message_names_the_extra(
    folder: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert run(folder, "--layers", "1", "-o", folder / "bad") == ExitCode.MISSING_PART
    assert 'pip install "gatenorm[recover]"' in capsys.readouterr().err


def test_help_needs_no_heavy_package() -> None:
    blocked = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in (*HEAVY, "peft"))
    code = blocked + "from gatenorm_export.cli.main import main\nsys.exit(main(['recover', '--help']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--learning-rate" in done.stdout
