"""What a user calls a model, the files that are behind it, and how much of them is fetched."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_zoo import row
from range_server import serving

from gatenorm_export.checkpoints.hub import fetch_for_scoring
from gatenorm_export.checkpoints.locate import locate
from gatenorm_export.errors import InputError, MissingPartError
from gatenorm_export.progress import Quiet
from gatenorm_export.scoring import score_model
from gatenorm_export.sources import resolve_model


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATENORM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return row("llama-gqa").save(tmp_path_factory.mktemp("model") / "whole")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return row("llama-gqa").save(tmp_path_factory.mktemp("model") / "sharded", max_shard_size="60KB")


def scores(name: str) -> list[float]:
    return [entry.score for entry in score_model(resolve_model(name, whole=False)).layers]


def to_pickle(folder: Path, target: Path) -> Path:
    """The same checkpoint as a pickle."""
    import torch
    from safetensors.torch import load_file

    target.mkdir()
    for path in folder.iterdir():
        if path.suffix != ".safetensors" and "index" not in path.name:
            shutil.copy(path, target)
    torch.save(load_file(folder / "model.safetensors"), target / "pytorch_model.bin")
    return target


def test_the_same_model_scores_the_same_from_every_source(checkpoint: Path, sharded: Path, tmp_path: Path) -> None:
    expected = scores(str(checkpoint))
    assert len(expected) == 4
    pickled = to_pickle(checkpoint, tmp_path / "pickled")
    places = [sharded, pickled, checkpoint / "model.safetensors", pickled / "pytorch_model.bin"]
    assert [scores(str(place)) for place in places] == [expected] * 4
    shutil.copytree(checkpoint, tmp_path / "www" / "whole")
    shutil.copytree(sharded, tmp_path / "www" / "sharded")
    with serving(tmp_path / "www") as server:
        for name in ("whole", "sharded/", "whole/model.safetensors"):
            assert scores(f"{server.url}/{name}") == expected
        assert not any("tokenizer" in path for path in server.behaviour.requests)


def test_scoring_from_afar_reads_headers_and_wanted_ranges(tmp_path: Path) -> None:
    folder = row("llama-gqa").with_layers(2).save(tmp_path / "www")
    with serving(tmp_path / "www") as server:
        scores(server.url)
        read = [(begin, end) for name, begin, end in server.behaviour.ranges if name == "model.safetensors"]
    data = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    wanted = {
        (start + header[name]["data_offsets"][0], start + header[name]["data_offsets"][1])
        for name in header
        if name.endswith(("q_proj.weight", "k_proj.weight"))
    }
    # Each opening asks for eight bytes, to see whether the file is still the one that was kept.
    asked = [span for span in read if span != (0, 8)]
    assert sorted(asked) == sorted({(8, start), *wanted})


@pytest.mark.parametrize("tail", ["", "/"])
def test_what_was_found(checkpoint: Path, sharded: Path, tmp_path: Path, tail: str) -> None:
    found = locate(str(checkpoint) + tail)
    assert found is not None
    assert (found.kind, found.weights, found.index, found.remote) == (
        "safetensors",
        ("model.safetensors",),
        None,
        False,
    )
    assert found.config()["num_hidden_layers"] == 4
    assert found.present(("tokenizer.json", "nothing.json")) == ("tokenizer.json",)
    found = locate(str(sharded) + tail)
    assert found is not None
    assert found.index == "model.safetensors.index.json"
    assert set(found.weights) == {path.name for path in sharded.glob("*.safetensors")}


def test_a_link_keeps_its_name(checkpoint: Path, tmp_path: Path) -> None:
    """The hub's cache holds links to files whose names are digests."""
    blob = tmp_path / "blobs" / "0123"
    blob.parent.mkdir()
    shutil.copy(checkpoint / "model.safetensors", blob)
    folder = tmp_path / "snapshots" / "main"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").symlink_to(blob)
    shutil.copy(checkpoint / "config.json", folder)
    assert scores(str(folder)) == scores(str(folder / "model.safetensors")) == scores(str(checkpoint))


