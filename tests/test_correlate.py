"""What attention adds to the stream, measured against the stream itself; and the verb."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from model_zoo import make_tokenizer, row

from benchmarks.matrix.models import FAMILIES, N_LAYERS, Family, family
from gatenorm_export.architectures import adapter_for
from gatenorm_export.cli.main import main
from gatenorm_export.comparing.text import Text
from gatenorm_export.correlating import Windows, cut_windows, measure_layers
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.records import CorrelationReport

TOKENS = np.random.default_rng(0).integers(4, 128, 150)
WINDOWS = Windows(TOKENS, 64)

STREAM_FAMILIES = [tiny.name for tiny in FAMILIES if tiny.kind == "decoder"] + ["modernbert"]
"""Every block that adds attention to a stream which passes on unnormed: sequential, parallel (GPT-NeoX, Phi, Falcon),
with a norm behind attention (Gemma 2, OLMo 2, GLM-4) or a factor (Granite), and modules that return the sum (BLOOM)."""


def means(pairs: list[tuple[Any, Any]]) -> tuple[float, float]:
    """The definition, word for word, token by token: (x, a) -> mean ||a||/||x||, mean 1 - cos(x, x + a)."""
    ratios, turns = [], []
    for stream, added in pairs:
        for x, a in zip(stream.reshape(-1, 64).double().numpy(), added.reshape(-1, 64).double().numpy(), strict=True):
            ratios.append(np.linalg.norm(a) / np.linalg.norm(x))
            turns.append(1 - x @ (x + a) / np.linalg.norm(x) / np.linalg.norm(x + a))
    return float(np.mean(ratios)), float(np.mean(turns))


def without_mlps(tiny: Family) -> Any:
    """The random model with every MLP silent, so that a block's output less its input is what attention adds."""
    import torch

    model = tiny.make()
    blocks = model.get_submodule(adapter_for(tiny.model_class).tower().blocks)
    with torch.no_grad():
        for block in blocks:
            for name, parameter in block.named_parameters():
                if not any(word in name for word in ("att", "norm", "ln_")):
                    parameter.zero_()
    return model


def streams(model: Any, windows: Windows) -> list[list[Any]]:
    """The hidden states of every batch, in front of each block and behind the last."""
    import torch

    with torch.no_grad():
        return [
            list(model.base_model(input_ids=torch.from_numpy(tokens), output_hidden_states=True).hidden_states)
            for tokens, _ in windows.batches()
        ]


@pytest.mark.parametrize("name", STREAM_FAMILIES)
def test_what_is_measured_is_what_the_stream_gains(name: str) -> None:
    tiny = family(name)
    model = without_mlps(tiny)
    modules = adapter_for(tiny.model_class).tower()
    measured = measure_layers(model, modules, WINDOWS, n_layers=N_LAYERS, name=name)
    batches = streams(model, WINDOWS)
    # The last hidden state is behind the final norm, so the last block's own output is not among them.
    for layer in range(N_LAYERS - 1):
        expected = means([(states[layer], states[layer + 1] - states[layer]) for states in batches])
        assert (measured[layer].norm_ratio, measured[layer].cosine) == pytest.approx(expected, rel=2e-3), layer


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_behind_a_post_norm_block_the_branch_is_found_before_the_norm(name: str) -> None:
    import torch

    tiny = family(name)
    model = tiny.make()
    modules = adapter_for(tiny.model_class).tower()
    windows = Windows(TOKENS, 50)
    measured = measure_layers(model, modules, windows, n_layers=N_LAYERS, name=name)
    blocks = model.get_submodule(modules.blocks)
    for layer in range(N_LAYERS):
        pairs = []
        for states in streams(model, windows):
            x, block = states[layer], blocks[layer]
            with torch.no_grad():
                if name == "distilbert":
                    a = block.attention(x, x, x, mask=torch.zeros(1, 1, 1, 1))[0]
                    joined = block.sa_layer_norm(x + a)
                    after = block.output_layer_norm(joined + block.ffn(joined))
                else:
                    a = block.attention.output.dense(block.attention.self(x)[0])
                    joined = block.attention.output.LayerNorm(x + a)
                    after = block.output(block.intermediate(joined), joined)
            assert torch.allclose(after, states[layer + 1], atol=1e-4)
            pairs.append((x, a))
        assert (measured[layer].norm_ratio, measured[layer].cosine) == pytest.approx(means(pairs), rel=1e-5)


