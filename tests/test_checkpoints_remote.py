"""Remote checkpoints: only the bytes that are needed, however the server behaves, and never the same bytes twice."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from range_server import serving
from safetensors.numpy import save_file

from gatenorm_export import urls
from gatenorm_export.checkpoints import open_checkpoint, remote
from gatenorm_export.errors import InputError

WANTED = [f"model.layers.{layer}.self_attn.{which}_proj.weight" for layer in range(4) for which in "qk"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GATENORM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(remote, "_PIECE_BYTES", 4096)
    return tmp_path / "cache"


def checkpoint(folder: Path, *, shards: int = 1) -> dict[str, np.ndarray]:
    """A folder whose q and k are a small part of its bytes."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    tensors = {name: rng.normal(size=(32, 48)).astype(np.float32) for name in WANTED}
    tensors |= {f"model.layers.{layer}.mlp.weight": rng.normal(size=(200, 200)) for layer in range(4)}
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return tensors
    weight_map = {}
    for shard in range(shards):
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, folder / f"model-{shard}.safetensors")
        weight_map |= dict.fromkeys(part, f"model-{shard}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


def read_wanted(url: str) -> dict[str, np.ndarray]:
    with open_checkpoint("safetensors", url) as source:
        return {name: source.read(name).values for name in WANTED}


def assert_right(found: dict[str, np.ndarray], tensors: dict[str, np.ndarray]) -> None:
    for name in WANTED:
        np.testing.assert_array_equal(found[name], tensors[name])


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tail", ["", "/", "/?token=secret"])
def test_only_headers_and_wanted_tensors_are_fetched(tmp_path: Path, shards: int, tail: str) -> None:
    tensors = checkpoint(tmp_path / "www" / "model", shards=shards)
    with serving(tmp_path / "www") as server:
        assert_right(read_wanted(f"{server.url}/model{tail}"), tensors)
        whole = sum(path.stat().st_size for path in (tmp_path / "www" / "model").iterdir())
        wanted = sum(tensors[name].nbytes for name in WANTED)
        assert wanted < server.behaviour.served < wanted + 4000 + 3000 * (shards > 1)
        assert server.behaviour.served < whole / 10
        if tail.endswith("secret"):
            assert all(path.endswith("?token=secret") for path in server.behaviour.requests)


def test_a_single_file_behind_a_url(tmp_path: Path) -> None:
    tensors = checkpoint(tmp_path / "www")
    (tmp_path / "www" / "model.safetensors").rename(tmp_path / "www" / "other name.safetensors")
    with serving(tmp_path / "www") as server:
        (tmp_path / "www" / "other%20name.safetensors").symlink_to(tmp_path / "www" / "other name.safetensors")
        assert_right(read_wanted(f"{server.url}/other%20name.safetensors"), tensors)


def test_only_shards_that_hold_wanted_tensors_are_opened(tmp_path: Path) -> None:
    checkpoint(tmp_path / "www", shards=3)
    index = tmp_path / "www" / "model.safetensors.index.json"
    holder = json.loads(index.read_text())["weight_map"]["model.layers.0.mlp.weight"]
    with serving(tmp_path / "www") as server:
        with open_checkpoint("safetensors", server.url) as source:
            assert len(source.tensors) == 12
            assert source.tensors["model.layers.0.mlp.weight"].shape == (200, 200)
        assert {name for name in server.behaviour.requests if "model-" in name} == {f"/{holder}"}


@pytest.mark.parametrize("seed", range(6))
def test_a_server_that_stumbles_is_asked_again(tmp_path: Path, seed: int) -> None:
    tensors = checkpoint(tmp_path / "www", shards=2)
    with serving(tmp_path / "www", seed=seed) as server:
        assert_right(read_wanted(server.url), tensors)
        assert server.behaviour.failures["cut"]
        assert server.behaviour.failures["429"] + server.behaviour.failures["500"]


def test_retry_after_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with (
        serving(tmp_path, always=429, retry_after="7") as server,
        pytest.raises(InputError, match=r"config\.safetensors: gives up after 7 tries \(the server answers 429\)"),
        open_checkpoint("safetensors", f"{server.url}/config.safetensors"),
    ):
        pass
    assert [wait for wait in waits if wait >= 1] == [7.0] * 6


def test_waits_grow_and_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 1000.0)
    monkeypatch.setattr(remote, "_LONGEST_WAIT_S", 1e9)
    with serving(tmp_path, always=500) as server, pytest.raises(InputError, match="gives up after 7 tries"):
        read_wanted(f"{server.url}/x.safetensors")
    waits = [wait for wait in waits if wait >= 100]
    assert len(waits) == 6
    assert all(500 * 2**index <= wait <= 1500 * 2**index for index, wait in enumerate(waits))
    assert len(set(waits)) == 6


