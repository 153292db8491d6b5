"""Model repositories: configurations held against the graphs' own inputs and outputs, and what is refused.

The server in the wheel has neither an ONNX Runtime nor a TensorRT backend, so their configurations are parsed with
Triton's own protobuf, compared field by field with the graph, and what they make of a sequence is computed here.
"""

from __future__ import annotations

import ast
import json
import shutil
import sys
from pathlib import Path

import pytest
from bundle_cases import sealed_anew
from triton_cases import DROPPED, MODEL, direct, tiny_bundle

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.bundling import BundleRequest, make_bundle, open_bundle
from gatenorm_export.bundling.opening import read_manifest
from gatenorm_export.cli.main import main
from gatenorm_export.deploying.triton import RECORD_NAME, Load, Placement, TritonRequest, write_repository
from gatenorm_export.deploying.triton.backends import backend_config, engine_backend
from gatenorm_export.deploying.triton.config_text import Word, config_text
from gatenorm_export.deploying.triton.probing import GraphProbe
from gatenorm_export.errors import ExitCode, InputError, RefusedError, TamperedError, UsageError
from gatenorm_export.records import BundleEngine, EngineArtifact, Profile, ProfileBounds, TensorSpec, TritonRepository

pbtxt = pytest.importorskip("google.protobuf.text_format")
model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")

_ONNX_TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def repository(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "models"
    assert main(["triton", str(bundle), "-o", str(folder), "--quiet"]) == ExitCode.OK
    return folder


def config_of(folder: Path):
    """A model's configuration, as the server's own parser reads it: unknown fields and wrong types are errors."""
    return pbtxt.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def session_of(bundle: Path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])


def shape_of(entry) -> list[int]:
    return [length if isinstance(length, int) else -1 for length in entry.shape]


def test_a_stepped_model_has_the_graphs_tensors_and_two_states_for_each_kept_layer(
    repository: Path, bundle: Path
) -> None:
    config, session = config_of(repository / f"{MODEL}_onnx"), session_of(bundle)
    inputs = {entry.name: entry for entry in session.get_inputs()}
    outputs = {entry.name: entry for entry in session.get_outputs()}
    states = config.sequence_batching.state
    assert len(states) == 2 * (4 - len(DROPPED))
    # Together they are the graph's signature: the backend counts and wants every input, and each only once.
    assert sorted([entry.name for entry in config.input] + [state.input_name for state in states]) == sorted(inputs)
    assert sorted([entry.name for entry in config.output] + [state.output_name for state in states]) == sorted(outputs)
    assert (config.name, config.platform, config.max_batch_size) == (f"{MODEL}_onnx", "onnxruntime_onnx", 1)
    for tensors, found in ((config.input, inputs), (config.output, outputs)):
        for tensor in tensors:
            entry = found[tensor.name]
            # Outputs are compared exactly, behind the batch that the server adds.
            assert [-1, *tensor.dims] == shape_of(entry)
            assert model_config_pb2.DataType.Name(tensor.data_type) == _ONNX_TYPES[entry.type]
    pairs = [(cache["past"], cache["present"]) for cache in manifest_of(bundle)["decoding"]["caches"]]
    assert [(state.input_name, state.output_name) for state in states] == pairs
    for state in states:
        past, present = inputs[state.input_name], outputs[state.output_name]
        assert [-1, *state.dims] == shape_of(past)
        assert len(state.dims) == len(present.shape) - 1
        assert model_config_pb2.DataType.Name(state.data_type) == _ONNX_TYPES[past.type] == _ONNX_TYPES[present.type]
        (initial,) = state.initial_state
        # One position of zeros: the server makes 1 of an open length at the beginning, and would leave it unset.
        assert (initial.data_type, initial.zero_data) == (state.data_type, True)
        assert list(initial.dims) == [1 if length == -1 else length for length in state.dims]
        assert initial.name


def manifest_of(bundle: Path) -> dict:
    return json.loads((bundle / "manifest.json").read_text())