def test_with_its_mlp_a_model_measures_the_same_branch() -> None:
    """In llama the branch is what the module returns; here with the MLPs on, on the real stream."""
    import torch

    model = row("llama-gqa").make()
    added: dict[int, list[Any]] = {layer: [] for layer in range(4)}
    hooks = [
        block.self_attn.register_forward_hook(lambda m, i, output, at=layer: added[at].append(output[0].clone()))
        for layer, block in enumerate(model.model.layers)
    ]
    batches = streams(model, WINDOWS)
    for hook in hooks:
        hook.remove()
    measured = measure_layers(model, adapter_for("LlamaForCausalLM").tower(), WINDOWS, n_layers=4, name="llama")
    for layer in range(4):
        expected = means([(states[layer], branch) for states, branch in zip(batches, added[layer], strict=True)])
        assert (measured[layer].norm_ratio, measured[layer].cosine) == pytest.approx(expected, rel=1e-6)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled()


def test_the_frame_is_run_but_not_counted() -> None:
    """A causal model sees what stands before a window and nothing of what stands behind it."""
    modules = adapter_for("LlamaForCausalLM").tower()
    model = row("llama-gqa").make()
    bare = measure_layers(model, modules, Windows(TOKENS, 50), n_layers=4, name="llama")
    behind = measure_layers(model, modules, Windows(TOKENS, 50, after=(2, 3)), n_layers=4, name="llama")
    before = measure_layers(model, modules, Windows(TOKENS, 50, before=(1,)), n_layers=4, name="llama")
    for layer in range(4):
        assert behind[layer].norm_ratio == pytest.approx(bare[layer].norm_ratio, rel=1e-5)
        assert before[layer].norm_ratio != pytest.approx(bare[layer].norm_ratio, rel=1e-5)


def test_a_block_that_never_adds_is_refused() -> None:
    model = row("llama-gqa").make()
    block = model.model.layers[2]
    block.forward = lambda hidden_states, **named: block.self_attn(block.input_layernorm(hidden_states), **named)[0]
    with pytest.raises(RefusedError, match="odd: where the attention of layer 2 joins the stream was not found"):
        measure_layers(model, adapter_for("LlamaForCausalLM").tower(), WINDOWS, n_layers=4, name="odd")
    with pytest.raises(RefusedError, match="has 4 blocks, the checkpoint 5"):
        measure_layers(model, adapter_for("LlamaForCausalLM").tower(), WINDOWS, n_layers=5, name="odd")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_that_computes_nan_is_refused() -> None:
    import torch

    model = row("llama-gqa").make()
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[0, 0] = float("nan")
    with pytest.raises(RefusedError, match="layer 1 computes NaN"):
        measure_layers(model, adapter_for("LlamaForCausalLM").tower(), WINDOWS, n_layers=4, name="odd")


def test_every_token_is_in_one_window_and_special_tokens_do_not_count() -> None:
    windows = Windows(TOKENS, 20, before=(1,), after=(2, 3))
    seen = []
    batches = list(windows.batches())
    assert len(batches) == windows.n_batches == 3
    for tokens, columns in batches:
        assert (tokens[:, 0] == 1).all()
        assert (tokens[:, -2:] == [2, 3]).all()
        seen.append(tokens[:, columns].ravel())
    assert np.concatenate(seen).tolist() == TOKENS.tolist()
    whole = Windows(TOKENS[:40], 20)
    assert [tokens.shape for tokens, _ in whole.batches()] == [(2, 20)]