def test_a_second_run_reads_nothing_again(tmp_path: Path) -> None:
    tensors = checkpoint(tmp_path / "www", shards=2)
    with serving(tmp_path / "www") as server:
        read_wanted(server.url)
        before = server.behaviour.served
        assert_right(read_wanted(server.url), tensors)
        # Eight bytes of each file tell whether it is still the same one.
        assert server.behaviour.served - before == 3 * 8


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    tensors = checkpoint(tmp_path / "www")
    wanted = sum(tensors[name].nbytes for name in WANTED)
    with serving(tmp_path / "www", stop_after=wanted // 2) as server:
        with pytest.raises(InputError, match=r"gives up after 7 tries \(the server answers 503\); what was fetched"):
            read_wanted(server.url)
        server.behaviour.stop_after = None
        first = server.behaviour.served
        assert first >= wanted // 2
        assert_right(read_wanted(server.url), tensors)
        # Pieces that were under way when it stopped may have come twice.
        assert server.behaviour.served < wanted + 4000
        assert server.behaviour.served - first < wanted * 0.6


def test_a_changed_file_is_read_anew(tmp_path: Path, cache: Path) -> None:
    checkpoint(tmp_path / "www")
    with serving(tmp_path / "www") as server:
        read_wanted(server.url)
        kept = set(cache.rglob("*-*"))
        changed = {name: np.full((32, 48), 7, np.float32) for name in WANTED}
        changed |= {f"model.layers.{layer}.mlp.weight": np.zeros((200, 200)) for layer in range(4)}
        save_file(changed, tmp_path / "www" / "model.safetensors")
        assert_right(read_wanted(server.url), changed)
        assert not kept & set(cache.rglob("*-*"))


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    tensors = checkpoint(tmp_path / "www")
    with serving(tmp_path / "www") as server, open_checkpoint("safetensors", server.url) as source:
        source.read(WANTED[0])
        save_file({**tensors, WANTED[1]: tensors[WANTED[0]]}, tmp_path / "www" / "model.safetensors")
        with pytest.raises(InputError, match=r"model\.safetensors: changed while it was read"):
            source.read(WANTED[1])


def test_what_a_crash_left_in_the_cache_is_not_believed(tmp_path: Path, cache: Path) -> None:
    tensors = checkpoint(tmp_path / "www")
    with serving(tmp_path / "www") as server:
        read_wanted(server.url)
        for index, path in enumerate(sorted(cache.rglob("*-*"))):
            data = bytearray(path.read_bytes())
            if index % 2:
                data[0] ^= 1
            else:
                data = data[:-5]
            path.write_bytes(bytes(data))
        assert_right(read_wanted(server.url), tensors)


def test_without_a_tag_nothing_is_kept(tmp_path: Path, cache: Path) -> None:
    tensors = checkpoint(tmp_path / "www")
    with serving(tmp_path / "www", tagged=False) as server:
        assert_right(read_wanted(server.url), tensors)
    assert not list(cache.rglob("*-*"))


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GATENORM_CACHE", str(tmp_path / "file"))
    tensors = checkpoint(tmp_path / "www")
    with serving(tmp_path / "www") as server:
        assert_right(read_wanted(server.url), tensors)


def test_a_server_without_ranges_is_refused_and_not_downloaded(tmp_path: Path) -> None:
    checkpoint(tmp_path / "www")
    size = (tmp_path / "www" / "model.safetensors").stat().st_size
    with serving(tmp_path / "www", ranged=False) as server:
        with pytest.raises(InputError, match=rf"ignores range requests and would send all {size} bytes"):
            read_wanted(server.url)
        assert len(server.behaviour.requests) == 1


@pytest.mark.parametrize(("status", "says"), [(404, "answers 404"), (403, "answers 403"), (500, "gives up after 7")])
def test_what_stays_wrong_is_one_clear_line(tmp_path: Path, status: int, says: str) -> None:
    with serving(tmp_path, always=status) as server, pytest.raises(InputError, match=says) as caught:
        read_wanted(f"{server.url}/gone/model.safetensors")
    assert "/gone/model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nobody_answers() -> None:
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9/model\.safetensors: gives up after 3 tries"):
        read_wanted("http://127.0.0.1:9")


def test_secrets_of_a_url_are_not_shown(tmp_path: Path) -> None:
    with serving(tmp_path, always=404) as server:
        url = server.url.replace("//", "//me:hush@") + "/m.safetensors?signature=hush"
        with pytest.raises(InputError) as caught:
            read_wanted(url)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("port", ["99999", "abc"])
def test_a_port_that_is_none(port: str) -> None:
    with pytest.raises(InputError, match=rf"^http://127\.0\.0\.1:{port}/x.*: is no URL"):
        read_wanted(f"http://127.0.0.1:{port}/x")


def test_any_file_system_of_fsspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    tensors = checkpoint(tmp_path / "model", shards=2)
    monkeypatch.setitem(urls.SCHEMES, "memory", {})
    memory = fsspec.filesystem("memory")
    for path in (tmp_path / "model").iterdir():
        memory.pipe_file(f"/bucket/model/{path.name}", path.read_bytes())
    assert_right(read_wanted("memory://bucket/model"), tensors)
    with pytest.raises(InputError, match=r"memory://bucket/none.*\.json: not there"):
        read_wanted("memory://bucket/none")


def test_gguf_by_range(tmp_path: Path) -> None:
    import gguf

    (tmp_path / "www").mkdir()
    writer = gguf.GGUFWriter(tmp_path / "www" / "model.gguf", "llama")
    wanted = np.arange(256, dtype=np.float32).reshape(2, 128)
    writer.add_tensor("blk.0.attn_q.weight", gguf.quantize(wanted, gguf.GGMLQuantizationType.Q8_0), raw_dtype=8)
    writer.add_tensor("token_embd.weight", np.zeros((4000, 1000), np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with serving(tmp_path / "www", seed=3) as server:
        with open_checkpoint("gguf", f"{server.url}/model.gguf") as source:
            np.testing.assert_allclose(source.read("blk.0.attn_q.weight").values, wanted, atol=1)
        assert server.behaviour.served < 3_000_000


def test_what_hugging_faces_file_system_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its files read ahead unless told otherwise; and a revision is part of the name."""
    import huggingface_hub

    tensors = checkpoint(tmp_path / "model")
    data = (tmp_path / "model" / "model.safetensors").read_bytes()
    asked: list[tuple[int, int]] = []

    def info(_: object, path: str, **options: object) -> dict[str, object]:
        if path != "org/name@v1/model.safetensors":
            raise FileNotFoundError(path)
        return {"name": path, "size": len(data), "type": "file", "blob_id": "abc"}

    def fetch_range(_: object, start: int, end: int) -> bytes:
        asked.append((start, end))
        return data[start:end]

    monkeypatch.setattr(huggingface_hub.HfFileSystem, "info", info)
    monkeypatch.setattr(huggingface_hub.HfFileSystem, "resolve_path", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.hf_file_system.HfFileSystemFile.__init__", _buffered)
    monkeypatch.setattr("huggingface_hub.hf_file_system.HfFileSystemFile._fetch_range", fetch_range)
    assert_right(read_wanted("hf://org/name@v1"), tensors)
    assert sum(end - start for start, end in asked) < sum(tensors[name].nbytes for name in WANTED) + 4000


def _buffered(self, fs, path, revision=None, **options) -> None:
    import fsspec.spec

    self.resolved_path = None
    fsspec.spec.AbstractBufferedFile.__init__(self, fs, path, **options)