def test_a_sequence_that_begins_with_a_hidden_position_gives_the_bundles_tokens(bundle: Path) -> None:
    """What a stepped model's client does, with the state that the server makes: the same greedy tokens."""
    for prompt in ([5, 6, 7], [9, 40, 41, 42, 100, 3]):
        assert direct(bundle, prompt, 24, hidden=1) == direct(bundle, prompt, 24)


def test_the_files_that_are_served_are_the_bundles(repository: Path, bundle: Path) -> None:
    for name in (f"{MODEL}_onnx/1/model.onnx", f"{MODEL}/1/bundle/model.onnx"):
        assert (repository / name).read_bytes() == (bundle / "model.onnx").read_bytes()
    record = TritonRepository.load(repository / RECORD_NAME)
    assert {model.name: model.backend for model in record.models} == {MODEL: "python", f"{MODEL}_onnx": "onnxruntime"}
    assert record.seal == open_bundle(bundle).manifest.seal
    assert set(record.left_out) == {"tensorrt", "ensemble"}
    written = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()}
    assert written == {*record.files, RECORD_NAME}


def test_the_generating_model_needs_only_what_a_server_has(repository: Path) -> None:
    config = config_of(repository / MODEL)
    assert (config.backend, config.max_batch_size, config.model_transaction_policy.decoupled) == ("python", 0, True)
    assert all(entry.optional for entry in config.input)
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters["runtime"] == "onnxruntime"
    assert parameters["max_context"] == "16384"
    files = sorted((repository / MODEL / "1").glob("*.py"))
    allowed = {*sys.stdlib_module_names, *(path.stem for path in files), "numpy", "tokenizers", "onnxruntime"}
    found = set()
    for path in files:
        assert "gatenorm_export" not in path.read_text(), path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").split(".")[0])
    assert found <= allowed | {"triton_python_backend_utils"}


def test_placement_and_load_reach_the_configurations(bundle: Path, tmp_path: Path) -> None:
    load = Load(max_batch=4, queue_delay_us=300, max_running=16, max_waiting=9, max_context=256, default_max_tokens=7)
    placement = Placement(kind="gpu", gpus=(0, 2), instances=3, threads=5)
    write_repository(TritonRequest(bundle, tmp_path / "out", name="other", placement=placement, load=load))
    stepped, generating = config_of(tmp_path / "out" / "other_onnx"), config_of(tmp_path / "out" / "other")
    assert stepped.max_batch_size == 4
    oldest = stepped.sequence_batching.oldest
    assert (oldest.max_candidate_sequences, oldest.max_queue_delay_microseconds) == (16, 300)
    for config in (stepped, generating):
        (group,) = config.instance_group
        assert (group.count, list(group.gpus)) == (3, [0, 2])
        assert model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind) == "KIND_GPU"
    parameters = {key: value.string_value for key, value in generating.parameters.items()}
    assert {key: parameters[key] for key in ("max_batch", "max_running", "max_waiting", "max_context")} == {
        "max_batch": "4",
        "max_running": "16",
        "max_waiting": "9",
        "max_context": "256",
    }
    assert (parameters["default_max_tokens"], parameters["threads"]) == ("7", "5")


