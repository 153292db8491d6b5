"""The whole run on text encoders, mixtures of experts, vision towers and Whisper, and what must be refused."""

from __future__ import annotations

import contextlib
import json
import shutil
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from model_zoo import make_tokenizer
from report_factory import a_comparison

from benchmarks.matrix.models import VOCAB, family
from gatenorm_export.architectures import ADAPTERS
from gatenorm_export.building import find_flavour
from gatenorm_export.cli.main import main
from gatenorm_export.comparing import check_faithfulness
from gatenorm_export.errors import InputError, MissingPartError, RefusedError
from gatenorm_export.framework import load_framework_model, zeroed_attention
from gatenorm_export.graph_pair import pair_of_files
from gatenorm_export.kinds import kind_of
from gatenorm_export.records import ComparisonReport, ExportedGraph, PrunedGraph
from gatenorm_export.sources import resolve_model

WORDS = " ".join(f"w{4 + (7 * i + i * i // 3) % 120}" for i in range(600))
ENCODERS = ("bert", "roberta", "distilbert", "modernbert")
VISION = ("vit", "dinov2", "clip-vision", "siglip-vision")
EXPERTS = ("mixtral", "qwen3-moe", "granitemoe", "gpt-oss", "deepseek-v3")
TOWERS = ("encoder", "decoder", "cross")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a family of the matrix -> a folder with a tiny random model and, for text, a tokenizer."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            row = family(name)
            row.make().save_pretrained(made[name])
            if row.kind in {"decoder", "encoder"}:
                make_tokenizer(VOCAB).save_pretrained(made[name])
        return made[name]

    return make


