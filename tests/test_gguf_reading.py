"""A GGUF file is parsed once while a model is loaded from it, and by gguf's own hand again afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gatenorm_export.gguf_reading import gguf_read_once

gguf = pytest.importorskip("gguf")


@pytest.fixture
def path(tmp_path: Path) -> str:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(1)
    writer.add_tensor("blk.0.attn_q.weight", np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(tmp_path / "m.gguf")


def test_a_header_is_parsed_once_and_anew_later(path: str) -> None:
    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    with gguf_read_once():
        first = gguf.GGUFReader(path)
        assert gguf.GGUFReader(path) is first
        llama = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1) is llama
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) is not llama
        with gguf_read_once():
            assert gguf.GGUFReader(path) is first
        assert gguf.GGUFReader(path) is first
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == (reader, names)
    with pytest.raises(KeyError), gguf_read_once():
        raise KeyError
    assert gguf.GGUFReader is reader