def engine_of(bundle: Path, *, batch: int = 4, prompt: int = 64, context: int = 256) -> BundleEngine:
    """An engine of this bundle's graph with caches in half precision, as its entry in a manifest would be."""
    manifest = open_bundle(bundle).manifest
    caches = {cache.past for cache in manifest.decoding.caches} | {cache.present for cache in manifest.decoding.caches}

    def narrow(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(spec.model_copy(update={"dtype": "float16"}) if spec.name in caches else spec for spec in specs)

    def profile(name: str, step: int, past: int) -> Profile:
        lengths = {"batch_size": batch, "sequence_length": step, "past_sequence_length": past}
        bounds = []
        for spec in manifest.graph.inputs:
            most = tuple(
                length if isinstance(length, int) else sum(lengths[part.strip()] for part in length.split("+"))
                for length in spec.shape
            )
            bounds.append(ProfileBounds(input=spec.name, min=(1,) * len(most), opt=most, max=most))
        return Profile(name=name, bounds=tuple(bounds))

    return BundleEngine(
        file="engines/pruned.engine",
        record="engines/pruned.engine.json",
        flavour="tensorrt",
        flavour_version="10.5.0",
        gpu="a GPU",
        capabilities=("9.0",),
        precision="fp16",
        profiles=(profile("prefill", prompt, context - prompt), profile("decode", 2, context - 1)),
        inputs=narrow(manifest.graph.inputs),
        outputs=narrow(manifest.graph.outputs),
        not_reproducible="kernels are timed",
    )


def test_an_engine_is_configured_by_its_own_bindings(bundle: Path, tmp_path: Path) -> None:
    engine, decoding = engine_of(bundle), open_bundle(bundle).manifest.decoding
    request = TritonRequest(bundle, tmp_path, load=Load(max_batch=4))
    text = config_text(backend_config("engine", engine_backend(engine, decoding), request))
    config = pbtxt.Parse(text, model_config_pb2.ModelConfig())
    assert (config.platform, config.default_model_filename) == ("tensorrt_plan", "model.plan")
    (group,) = config.instance_group
    # Both profiles are named, for an instance uses the first alone unless told.
    assert (group.kind, list(group.profile)) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, ["0", "1"])
    bindings = {spec.name: spec for spec in (*engine.inputs, *engine.outputs)}
    states = config.sequence_batching.state
    assert len(states) == 2 * (4 - len(DROPPED))
    named = [entry.name for entry in (*config.input, *config.output)]
    named += [name for state in states for name in (state.input_name, state.output_name)]
    assert sorted(named) == sorted(bindings)
    assert all(model_config_pb2.DataType.Name(state.data_type) == "TYPE_FP16" for state in states)
    with pytest.raises(RefusedError, match="--max-batch 5: engine takes 4 at most"):
        backend_config(
            "engine", engine_backend(engine, decoding), TritonRequest(bundle, tmp_path, load=Load(max_batch=5))
        )
    with pytest.raises(RefusedError, match="--context longer than --prompt"):
        engine_backend(engine_of(bundle, prompt=64, context=64), decoding)


def test_an_engine_of_tensorrt_is_served_as_it_is(bundle: Path, tmp_path: Path) -> None:
    entry, graph = engine_of(bundle), open_bundle(bundle).manifest.graph
    engine = tmp_path / "pruned.engine"
    engine.write_bytes(b"ftrt" + bytes(100))
    EngineArtifact(
        engine=engine.name,
        sha256=sha256_of(engine),
        bytes=engine.stat().st_size,
        parent_sha256=graph.sha256,
        flavour="tensorrt",
        flavour_version=entry.flavour_version,
        precision="fp32",
        profiles=entry.profiles,
        n_network_layers=1,
        n_inputs=len(graph.inputs),
        n_outputs=len(graph.outputs),
        gpu="a GPU",
        build_seconds=1.0,
        built_on="here",
    ).save(tmp_path / "pruned.engine.json")
    make_bundle(BundleRequest(source=bundle, out=tmp_path / "bundle", engines=(engine,), name=MODEL))
    with pytest.raises(RefusedError, match=r"pruned\.engine takes 4 at most"):
        large = Load(max_batch=5)
        write_repository(
            TritonRequest(tmp_path / "bundle", tmp_path / "out", models=("generate",), runtime="tensorrt", load=large)
        )
    request = TritonRequest(tmp_path / "bundle", tmp_path / "out", runtime="tensorrt", load=Load(max_batch=2))
    record = write_repository(request)
    assert [model.name for model in record.models] == [MODEL, f"{MODEL}_onnx", f"{MODEL}_tensorrt"]
    assert (tmp_path / "out" / f"{MODEL}_tensorrt" / "1" / "model.plan").read_bytes() == engine.read_bytes()
    assert config_of(tmp_path / "out" / f"{MODEL}_tensorrt").platform == "tensorrt_plan"
    generating = config_of(tmp_path / "out" / MODEL)
    parameters = {key: value.string_value for key, value in generating.parameters.items()}
    assert (parameters["runtime"], parameters["engine"]) == ("tensorrt", "engines/pruned.engine")
    # The longest cache of the decode profile, and the new token.
    assert parameters["max_context"] == "256"
    assert generating.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    served = {path.name for path in (tmp_path / "out" / MODEL / "1" / "bundle").rglob("*") if path.is_file()}
    assert "pruned.engine" in served
    assert "model.onnx" not in served
    code = {path.name for path in (tmp_path / "out" / MODEL / "1").glob("*.py")}
    assert {"tensorrt_runtime.py", "cuda.py"} <= code


