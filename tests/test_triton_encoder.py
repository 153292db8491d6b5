"""A text encoder for Triton: the graph, its tokenizer as a Python model on a real server, and the ensemble of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundle_cases import sealed_anew
from model_zoo import make_tokenizer
from test_triton import config_of, session_of, shape_of

from benchmarks.matrix.models import VOCAB, family
from benchmarks.triton.server import ServerError, environment, serving
from gatenorm_export.bundling import BundleRequest, make_bundle
from gatenorm_export.bundling.opening import read_manifest
from gatenorm_export.deploying.triton import Load, TritonRequest, write_repository
from gatenorm_export.errors import RefusedError, TamperedError
from gatenorm_export.exporting import export_model
from gatenorm_export.pruning import prune_graph
from gatenorm_export.sources import resolve_model

TEXTS = ["w5 w6 w7", "w9"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    family("bert").make().save_pretrained(folder / "checkpoint")
    make_tokenizer(VOCAB).save_pretrained(folder / "checkpoint")
    export_model(resolve_model(str(folder / "checkpoint")), folder / "base")
    prune_graph(folder / "base" / "model.onnx", folder / "pruned", layers=(1,))
    make_bundle(BundleRequest(source=folder / "pruned", out=folder / "bundle", name="bert"))
    return folder / "bundle"


@pytest.fixture(scope="module")
def repository(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "models"
    record = write_repository(TritonRequest(bundle, folder, load=Load(max_batch=8, queue_delay_us=200)))
    assert {model.name: model.backend for model in record.models} == {
        "bert_onnx": "onnxruntime",
        "bert_tokenizer": "python",
        "bert": "ensemble",
    }
    assert set(record.left_out) == {"generate", "tensorrt"}
    return folder


def test_the_ensemble_joins_tokenizer_and_graph(repository: Path, bundle: Path) -> None:
    forward, tokenizing, ensemble = (config_of(repository / f"bert{end}") for end in ("_onnx", "_tokenizer", ""))
    session = session_of(bundle)
    for config in (forward, tokenizing, ensemble):
        assert config.max_batch_size == 8
    for tensors, found in ((forward.input, session.get_inputs()), (forward.output, session.get_outputs())):
        assert [(tensor.name, [-1, *tensor.dims]) for tensor in tensors] == [
            (entry.name, shape_of(entry)) for entry in found
        ]
    assert forward.dynamic_batching.max_queue_delay_microseconds == 200
    first, second = ensemble.ensemble_scheduling.step
    assert (first.model_name, second.model_name) == (tokenizing.name, forward.name)
    # Each tensor of a step comes from the request or from a step before it, under the name that its model has for it.
    assert {*first.input_map} == {entry.name for entry in tokenizing.input}
    assert {*first.output_map} == {entry.name for entry in tokenizing.output}
    assert {*second.input_map} == {entry.name for entry in forward.input}
    assert set(second.input_map.values()) <= set(first.output_map.values())
    assert set(second.output_map.values()) == {entry.name for entry in ensemble.output}
    for ours, theirs in ((tokenizing.output, forward.input), (ensemble.output, forward.output)):
        assert [(t.name, t.data_type, list(t.dims)) for t in ours] == [
            (t.name, t.data_type, list(t.dims)) for t in theirs
        ]


def test_texts_longer_than_the_encoder_takes_are_not_promised(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"--max-context 99999: the bundle takes \d+ at most"):
        write_repository(TritonRequest(bundle, tmp_path / "out", load=Load(max_context=99999)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [{"dtype": "none"}, {"shape": ("b", 7)}, {"name": "other"}])
def test_a_manifest_that_was_sealed_anew_is_held_against_the_graph(change: dict, bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.graph is not None
    outputs = (manifest.graph.outputs[0].model_copy(update=change), *manifest.graph.outputs[1:])
    forged = sealed_anew(bundle, tmp_path / "bundle", graph=manifest.graph.model_copy(update={"outputs": outputs}))
    with pytest.raises(TamperedError, match="the manifest's outputs are not the graph's"):
        write_repository(TritonRequest(forged, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_on_a_server_gives_what_the_graph_takes(repository: Path, bundle: Path, tmp_path: Path) -> None:
    import tritonclient.http as client

    try:
        environment()
    except ServerError as error:
        pytest.skip(str(error))
    # The server in the wheel has no backend for the graph, so the tokenizer's model is served alone.
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "bert_tokenizer").symlink_to(repository / "bert_tokenizer", target_is_directory=True)
    session = session_of(bundle)
    names = [entry.name for entry in session.get_inputs()]

    def ask(texts: list[str | bytes]) -> dict[str, np.ndarray]:
        tensor = client.InferInput("text", [len(texts), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(texts, np.object_)[:, None])
        answer = asking.infer("bert_tokenizer", [tensor])
        return {name: answer.as_numpy(name) for name in names}

    with (
        serving(tmp_path / "models", tmp_path / "run") as server,
        client.InferenceServerClient(server.http) as asking,
    ):
        together = ask(TEXTS)
        assert together["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
        assert together["input_ids"][0].tolist() == [5, 6, 7]
        (vectors,) = session.run([session.get_outputs()[0].name], together)
        for row, text in enumerate(TEXTS):
            (alone,) = session.run([session.get_outputs()[0].name], ask([text]))
            assert np.abs(vectors[row, : alone.shape[1]] - alone[0]).max() < 1e-4 * np.ptp(alone)
        for bad, message in ((b"\xff", "not UTF-8"), ("w5 " * 9000, "tokens"), ("", "a text has no tokens")):
            with pytest.raises(client.InferenceServerException, match=message):
                ask([bad])
        assert ask(["w5"])["input_ids"].tolist() == [[5]]