def framing_tokenizer() -> Any:
    """The zoo's tokenizer, with <s> and </s> around a text as BERT has [CLS] and [SEP]."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def test_windows_have_the_tokenizers_frame_and_fit_the_positions() -> None:
    text = Text("words", " ".join(f"w{4 + index % 120}" for index in range(300)))
    config = row("llama-gqa").config()
    plain = cut_windows(text, make_tokenizer(), config, limit=200)
    assert (len(plain.tokens), plain.length, plain.before, plain.after) == (200, 64, (), ())
    framed = cut_windows(text, framing_tokenizer(), config, limit=1000)
    assert (len(framed.tokens), framed.length, framed.before, framed.after) == (300, 62, (0,), (1,))
    with pytest.raises(InputError, match="words: 63 tokens are too few"):
        cut_windows(text, make_tokenizer(), config, limit=63)
    config.vocab_size = 50
    with pytest.raises(InputError, match="token 123 is not among the model's 50"):
        cut_windows(text, make_tokenizer(), config, limit=200)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "words.txt"
    file.write_text(" ".join(f"w{number}" for number in np.random.default_rng(5).integers(4, 128, 400)))
    return file


def save_family(name: str, folder: Path, tokenizer: Any | None) -> Path:
    """Write a row of the matrix as ``from_pretrained`` reads it."""
    family(name).make().save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def test_correlate_writes_record_and_plot(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = row("llama-gqa").save(tmp_path / "model")
    out = tmp_path / "out"
    assert (
        main(["correlate", str(folder), "--text", str(text), "-o", str(out), "--drop", "2", "--json", "--quiet"]) == 0
    )
    printed = json.loads(capsys.readouterr().out)
    report = CorrelationReport.load(out / "correlation.json")
    assert printed == report.to_object()
    assert (report.n_tokens, report.cut, report.cut_asked, len(report.layers)) == (400, 2, True, 4)
    assert [entry.layer for entry in report.layers] == [0, 1, 2, 3]
    ElementTree.fromstring((out / "correlation.svg").read_text())
    from gatenorm_export.scoring import score_model
    from gatenorm_export.sources import resolve_model

    scores = score_model(resolve_model(str(folder))).layers
    assert [entry.gate_norm for entry in report.layers] == pytest.approx([entry.score for entry in scores], rel=1e-12)


def test_an_interrupted_measurement_goes_on_where_it_was(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Three batches; the scores and the first two are not computed again."""
    from gatenorm_export import scoring

    model, out = row("llama-gqa").save(tmp_path / "model"), tmp_path / "out"
    seen: list[int] = []
    stop_at = 0
    of_batches, score = Windows.batches, scoring.score_model

    def batches(windows: Windows) -> Iterator[Any]:
        for number, batch in enumerate(of_batches(windows)):
            if number + 1 == stop_at:
                raise KeyboardInterrupt
            yield batch

    def counted(*arguments: Any, **named: Any) -> Any:
        seen.append(0)
        return score(*arguments, **named)

    monkeypatch.setattr(Windows, "batches", batches)
    monkeypatch.setattr(scoring, "score_model", counted)

    def correlate(folder: Path, *options: str, text: Path = text) -> dict[str, Any]:
        words = ["correlate", str(model), "--text", str(text), "-o", str(folder), *options]
        code = main(words)
        assert code == (130 if stop_at else 0)
        assert (folder / ".correlate-so-far").exists() == bool(stop_at)
        if stop_at:
            assert not (folder / "correlation.json").exists()
            return {}
        record = json.loads((folder / "correlation.json").read_text())
        assert record.pop("seconds") > 0
        record.pop("command")
        return record

    at_once = correlate(tmp_path / "at-once")
    stop_at = 3
    correlate(out)
    stop_at = 0
    capfd.readouterr()
    assert correlate(out) == at_once
    assert "2 of 3 batches were measured before; going on" in capfd.readouterr().err
    assert len(seen) == 2
    assert sorted(path.name for path in out.iterdir()) == ["correlation.json", "correlation.svg"]
    other = tmp_path / "other.txt"
    other.write_text(f"w9 {text.read_text()}")
    for name, options, read in (("tokens", ["--max-text-tokens", "399"], text), ("text", [], other)):
        stop_at = 3
        correlate(tmp_path / name)
        stop_at = 0
        capfd.readouterr()
        assert correlate(tmp_path / name, *options, text=read)["layers"] != at_once["layers"]
        assert "going on" not in capfd.readouterr().err


