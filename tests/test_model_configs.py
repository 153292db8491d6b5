"""How long sequences may be, by what lies beside a model: a table of positions, or only what it was made for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from bench_cases import FakeBackend
from engine_cases import write_graph

from gatenorm_export.benching import BenchRequest, run_bench
from gatenorm_export.benching.protocol import STEPS
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.executing.model_files import graph_inputs
from gatenorm_export.model_configs import configs_from, configs_in, configs_of
from gatenorm_export.records import ModelSpec


def write_config(folder: Path, content: object, name: str = "config.json") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("config", "most", "table"),
    [
        ({"model_type": "gpt2", "n_positions": 64}, 64, 64),
        ({"model_type": "opt", "max_position_embeddings": 64}, 64, 64),
        ({"model_type": "mpt", "max_seq_len": 64}, 64, 64),
        ({"model_type": "llama", "max_position_embeddings": 64}, 64, None),
        ({"model_type": "bloom", "seq_length": 64}, 64, None),
        ({"model_type": ["gpt2"], "n_positions": True}, None, None),
        ({}, None, None),
    ],
    ids=str,
)
def test_a_table_of_positions_is_told_by_the_family(tmp_path: Path, config: Any, most: Any, table: Any) -> None:
    configs = configs_in(write_config(tmp_path, config))
    assert (configs.max_positions, configs.table_of_positions) == (most, table)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "gptj", "codegen", "gpt_bigcode", "opt", "mpt"])
def test_a_config_that_does_not_say_has_its_family_s_length(tmp_path: Path, family: str) -> None:
    """As transformers fills it in."""
    told = configs_from(transformers.CONFIG_MAPPING[family]())
    silent = configs_in(write_config(tmp_path, {"model_type": family}))
    assert silent.table_of_positions == told.max_positions == told.table_of_positions


def test_a_graph_of_genai_has_a_table_whatever_the_family(tmp_path: Path) -> None:
    write_config(tmp_path, {"model": {"context_length": 48, "decoder": {}}}, "genai_config.json")
    assert configs_in(tmp_path).table_of_positions == 48


def test_the_checkpoint_s_config_stands_in_for_an_absent_one(tmp_path: Path) -> None:
    checkpoint = write_config(tmp_path / "checkpoint", {"model_type": "gpt2", "n_positions": 32})
    (tmp_path / "graph").mkdir()
    spec = ModelSpec.model_construct(path=str(checkpoint), source="checkpoint")
    assert configs_of(tmp_path / "graph", None).table_of_positions is None
    assert configs_of(tmp_path / "graph", spec).table_of_positions == 32
    write_config(tmp_path / "graph", {"model_type": "gpt2", "n_positions": 16})
    assert configs_of(tmp_path / "graph", spec).table_of_positions == 16
    (tmp_path / "graph" / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config\.json: not a JSON object"):
        configs_of(tmp_path / "graph", spec)


def test_a_bench_beyond_a_table_is_refused_before_it_begins() -> None:
    backend = FakeBackend()
    pair = dataclasses.replace(backend.pair(), table_of_positions=8 + STEPS)
    assert run_bench(backend, pair, BenchRequest(sequences=(8,), repeats=8)).rows
    backend.log.clear()
    with pytest.raises(RefusedError, match=r"--sequence 9: .* a table of 24 positions; give 8 at most"):
        run_bench(backend, pair, BenchRequest(sequences=(9, 4), repeats=8))
    assert backend.log == []


def test_configs_go_with_a_graph_to_another_machine(tmp_path: Path) -> None:
    """There a build and a bench have to know the same limits."""
    graph = write_graph(write_config(tmp_path, {"model_type": "gpt2"}) / "g.onnx")
    assert [file.name for file in graph_inputs(graph, "graph")] == ["graph/g.onnx", "graph/config.json"]