@pytest.fixture(scope="module")
def ran(checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A family and a tower -> the folder of a finished run that dropped two layers."""
    done: dict[tuple[str, str], Path] = {}

    def run(name: str, tower: str = "") -> Path:
        key = name, tower
        if key not in done:
            done[key] = tmp_path_factory.mktemp("run")
            text = done[key] / "words.txt"
            text.write_text(WORDS)
            asked = ["--tower", tower] if tower else []
            if family(name).kind in {"decoder", "encoder"}:
                asked += ["--text", str(text)]
            arguments = [str(checkpoint(name)), "--layers", "1,2", "--out", str(done[key] / "out"), *asked]
            assert main(["run", *arguments, "--flavour", "none", "--no-latency", "--quiet"]) == 0
        return done[key] / "out"

    return run


def report_of(out: Path) -> ComparisonReport:
    report = ComparisonReport.load(out / "compare.json")
    assert report.faithfulness.passed
    assert report.faithfulness.max_abs_error is not None
    assert report.faithfulness.tolerance == pytest.approx(1e-4 * report.faithfulness.logit_range)
    assert report.dropped == (1, 2)
    assert report.base_sizes.facts.n_attention - report.pruned_sizes.facts.n_attention == 2
    for name in ("report.md", "report.html", "report.json"):
        assert (out / name).is_file()
    return report


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_judged_by_what_it_gives(name: str, ran) -> None:
    report = report_of(ran(name))
    quality = report.quality
    if name in {"bert", "distilbert"}:
        assert quality.measure == "embeddings"
        assert -1 <= quality.min_cosine <= quality.mean_cosine < 0.999
        assert quality.n_items > 8
        assert "Mean cosine" in (ran(name) / "report.md").read_text()
    else:
        assert quality.measure == "classes"
        assert quality.n_classes == VOCAB
        assert 0 <= quality.top1_agreement < 1
    assert "perplexity" not in report.verdict
    assert report.pruned_sizes.facts.kv_bytes_per_token == 0


@pytest.mark.parametrize("name", VISION)
def test_a_vision_tower_is_judged_by_classes_or_vectors(name: str, ran) -> None:
    quality = report_of(ran(name)).quality
    assert quality.measure == ("classes" if name in {"vit", "dinov2"} else "embeddings")
    assert quality.n_items == 64
    assert "synthetic images" in quality.text
    assert "synthetic images" in (ran(name) / "report.html").read_text()


@pytest.mark.parametrize("name", [*EXPERTS[:2], *(pytest.param(name, marks=pytest.mark.wide) for name in EXPERTS[2:])])
def test_a_mixture_of_experts_is_a_decoder_whose_routing_is_not_baked_in(name: str, ran) -> None:
    """Faithfulness runs other tokens, batches and lengths than the traced example: other experts for each."""
    report = report_of(ran(name))
    assert report.quality.measure == "text"
    assert len(report.faithfulness.steps) == 12
    assert report.faithfulness.tokens_equal


@pytest.mark.parametrize("tower", TOWERS)
def test_whisper_is_pruned_by_tower_and_judged_by_transcripts(tower: str, ran) -> None:
    out = ran("whisper", tower)
    report = report_of(out)
    assert report.tower == tower
    assert report.quality.measure == "transcript"
    assert report.quality.n_clips == 8
    assert report.quality.kl_nats > 1e-4
    graph = "encoder_model.onnx" if tower == "encoder" else "decoder_model_merged.onnx"
    for folder in ("base", "pruned"):
        assert {path.name for path in (out / folder).glob("*.onnx")} == {
            "encoder_model.onnx",
            "decoder_model_merged.onnx",
        }
        onnx.checker.check_model(str(out / folder / graph))
    record = PrunedGraph.load(out / "pruned" / graph.replace(".onnx", ".manifest.json"))
    assert record.dropped == (() if tower == "cross" else (1, 2))
    assert record.dropped_cross == ((1, 2) if tower == "cross" else ())


@pytest.mark.parametrize(
    ("name", "tower"), [("bert", ""), ("vit", ""), ("mixtral", ""), *(("whisper", t) for t in TOWERS)]
)
def test_a_wrong_graph_is_not_faithful(name: str, tower: str, ran, checkpoint) -> None:
    """The graph that was not pruned, and one without another layer, against the model without layers 1 and 2."""
    out = ran(name, tower)
    spec = resolve_model(str(checkpoint(name)))
    graph = kind_of(spec, tower).graph
    held = "decoder" if tower == "cross" else tower
    zeroed: dict[str, Any] = {"dropped": () if tower == "cross" else (1, 2)}
    zeroed["cross"] = (1, 2) if tower == "cross" else ()
    right = check_faithfulness(out / "pruned" / graph, spec, tower=held, **zeroed)
    assert right.passed
    for wrong in (
        check_faithfulness(out / "base" / graph, spec, tower=held, **zeroed),
        check_faithfulness(out / "pruned" / graph, spec, (1,) if tower != "cross" else (), tower=held),
        check_faithfulness(
            out / "pruned" / graph,
            spec,
            (1, 3) if tower != "cross" else (),
            tower=held,
            cross=(1, 3) if tower == "cross" else (),
        ),
    ):
        assert wrong.passed is False
        assert wrong.max_abs_error > 10 * wrong.tolerance


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("bert", ["--max-ppl-ratio", "1.1"], "--max-ppl-ratio does not apply to a model that is judged by embeddings"),
        ("bert", ["--min-agreement", "0.5"], "--min-agreement does not apply"),
        ("bert", ["--guard"], "--guard is for decoders"),
        ("bert", ["--repair", "bias"], "--repair is for decoders"),
        ("bert", ["--images", "."], "--images is for models that take it: vision"),
        ("bert", ["--audio", "x.wav"], "--audio is for models that take it: speech"),
        ("bert", ["--tower", "encoder"], "no such tower"),
        ("vit", ["--min-cosine", "0.5"], "--min-cosine does not apply to a model that is judged by classes"),
        ("vit", ["--text", "x.txt"], "--text is for models that take it: decoder and encoder"),
        ("whisper", [], "encoder, decoder, cross"),
        ("whisper", ["--tower", "decoder", "--max-ppl-ratio", "2"], "--max-ppl-ratio does not apply"),
        ("qwen3-moe", ["--min-cosine", "0.5"], "--min-cosine does not apply"),
    ],
)
def test_what_means_nothing_is_refused_by_name(
    name: str, options: list[str], complaint: str, checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(checkpoint(name)), "--drop", "1", "--out", str(tmp_path / "out"), "--flavour", "none", *options]
    assert main(["run", *arguments, "--quiet"]) == 5
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out" / "base").exists()


def test_verbs_that_need_next_tokens_refuse_what_predicts_none(ran, checkpoint, tmp_path: Path, capsys) -> None:
    bert, graph = str(checkpoint("bert")), ran("bert") / "base"
    out = str(tmp_path / "out")
    text = tmp_path / "words.txt"
    text.write_text(WORDS)
    for arguments, complaint in (
        (["sweep", bert], "sweep is for decoders, BertModel is a text encoder"),
        (["recover", bert, "--layers", "1", "--text", str(text)], "recover is for decoders"),
        (["build", str(graph)], "engines are built for decoders only"),
        (["prune", str(graph), "--layers", "1", "--repair", "bias"], "only decoders over tokens"),
        (["run", bert, "--drop", "1", "--flavour", "tensorrt-rtx"], "engines are built for decoders only"),
    ):
        capsys.readouterr()
        assert main([*arguments, "-o", out, "--quiet"]) == 5
        assert complaint in capsys.readouterr().err


def test_limits_that_fit_are_judged(ran, checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    def compare(out: Path, graph: str, *limits: str) -> tuple[int, dict[str, Any]]:
        folders = (str(out / folder / graph) for folder in ("base", "pruned"))
        code = main(["compare", *folders, "--no-latency", "--json", *limits])
        return code, json.loads(capsys.readouterr().out)

    for finished in (("bert",), ("vit",), ("whisper", "cross")):
        ran(*finished)
    capsys.readouterr()
    code, report = compare(ran("bert"), "model.onnx", "--min-cosine", "0.9999")
    assert (code, report["thresholds"][0]["name"]) == (11, "min-cosine")
    assert compare(ran("bert"), "model.onnx", "--min-cosine", "-1")[0] == 0
    assert compare(ran("vit"), "model.onnx", "--min-agreement", "1.0")[0] == 11
    assert compare(ran("whisper", "cross"), "decoder_model_merged.onnx", "--min-agreement", "0")[0] == 0


@pytest.mark.parametrize("tower", TOWERS)
def test_of_folders_of_speech_the_pruned_graph_is_meant(tower: str, ran, tmp_path: Path, capsys) -> None:
    out = ran("whisper", tower)
    graph = "encoder_model.onnx" if tower == "encoder" else "decoder_model_merged.onnx"
    assert pair_of_files(out / "base", out / "pruned") == (out / "base" / graph, out / "pruned" / graph)
    assert pair_of_files(out / "base", out / "pruned" / graph)[0] == out / "base" / graph
    for folder in ("base", "pruned"):
        shutil.copytree(out / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.manifest.json"))
    found = pair_of_files(tmp_path / "base", tmp_path / "pruned")
    assert found[1] == tmp_path / "pruned" / graph, "without a record, the one that differs"
    capsys.readouterr()
    assert main(["compare", str(out / "base"), str(out / "base"), "--quiet"]) == 3
    said = capsys.readouterr().err
    assert "the folder holds decoder_model_merged.onnx, encoder_model.onnx: name the one that is meant" in said


def test_the_forward_pass_is_timed_by_length_or_batch(ran, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr("gatenorm_export.comparing.latency.FORWARD_REPEATS", (4, 4))
    cases = (
        ("bert", "", "model.onnx", "tokens", [(16, None), (64, None), (128, None)]),
        ("vit", "", "model.onnx", "images", [(1, 1), (1, 4), (1, 16)]),
        ("whisper", "encoder", "encoder_model.onnx", "sounds", [(1, 1), (1, 2)]),
        ("whisper", "decoder", "decoder_model_merged.onnx", "tokens", [(4, None), (32, None), (128, None)]),
    )
    for name, tower, graph, unit, rows in cases:
        out = ran(name, tower)
        capsys.readouterr()
        assert main(["compare", *(str(out / folder / graph) for folder in ("base", "pruned")), "--json"]) == 0
        latency = json.loads(capsys.readouterr().out)["latency"]
        assert latency["unit"] == unit
        assert [(row["sequence"], row["batch"]) for row in latency["rows"]] == rows
        assert {row["phase"] for row in latency["rows"]} == {"prefill"}
        assert latency["decode_speedup"] is None
        assert latency["prefill_speedup_low"] <= latency["prefill_speedup"] <= latency["prefill_speedup_high"]


def test_a_run_can_be_taken_up_again(ran, checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    out = ran("whisper", "decoder")
    capsys.readouterr()
    arguments = [str(checkpoint("whisper")), "--layers", "1,2", "--out", str(out), "--tower", "decoder"]
    assert main(["run", *arguments, "--flavour", "none", "--no-latency", "--quiet", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["reused"]) >= {"score", "export", "plan", "prune", "compare"}


def test_every_cross_attention_of_whisper_can_go_and_one_layer_of_its_decoder_stays(
    checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    assert main(["export", str(checkpoint("whisper")), "-o", str(base), "--quiet"]) == 0
    for name, tower in (("encoder_model", "encoder"), ("decoder_model_merged", "decoder")):
        assert ExportedGraph.load(base / f"{name}.manifest.json").tower == tower
    decoder = str(base / "decoder_model_merged.onnx")
    cross = ["prune", decoder, "--layers", "", "--cross", "0-3", "-o", str(tmp_path / "cross"), "--quiet"]
    assert main(cross) == 0
    assert main(["compare", decoder, str(tmp_path / "cross" / "decoder_model_merged.onnx"), "--no-latency"]) == 0
    both = ["prune", decoder, "--layers", "1", "--cross", "0,2", "-o", str(tmp_path / "both"), "--quiet"]
    assert main(both) == 0
    pruned = tmp_path / "both" / "decoder_model_merged.onnx"
    for manifest in (tmp_path / "both" / "decoder_model_merged.manifest.json", None):
        if manifest is None:
            # Without records, what is gone is told by the graph itself.
            for path in (*base.glob("*.manifest.json"), *pruned.parent.glob("*.manifest.json")):
                path.unlink()
        capsys.readouterr()
        model = ["--model", str(checkpoint("whisper"))]
        assert main(["compare", decoder, str(pruned), "--no-latency", "--json", *model]) == 0
        reference = json.loads(capsys.readouterr().out)["faithfulness"]["reference"]
        assert "attention of layers 1 zeroed, cross-attention of layers 0, 2 zeroed" in reference
    capsys.readouterr()
    assert main(["prune", decoder, "--layers", "0-3", "-o", str(tmp_path / "all"), "--quiet"]) == 5
    assert "keep one such layer" in capsys.readouterr().err


@pytest.fixture(scope="module")
def two_towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """CLIP and SigLIP, both towers of each: folders by name."""
    import transformers

    common = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = {**common, "vocab_size": VOCAB, "max_position_embeddings": 64, "pad_token_id": 2, "eos_token_id": 1}
    folders = {}
    for name in ("CLIP", "Siglip"):
        config = getattr(transformers, f"{name}Config")(
            text_config={**text, "bos_token_id": 0}, vision_config={**common, "image_size": 16, "patch_size": 4}
        )
        model = getattr(transformers, f"{name}Model")(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0.0, 0.2)
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
    return folders


@pytest.mark.parametrize("tower", ["text", "vision"])
@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_of_two_towers_one_is_exported_alone(name: str, tower: str, two_towers, tmp_path: Path) -> None:
    arguments = [str(two_towers[name]), "--drop", "1", "--flavour", "none", "--no-latency", "--quiet"]
    assert main(["run", *arguments, "--out", str(tmp_path), "--tower", tower]) == 0
    report = ComparisonReport.load(tmp_path / "compare.json")
    assert report.faithfulness.passed
    assert (report.tower, report.n_layers, report.base_sizes.facts.n_attention) == (tower, 3, 3)
    assert report.quality.measure == "embeddings"
    own = {"CLIP": {"text": "text_embeds", "vision": "image_embeds"}}.get(name, {}).get(tower, "pooler_output")
    assert report.quality.embedding == own
    assert report.quality.text.startswith("random tokens" if tower == "text" else "64 synthetic images")


def test_of_two_towers_one_must_be_named(two_towers, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(two_towers["CLIP"]), "--drop", "1", "--flavour", "none", "--out", str(tmp_path / "run"), "--quiet"]
    assert main(["run", *arguments]) == 5
    assert "text, vision" in capsys.readouterr().err
    assert main(["export", str(two_towers["CLIP"]), "-o", str(tmp_path / "both"), "--quiet"]) == 5
    assert "--tower text|vision" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*ENCODERS, *VISION, *EXPERTS, "bloom", "gpt-neox", "gemma2", "granite", "falcon-new"])
def test_a_zeroed_module_is_the_branch_that_joins_the_stream(name: str, checkpoint) -> None:
    """Zeroing by hook is zeroing the parameters of the module through which the attention leaves, bias included."""
    import torch

    spec = resolve_model(str(checkpoint(name)))
    model, _ = load_framework_model(spec)
    silent, _ = load_framework_model(spec)
    family(name).silence(silent, (0, 2))
    if family(name).kind == "vision":
        feed = {"pixel_values": torch.randn(2, 3, 16, 16)}
    else:
        feed = {"input_ids": torch.randint(3, VOCAB, (2, 9))}
    with torch.inference_mode():
        before, expected = model(**feed)[0], silent(**feed)[0]
        with zeroed_attention(model, spec, (0, 2)):
            zeroed = model(**feed)[0]
    torch.testing.assert_close(zeroed, expected, atol=1e-4, rtol=1e-4)
    assert (before - expected).abs().max() > 1e-2


@pytest.mark.parametrize("architecture", sorted(ADAPTERS))
def test_every_family_that_is_scored_is_exported_or_refused_in_words(architecture: str, checkpoint) -> None:
    import transformers

    spec = resolve_model(str(checkpoint("bert"))).model_copy(update={"architecture": architecture})
    for tower in ("", "text", "vision", "encoder", "decoder", "cross"):
        # Any other exception would be a crash.
        with contextlib.suppress(RefusedError):
            kind = kind_of(spec, tower)
            assert hasattr(transformers, kind.loader)
            for which in ("faithfulness", "quality", "latency"):
                assert callable(kind.kind.function(which))


def test_images_and_sounds_of_ones_own_are_used(ran, checkpoint, tmp_path: Path, capsys) -> None:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        np.save(tmp_path / "images" / f"{number}.npy", rng.normal(size=(3, 16, 16)).astype(np.float32))
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((8000 * np.sin(np.arange(12000) / 7)).astype("<i2").tobytes())
    vit, whisper = ran("vit"), ran("whisper", "encoder")
    capsys.readouterr()
    for out, graph, option, value in (
        (vit, "model.onnx", "--images", "images"),
        (whisper, "encoder_model.onnx", "--audio", "sound.wav"),
    ):
        graphs = [str(out / folder / graph) for folder in ("base", "pruned")]
        assert main(["compare", *graphs, "--no-latency", "--json", option, str(tmp_path / value)]) == 0
        quality = json.loads(capsys.readouterr().out)["quality"]
        assert quality["text"] in {"4 images of images", "sound.wav"}
    np.save(tmp_path / "images" / "0.npy", np.zeros((3, 8, 8), np.float32))
    graphs = [str(vit / folder / "model.onnx") for folder in ("base", "pruned")]
    assert main(["compare", *graphs, "--no-latency", "--images", str(tmp_path / "images")]) == 3
    assert "holds float32 [3, 8, 8], the model takes floats [3, 16, 16]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("generation", "complaint"),
    [
        ({"lang_to_id": {"<|en|>": 7}}, "transcribe in task_to_id is not there"),
        ({"lang_to_id": {"<|en|>": 7}, "task_to_id": {"translate": 9}}, "transcribe in task_to_id is not there"),
        ({"lang_to_id": {"<|en|>": 700}, "task_to_id": {"transcribe": 9}}, "lang_to_id is 700"),
        ({"lang_to_id": [7], "task_to_id": {"transcribe": 9}}, "lang_to_id is not there"),
        ({"no_timestamps_token_id": "x"}, "no_timestamps_token_id is x"),
    ],
)
def test_a_prompt_that_is_not_whole_is_refused(
    generation: dict[str, Any], complaint: str, ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ran("whisper", "decoder")
    shutil.copytree(out / "base", tmp_path / "base")
    config = tmp_path / "base" / "generation_config.json"
    config.write_text(json.dumps(generation))
    capsys.readouterr()
    graphs = (str(folder / "decoder_model_merged.onnx") for folder in (tmp_path / "base", out / "pruned"))
    assert main(["compare", *graphs, "--no-latency", "--quiet"]) == 3
    assert f"gatenorm: {config}: {complaint}; a transcript begins with it" in capsys.readouterr().err


def test_a_comparison_of_before_there_was_a_choice_is_one_of_text(tmp_path: Path) -> None:
    record = a_comparison().to_object()
    del record["quality"]["measure"], record["latency"]["unit"], record["tower"]
    (tmp_path / "compare.json").write_text(json.dumps(record))
    assert ComparisonReport.load(tmp_path / "compare.json").quality.measure == "text"
    record["quality"]["measure"] = "taste"
    (tmp_path / "compare.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="quality"):
        ComparisonReport.load(tmp_path / "compare.json")


def test_an_export_that_baked_its_routing_in_is_not_kept(checkpoint, tmp_path: Path, monkeypatch, capsys) -> None:
    """Without the experts' traceable form the trace keeps its example's routing; that must not pass for an export."""
    monkeypatch.setattr("gatenorm_export.exporting.experts._BLOCKS", {})
    assert main(["export", str(checkpoint("mixtral")), "-o", str(tmp_path / "base"), "--quiet"]) != 0
    assert not (tmp_path / "base").exists()


@pytest.mark.real
def test_minilm_end_to_end(tmp_path: Path) -> None:
    arguments = ["minilm", "--drop", "1", "--out", str(tmp_path), "--flavour", "none", "--no-latency", "--quiet"]
    assert main(["run", *arguments, "--min-cosine", "0.7"]) == 0
    report = ComparisonReport.load(tmp_path / "compare.json")
    assert report.faithfulness.passed
    assert report.dropped == (5,)
    assert report.quality.measure == "embeddings"
    assert 0.7 < report.quality.mean_cosine < 0.9
    assert report.quality.spearman_rho > 0.7


def test_a_mixture_of_experts_runs_without_the_engines_that_cannot_hold_it(
    checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its experts find their tokens by NonZero, which TensorRT-RTX does not take: known before anything is built."""
    try:
        find_flavour("tensorrt-rtx")
    except MissingPartError as error:
        pytest.skip(str(error))
    arguments = ["run", str(checkpoint("mixtral")), "--drop", "1", "--max-text-tokens", "64", "--no-latency", "--quiet"]
    assert main([*arguments, "--out", str(tmp_path / "named"), "--flavour", "tensorrt-rtx"]) == 5
    assert "does not take NonZero" in (said := capsys.readouterr().err)
    assert "--flavour none leaves engines out of the run" in said
    assert main([*arguments, "--out", str(tmp_path / "auto"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["engines"] == []
    assert "does not take NonZero" in told["engines_not_built"]
    assert not (tmp_path / "auto" / "engines").exists()
