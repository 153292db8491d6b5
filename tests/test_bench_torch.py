"""bench on a checkpoint and a plan in torch: what is taken out computes what zeroed attention does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bench_cases import QUICK, bench
from model_zoo import row

from gatenorm_export.benching import backend_for
from gatenorm_export.benching.timers import WallClock
from gatenorm_export.cli.main import main
from gatenorm_export.errors import ExitCode, RefusedError
from gatenorm_export.records import PrunePlan
from gatenorm_export.records.bench import BenchReport


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint and a plan for it."""
    folder = tmp_path_factory.mktemp("planned")
    row("llama-gqa").save(folder / "model")
    assert main(["score", str(folder / "model"), "-o", str(folder), "--quiet"]) == 0
    assert main(["plan", str(folder / "scores.json"), "--drop", "2", "-o", str(folder), "--quiet"]) == 0
    return folder / "model", folder / "plan.json"


def test_torch_takes_a_checkpoint_and_a_plan(planned, tmp_path) -> None:
    assert backend_for(*planned) == "torch"
    assert bench(*planned, "--device", "cpu", *QUICK, "-o", tmp_path / "r.json") == 0
    report = BenchReport.load(tmp_path / "r.json")
    plan = PrunePlan.load(planned[1])
    assert report.dropped == plan.drop
    assert report.pruned.kv_bytes_per_token == report.base.kv_bytes_per_token / 2
    assert report.pruned.work.kv_bytes_per_token == report.pruned.kv_bytes_per_token
    # q, k, v and o of two layers: 64 x 64, twice 64 x 32, 64 x 64.
    assert report.base.work.weight_bytes - report.pruned.work.weight_bytes == 4 * 2 * (2 * 64 * 64 + 2 * 64 * 32)


def test_torch_refuses_what_does_not_belong_together(planned, exported, tmp_path, capsys) -> None:
    other = row("llama-mha").save(tmp_path / "other")
    _, graph, _ = exported("llama-gqa")
    torch = ("--backend", "torch", "--device", "cpu", "--quiet")
    for arguments, code, words in (
        ((other, planned[1]), ExitCode.REFUSED, "was made from"),
        ((planned[1], planned[0]), ExitCode.REFUSED, "swapped"),
        ((graph, planned[1]), ExitCode.BAD_INPUT, "a checkpoint"),
        ((planned[0], tmp_path / "no.json"), ExitCode.BAD_INPUT, "no such plan"),
    ):
        assert bench(*arguments, *torch) == code
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3-gqa", "mistral-gqa"])
@pytest.mark.parametrize("layers", [(0,), (1, 3), (0, 1, 2, 3)], ids=str)
def test_removed_modules_compute_what_zeroed_ones_do(name: str, layers: tuple[int, ...]) -> None:
    import torch

    from benchmarks.native import native_model
    from gatenorm_export.architectures import adapter_for
    from gatenorm_export.benching.torch_model import TorchModel
    from gatenorm_export.benching.torch_surgery import remove_attention_modules
    from gatenorm_export.framework import zeroed_attention

    model = row(name).make()
    architecture = type(model).__name__
    tokens = torch.arange(3, 14)[None]
    spec = SimpleNamespace(architecture=architecture, name=name)
    with torch.inference_mode(), zeroed_attention(model, spec, layers):
        wanted = model(input_ids=tokens).logits
    whole = kv_bytes_of(row(name).make())
    cut = row(name).make()
    calls = []
    cut.model.layers[layers[0]].self_attn.register_forward_hook(lambda *_: calls.append(1))
    assert remove_attention_modules(cut, adapter_for(architecture).tower(), layers) == ()
    calls.clear()
    with torch.inference_mode():
        torch.testing.assert_close(cut(input_ids=tokens).logits, wanted)
    assert not calls
    assert kv_bytes_of(cut) == whole * (4 - len(layers)) // 4
    timed = TorchModel(cut, "cpu", WallClock())
    timed.prepare(tokens.numpy(), 2)
    timed.prefill()
    before = timed.kv_bytes()
    timed.decode()
    timed.decode()
    timed.rewind()
    assert timed.kv_bytes() == before
    if len(layers) < 4:
        native = native_model(row(name).make(), architecture, layers)
        assert native.config.num_hidden_layers == len(native.model.layers) == 4 - len(layers)
        with torch.inference_mode():
            torch.testing.assert_close(native(input_ids=tokens).logits, wanted)


@pytest.mark.parametrize(
    ("family", "extra", "n_notes"),
    [
        ("GPTNeoX", {}, 0),
        ("Phi", {}, 1),
        ("Olmo2", {"pad_token_id": 1}, 1),
        ("Gemma2", {"num_key_value_heads": 2, "head_dim": 8, "attn_implementation": "eager"}, 1),
    ],
)
def test_blocks_of_other_families_keep_their_code_where_no_shorter_one_computes_the_same(
    family: str, extra: dict[str, object], n_notes: int
) -> None:
    import torch
    import transformers

    from gatenorm_export.architectures import adapter_for
    from gatenorm_export.benching.torch_surgery import remove_attention_modules
    from gatenorm_export.framework import zeroed_attention

    config = getattr(transformers, f"{family}Config")(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=4, intermediate_size=64, vocab_size=64, **extra
    )
    torch.manual_seed(0)
    architecture = f"{family}ForCausalLM"
    model = getattr(transformers, architecture)(config).eval()
    tokens = torch.arange(3, 9)[None]
    with torch.inference_mode(), zeroed_attention(model, SimpleNamespace(architecture=architecture), (0,)):
        wanted = model(input_ids=tokens).logits
    notes = remove_attention_modules(model, adapter_for(architecture).tower(), (0,))
    assert len(notes) == n_notes
    with torch.inference_mode():
        torch.testing.assert_close(model(input_ids=tokens).logits, wanted)
    with pytest.raises(RefusedError, match="layer 7 does not exist"):
        remove_attention_modules(model, adapter_for(architecture).tower(), (7,))


def kv_bytes_of(model: object) -> int:
    from gatenorm_export.benching.torch_model import TorchModel

    timed = TorchModel(model, "cpu", WallClock())
    timed.prepare(np.arange(3, 14)[None], 0)
    timed.prefill()
    return timed.kv_bytes()