def test_a_link_out_of_a_folder_is_followed_for_who_names_it_alone(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(checkpoint / "model.safetensors")
    shutil.copy(checkpoint / "config.json", tmp_path)
    assert scores(str(tmp_path / "model.safetensors")) == scores(str(checkpoint))
    with pytest.raises(InputError, match=r"is a link to .*, which is outside its folder; refused"):
        scores(str(tmp_path))


def test_one_gguf_or_graph_in_a_folder_is_meant(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    found = locate(str(tmp_path))
    assert found is not None
    assert (found.kind, found.path) == ("gguf", str(tmp_path / "a.gguf"))
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"holds a\.gguf, b\.gguf; name the file that is meant"):
        locate(str(tmp_path))
    (tmp_path / "model.onnx").write_bytes(b"")
    found = locate(str(tmp_path))
    assert found is not None
    assert found.kind == "onnx"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ftp://host/model", "only URLs of http, https"),
        ("file:///tmp/model", "only URLs of http, https"),
        ("http://127.0.0.1:9/a/model.onnx", "only safetensors and GGUF are read by range"),
        ("http://127.0.0.1:9/a/model.bin", "only safetensors and GGUF are read by range"),
        ("http://[half/model", "is no URL"),
    ],
)
def test_urls_that_are_not_read(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        locate(name)


def test_a_scheme_whose_package_is_missing_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingPartError, match=r"s3://bucket/model: s3:// needs more .*: pip install s3fs "):
        locate("s3://bucket/model")


def test_a_name_that_is_nothing_is_left_to_the_caller() -> None:
    assert locate("/no/such/folder") is None
    assert locate("./model.gguf") is None


def test_an_empty_folder_behind_a_url(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        with pytest.raises(
            InputError, match=r"config\.json: not there, or not yours to read \(the server answers 404\)"
        ):
            locate(f"{server.url}/model")
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(InputError, match=r"model\.safetensors: not there, or not yours to read"):
            locate(server.url)


class Hub:
    """Stands in for the hub: hands out files of a folder by name, and remembers which."""

    def __init__(self, source: Path, target: Path) -> None:
        self.source, self.target = source, target
        self.asked: list[list[str]] = []

    def snapshot_download(self, name: str, *, allow_patterns: list[str], **_: Any) -> str:
        self.asked.append(list(allow_patterns))
        self.target.mkdir(exist_ok=True)
        for pattern in allow_patterns:
            for path in self.source.glob(pattern):
                shutil.copy(path, self.target)
        return str(self.target)


def fetch(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, wanted: Any) -> Hub:
    hub = Hub(source, target)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    assert fetch_for_scoring("org/model", wanted, Quiet()) == target
    return hub


def test_a_hub_id_fetches_the_shards_that_hold_what_is_wanted(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight_map = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    wanted = {shard for name, shard in weight_map.items() if "q_proj" in name or "k_proj" in name}
    assert wanted < set(weight_map.values())
    fetch(sharded, tmp_path / "hub", monkeypatch, lambda name: "q_proj" in name or "k_proj" in name)
    assert {path.name for path in (tmp_path / "hub").glob("*.safetensors")} == wanted
    assert (tmp_path / "hub" / "tokenizer.json").is_file()
    fetch(sharded, tmp_path / "all", monkeypatch, None)
    assert {path.name for path in (tmp_path / "all").glob("*.safetensors")} == set(weight_map.values())


def test_a_hub_id_is_scored_from_those_shards(
    checkpoint: Path, sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(sharded, tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    np.testing.assert_allclose(scores("org/model"), scores(str(checkpoint)), rtol=1e-12)
    assert len(list((tmp_path / "hub").glob("*.safetensors"))) < len(list(sharded.glob("*.safetensors")))


def test_a_hub_id_with_one_file_or_only_pickles(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = fetch(checkpoint, tmp_path / "hub", monkeypatch, lambda name: False)
    assert len(hub.asked) == 1
    assert (tmp_path / "hub" / "model.safetensors").is_file()
    pickled = to_pickle(checkpoint, tmp_path / "pickled")
    fetch(pickled, tmp_path / "hub2", monkeypatch, lambda name: False)
    assert (tmp_path / "hub2" / "pytorch_model.bin").is_file()


@pytest.mark.parametrize("shard", ["../x.safetensors", "*.safetensors", "[a].safetensors"])
def test_an_index_on_the_hub_that_names_more_than_files(
    shard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(InputError, match="refused"):
        fetch(tmp_path / "src", tmp_path / "hub", monkeypatch, None)