def test_what_the_bundle_has_no_part_for_is_refused_where_it_was_asked_for(bundle: Path, tmp_path: Path) -> None:
    for options, message in (
        (["--models", "tensorrt"], "no engine of TensorRT"),
        (["--models", "ensemble"], "in the generating model"),
        (["--runtime", "tensorrt", "--models", "generate"], "has no engine"),
        (["--max-context", "99999", "--models", "generate"], "takes 16384 at most"),
        (["--max-context", "99999"], "--max-context 99999: the bundle takes 16384 at most"),
        (["--runtime", "tensorrt"], "--runtime tensorrt: the bundle has no engine"),
    ):
        with pytest.raises(RefusedError, match=message):
            write_repository(_request(bundle, tmp_path / "out", options))
        assert not (tmp_path / "out").exists()
    for options in (
        ["--models", "gpu"],
        ["--max-batch", "0"],
        ["--name", "a/b"],
        ["--name", "../x"],
        ["--instances", str(2**31)],
        ["--queue-delay", str(2**63)],
        ["--drain", "-1"],
    ):
        with pytest.raises(UsageError):
            _request(bundle, tmp_path / "out", options)


def test_what_means_nothing_or_more_than_it_says_is_noted(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert main(["triton", str(bundle), "-o", out, "--drain", "30", "--models", "generate", "--json", "-q"]) == 0
    (note,) = json.loads(capfd.readouterr().out)["notes"]
    assert note == "--drain 30: the server waits 30 seconds by itself; start it with --exit-timeout-secs=40"
    options = ["--models", "onnxruntime", "--max-context", "64", "--runtime", "onnxruntime", "--drain", "29"]
    assert main(["triton", str(bundle), "-o", out, *options, "-q"]) == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert "note: --runtime onnxruntime: is for the generating model, which is not there" in shown
    assert "note: --max-context 64: is for models that take text, of which none is there" in shown
    assert "--drain" not in shown


def _request(bundle: Path, out: Path, options: list[str]) -> TritonRequest:
    """What the command line makes of options."""
    from gatenorm_export.cli.main import make_parser
    from gatenorm_export.cli.triton import request_of

    return request_of(make_parser(["triton"]).parse_args(["triton", str(bundle), "-o", str(out), *options]))


def test_a_graph_whose_mask_hides_nothing_is_not_stepped(bundle: Path, tmp_path: Path) -> None:
    """Seen by trying the graph, not by its operators: here the mask is not read at all."""
    import onnx

    model = onnx.load(bundle / "model.onnx")
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "attention_mask":
                node.input[index] = "seen"
    shape = onnx.helper.make_node("Shape", ["attention_mask"], ["seen_shape"])
    ones = onnx.helper.make_node(
        "ConstantOfShape",
        ["seen_shape"],
        ["seen"],
        value=onnx.helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1]),
    )
    model.graph.node.insert(0, ones)
    model.graph.node.insert(0, shape)
    (tmp_path / "graph").mkdir()
    onnx.save(model, tmp_path / "graph" / "model.onnx")
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(bundle / name, tmp_path / "graph" / name)
    make_bundle(BundleRequest(source=tmp_path / "graph", out=tmp_path / "bundle"))
    record = write_repository(TritonRequest(tmp_path / "bundle", tmp_path / "out"))
    assert [model.backend for model in record.models] == ["python"]
    assert "does not hide it behind its mask" in record.left_out["onnxruntime"]
    with pytest.raises(RefusedError, match="leave it at 1"):
        write_repository(
            TritonRequest(tmp_path / "bundle", tmp_path / "other", models=("generate",), load=Load(max_batch=2))
        )


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"past": "no_such_input"}, "no_such_input"), ({"shape": ("b", 7, "p", 24)}, "Got invalid dimensions")],
)
def test_a_graph_that_does_not_run_as_a_sealed_manifest_says_is_refused_in_a_line(
    change: dict, reason: str, bundle: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(bundle)
    assert manifest.decoding is not None
    caches = (manifest.decoding.caches[0].model_copy(update=change), *manifest.decoding.caches[1:])
    forged = sealed_anew(bundle, tmp_path / "bundle", decoding=manifest.decoding.model_copy(update={"caches": caches}))
    with pytest.raises(TamperedError, match=r"bundle: the manifest's cache tensors are not the graph's; see `gatenorm"):
        write_repository(TritonRequest(forged, tmp_path / "out"))
    with pytest.raises(InputError, match=rf"bundle: its graph does not run as the manifest says .*{reason}"):
        GraphProbe(forged, read_manifest(forged)).check_hidden_position()
    assert not (tmp_path / "out").exists()


def test_only_a_repository_of_ours_is_replaced_and_a_touched_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    request = TritonRequest(bundle, out, models=("generate",))
    write_repository(request)
    (out / MODEL / "1" / "__pycache__").mkdir()
    (out / MODEL / "1" / "__pycache__" / "model.pyc").write_bytes(b"of the server's Python")
    assert write_repository(TritonRequest(bundle, out, name="again", models=("generate",))).models[0].name == "again"
    assert not (out / MODEL).exists()
    (out / "mine").mkdir()
    (out / "mine" / "config.pbtxt").write_text('name: "mine"\n')
    with pytest.raises(RefusedError, match=r"mine/config.pbtxt, which gatenorm did not write"):
        write_repository(request)
    strange = tmp_path / "strange"
    (strange / "model").mkdir(parents=True)
    with pytest.raises(RefusedError, match="no repository that gatenorm wrote"):
        write_repository(TritonRequest(bundle, strange))
    touched = tmp_path / "touched"
    shutil.copytree(bundle, touched)
    (touched / "config.json").write_text("{}")
    with pytest.raises(TamperedError, match=r"config\.json was changed"):
        write_repository(TritonRequest(touched, tmp_path / "none"))
    assert main(["triton", str(touched), "-o", str(tmp_path / "none"), "-q"]) == ExitCode.TAMPERED
    assert not (tmp_path / "none").exists()
    # The lock beside the output would be what touches the bundle.
    assert main(["triton", str(bundle), "-o", str(bundle / "models"), "-q"]) == ExitCode.OUTPUT
    assert not [path.name for path in bundle.iterdir() if path.name.startswith(".gatenorm")]


def test_a_write_that_fails_leaves_the_repository_as_it_was(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "models"
    write_repository(TritonRequest(bundle, out, models=("generate",)))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gatenorm_export.deploying.triton.python_models.shutil.copyfile", fail)
    assert main(["triton", str(bundle), "-o", str(out), "--models", "generate", "-q"]) == ExitCode.OUTPUT
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_text_format_is_protobufs() -> None:
    text = config_text({"name": 'a "b"\n\\ é', "max_batch_size": 0, "input": [{"name": "x", "dims": [-1, 2]}]})
    config = pbtxt.Parse(text, model_config_pb2.ModelConfig())
    assert (config.name, list(config.input[0].dims)) == ('a "b"\n\\ é', [-1, 2])
    kind = config_text({"instance_group": [{"kind": Word("KIND_CPU")}], "dynamic_batching": {}})
    assert pbtxt.Parse(kind, model_config_pb2.ModelConfig()).HasField("dynamic_batching")