def test_correlate_takes_an_encoder_and_warns_in_words(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_family("bert", tmp_path / "bert", framing_tokenizer())
    monkeypatch.setenv("COLUMNS", "200")
    shown = {}
    for cut in ("1", "4"):
        assert main(["correlate", str(folder), "--text", str(text), "--drop", cut, "--json", "--quiet"]) == 0
        report = CorrelationReport.model_validate_json(capsys.readouterr().out)
        assert main(["correlate", str(folder), "--text", str(text), "--drop", cut, "--quiet"]) == 0
        shown[cut] = capsys.readouterr().out
        assert ("warning: Gate-Norm and" in shown[cut]) == (report.warning is not None)
    assert report.window_tokens == 62


@pytest.mark.parametrize(
    ("name", "options", "code", "line"),
    [
        ("vit", [], 5, "reads images, not text"),
        ("clip-vision", [], 5, "reads images, not text"),
        ("whisper", [], 5, "reads audio, not text"),
        ("whisper", ["--tower", "decoder"], 5, "tower decoder, reads audio, not text"),
        ("bert", ["--tower", "text"], 5, "--tower text"),
        ("bert", [], 3, "holds no tokenizer"),
        ("bert", ["--drop", "9"], 5, "--drop 9"),
        ("bert", ["--max-text-tokens", "0"], 2, "--max-text-tokens: 0 is too small"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    tmp_path: Path,
    text: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    options: list[str],
    code: int,
    line: str,
) -> None:
    folder = save_family(name, tmp_path / name, None)
    assert main(["correlate", str(folder), "--text", str(text), "--quiet", *options]) == code
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def save_clip(folder: Path) -> Any:
    """A random CLIP with both towers; returned as it is written."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    common = {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={**common, "vocab_size": 128, "max_position_embeddings": 77, "eos_token_id": 1},
        vision_config={**common, "image_size": 16, "patch_size": 4},
        projection_dim=32,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return model


def test_the_text_tower_of_two_is_measured_alone(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    model = save_clip(tmp_path / "clip")
    command = ["correlate", str(tmp_path / "clip"), "--text", str(text), "--max-text-tokens", "76", "--json", "--quiet"]
    assert main(command) in (3, 5)
    assert "choose one with --tower" in capsys.readouterr().err
    assert main([*command, "--tower", "vision"]) == 5
    assert "reads images, not text" in capsys.readouterr().err
    assert main([*command, "--tower", "text"]) == 0
    report = CorrelationReport.model_validate_json(capsys.readouterr().out)
    assert (report.tower, report.n_tokens, report.window_tokens, len(report.layers)) == ("text", 76, 38, 3)
    words = [int(word[1:]) for word in text.read_text().split()[:76]]
    added: list[Any] = []
    attention = model.text_model.encoder.layers[1].self_attn
    attention.register_forward_hook(lambda module, inputs, output: added.append(output[0]))
    with torch.no_grad():
        states = model.text_model(torch.tensor(words).reshape(2, 38), output_hidden_states=True).hidden_states
    expected = means([(states[1], added[0])])
    assert (report.layers[1].norm_ratio, report.layers[1].cosine) == pytest.approx(expected, rel=1e-4)


def test_a_missing_text_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = row("llama-gqa").save(tmp_path / "model")
    assert main(["correlate", str(folder), "--text", str(tmp_path / "none.txt"), "--quiet"]) == 3
    assert "none.txt: the text cannot be read" in capsys.readouterr().err


@pytest.mark.real
@pytest.mark.parametrize(("name", "n_layers", "warns"), [("smollm2", 30, False), ("minilm", 6, True)])
def test_the_demo_models_are_measured_on_the_shipped_text(
    tmp_path: Path, name: str, n_layers: int, warns: bool
) -> None:
    """Both outcomes on real weights: SmolLM2's mute layers are Gate-Norm's, those of MiniLM are not."""
    from importlib import resources

    shipped = resources.files("gatenorm_export.comparing").joinpath("texts/default.txt")
    file = tmp_path / "prose.txt"
    file.write_text(shipped.read_text(encoding="utf-8"))
    options = ["--max-text-tokens", "512", "-o", str(tmp_path), "--quiet"]
    assert main(["correlate", name, "--text", str(file), *options]) == 0
    report = CorrelationReport.load(tmp_path / "correlation.json")
    assert len(report.layers) == n_layers
    assert all(0 < entry.norm_ratio < 100 and 0 < entry.cosine < 2 for entry in report.layers)
    assert (report.warning is not None) == warns
