"""Write a model repository that a stock Triton server takes, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from gatenorm_export.artifacts import replaced_folder
from gatenorm_export.bundling import Bundle, open_bundle
from gatenorm_export.bundling.agreement import first_untruth
from gatenorm_export.bundling.interface import read_interface
from gatenorm_export.deploying.triton.backends import (
    Backend,
    backend_config,
    check_stepping,
    engine_backend,
    onnx_backend,
)
from gatenorm_export.deploying.triton.config_text import Value, config_text
from gatenorm_export.deploying.triton.encoders import (
    check_text_encoder,
    ensemble_config,
    max_length,
    tokenizing_config,
)
from gatenorm_export.deploying.triton.generating import choose_runtime, generating_config, max_context
from gatenorm_export.deploying.triton.probing import GraphProbe
from gatenorm_export.deploying.triton.python_models import write_generating, write_tokenizing
from gatenorm_export.deploying.triton.request import EXIT_SECONDS, MODEL_KINDS, ModelKind, TritonRequest, model_name
from gatenorm_export.errors import RefusedError, TamperedError
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import BundleGraph, BundleManifest, TritonModel, TritonRepository

RECORD_NAME = "gatenorm-triton.json"
"""Lies beside the models, where the server looks at folders only; it is what tells a repository of ours from others."""


def write_repository(request: TritonRequest, *, progress: Progress | None = None) -> TritonRepository:
    """Write the repository of a bundle; one that was written before is replaced in one step.

    Raises:
        InputError: the folder is no bundle.
        TamperedError: the bundle was touched, or its manifest is not true of its graph.
        RefusedError: the bundle has no part for what was asked, or the output holds what this did not write.
        OutputError: the output cannot be written.
    """
    progress = progress or Quiet()
    _check_replaceable(request.out)
    with progress.task("check the bundle"):
        bundle = open_bundle(request.bundle)
        _check_manifest(bundle)
    with replaced_folder(request.out) as staging:
        writer = _Writer(bundle, request, staging, progress)
        models, left_out = writer.write()
        notes = _notes(request, {kind for kind in request.models or MODEL_KINDS if kind not in left_out})
        record = TritonRepository(
            bundle=bundle.manifest.name,
            seal=bundle.manifest.seal,
            models=tuple(models),
            left_out=left_out,
            notes=notes,
            files=tuple(sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file())),
        )
        record.save(staging / RECORD_NAME)
    return record


def _check_manifest(bundle: Bundle) -> None:
    """Hold the manifest against graph, record and configs: whoever forged it can have sealed it anew."""
    graph = bundle.manifest.graph
    if graph is None:
        return
    found = read_interface(bundle.path(graph.file), graph.file)
    finding = first_untruth(bundle, found, bundle.configs())
    if finding is not None:
        raise TamperedError(f"{bundle.folder}: {finding}; see `gatenorm verify`")


def _check_replaceable(out: Path) -> None:
    """Make sure that ``out`` may be replaced: it is absent, empty, or holds what was written here and nothing else."""
    if not out.is_dir() or not any(out.iterdir()):
        return
    record = out / RECORD_NAME
    if not record.is_file():
        raise RefusedError(f"{out}: is not empty, and no repository that gatenorm wrote; choose another output")
    known = {RECORD_NAME, *TritonRepository.load(record).files}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if "__pycache__" in path.parts:
            continue  # Python's own, from when the repository was served
        if (path.is_symlink() or not path.is_dir()) and name not in known:
            raise RefusedError(
                f"{out}: holds {name}, which gatenorm did not write; move it away, or choose another output"
            )


def _notes(request: TritonRequest, written: set[ModelKind]) -> tuple[str, ...]:
    """What was asked for and means something else, or nothing, where this repository is served."""
    notes = []
    drain = request.load.drain_seconds
    if "generate" in written and drain >= EXIT_SECONDS:
        notes.append(
            f"--drain {drain}: the server waits {EXIT_SECONDS} seconds by itself; start it with "
            f"--exit-timeout-secs={drain + 10}"
        )
    if request.runtime is not None and "generate" not in written:
        notes.append(f"--runtime {request.runtime}: is for the generating model, which is not there")
    if request.load.max_context is not None and not written & {"generate", "ensemble"}:
        notes.append(
            f"--max-context {request.load.max_context}: is for models that take text, of which none is there; a model "
            "that is stepped counts no tokens"
        )
    return tuple(notes)


_STEPPED = "one step a request, caches kept by the server"


class _Writer:
    """Writes every model that was asked for into ``staging``."""

    def __init__(self, bundle: Bundle, request: TritonRequest, staging: Path, progress: Progress) -> None:
        self._bundle, self._request, self._staging, self._progress = bundle, request, staging, progress
        self._manifest: BundleManifest = bundle.manifest
        self._name = request.name or model_name(bundle.manifest.name)
        self._probe: GraphProbe | None = None

    def write(self) -> tuple[list[TritonModel], dict[str, str]]:
        """The models, and why each other kind was left out.

        Raises:
            RefusedError: a kind that was asked for is not possible, or none is; or the bundle has no such runtime, or
                not so much context.
        """
        self._check_asked()
        models: list[TritonModel] = []
        left_out: dict[str, str] = {}
        for kind in self._request.models or MODEL_KINDS:
            try:
                models += list(self._writers()[kind]())
            except RefusedError as error:
                if self._request.models:
                    raise RefusedError(f"--models {kind}: {error}") from error
                left_out[kind] = str(error)
        if not models:
            raise RefusedError(f"{self._request.bundle}: {'; '.join(left_out.values())}")
        return models, left_out

    def _check_asked(self) -> None:
        """Options of a model that takes text are not to leave it out: what it cannot do was asked for by name."""
        runtime, context = self._request.runtime, self._request.load.max_context
        kinds = self._request.models or MODEL_KINDS
        if self._manifest.decoding is not None and "generate" in kinds:
            engine = choose_runtime(self._manifest, runtime)[1] if runtime or context else None
            if context is not None:
                max_context(self._manifest, engine, context)
        elif self._manifest.task == "encoder" and "ensemble" in kinds and context is not None:
            max_length(self._bundle, context)

    def _writers(self) -> dict[ModelKind, Callable[[], Iterator[TritonModel]]]:
        return {
            "generate": self._generating,
            "onnxruntime": self._onnxruntime,
            "tensorrt": self._tensorrt,
            "ensemble": self._ensemble,
        }

    def _generating(self) -> Iterator[TritonModel]:
        if self._manifest.decoding is None:
            raise RefusedError(f"the bundle is not generated from: {self._manifest.no_decoding}")
        config = generating_config(self._name, self._manifest, self._request)
        if self._request.load.max_batch > 1 and self._manifest.graph is not None:
            self._graph_probe().check_left_padding()
        with self._progress.task(f"write {self._name}"):
            write_generating(self._folder(self._name), self._bundle, self._request)
            self._write_config(config)
        yield TritonModel(name=self._name, backend="python", does="text or tokens in, text and tokens out, streamed")

    def _onnxruntime(self) -> Iterator[TritonModel]:
        graph, decoding = self._graph(), self._manifest.decoding
        name = f"{self._name}_onnx"
        if self._manifest.companions:
            raise RefusedError("a speech model is several graphs that call each other, which no model here does")
        if decoding is not None:
            check_stepping(decoding)
            if decoding.caches:
                self._graph_probe().check_hidden_position()
        config = backend_config(name, onnx_backend(graph, decoding), self._request)
        with self._progress.task(f"write {name}"):
            for file in self._manifest.files:
                if file.role in {"graph", "weights"}:
                    self._copy(file.name, self._folder(name) / file.name)
            self._write_config(config)
        does = _STEPPED if decoding is not None else "one call of the graph"
        yield TritonModel(name=name, backend="onnxruntime", does=does)

    def _tensorrt(self) -> Iterator[TritonModel]:
        decoding = self._manifest.decoding
        engines = [engine for engine in self._manifest.engines if engine.flavour == "tensorrt"]
        if not engines:
            others = ", ".join(sorted({engine.flavour for engine in self._manifest.engines}))
            raise RefusedError(
                "the bundle has no engine of TensorRT, which is what Triton's TensorRT backend loads"
                + (
                    f" (it has one of {others}, which the generating model runs with --runtime tensorrt)"
                    if others
                    else ""
                )
            )
        if decoding is None:
            raise RefusedError(f"the bundle is not stepped: {self._manifest.no_decoding}")
        check_stepping(decoding)
        for engine in engines:
            suffix = "tensorrt" if len(engines) == 1 else model_name(Path(engine.file).stem)
            name = f"{self._name}_{suffix}"
            backend: Backend = engine_backend(engine, decoding)
            config = backend_config(name, backend, self._request)
            with self._progress.task(f"write {name}"):
                self._copy(engine.file, self._folder(name) / backend.file)
                self._write_config(config)
            yield TritonModel(name=name, backend="tensorrt", does=_STEPPED)

    def _ensemble(self) -> Iterator[TritonModel]:
        if self._manifest.decoding is not None:
            raise RefusedError("a decoder's tokenizer is in the generating model, since single tokens are no text")
        graph = self._graph()
        if self._manifest.task != "encoder" or not any(file.name == "tokenizer.json" for file in self._manifest.files):
            raise RefusedError("only an encoder that was bundled with its tokenizer takes text")
        check_text_encoder(graph)
        tokenizing = f"{self._name}_tokenizer"
        with self._progress.task(f"write {tokenizing} and {self._name}"):
            write_tokenizing(self._folder(tokenizing), self._bundle)
            length = max_length(self._bundle, self._request.load.max_context)
            self._write_config(tokenizing_config(tokenizing, graph, self._request, length))
            # The server wants a version folder of every model, and an ensemble's is empty but for this.
            self._folder(self._name).mkdir(parents=True)
            (self._folder(self._name) / "README").write_text("An ensemble has no file of its own.\n", encoding="utf-8")
            forward = f"{self._name}_onnx"
            self._write_config(ensemble_config(self._name, tokenizing, forward, graph, self._request.load.max_batch))
        yield TritonModel(name=tokenizing, backend="python", does="text to the graph's inputs")
        yield TritonModel(name=self._name, backend="ensemble", does="text in, the graph's outputs out")

    def _graph(self) -> BundleGraph:
        if self._manifest.graph is None:
            raise RefusedError("the bundle has no ONNX graph")
        return self._manifest.graph

    def _graph_probe(self) -> GraphProbe:
        if self._probe is None:
            with self._progress.task("try the graph"):
                self._probe = GraphProbe(self._bundle.folder, self._manifest)
        return self._probe

    def _folder(self, name: str) -> Path:
        """Where a model's one version lies."""
        return self._staging / name / "1"

    def _copy(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._bundle.path(name), target)

    def _write_config(self, config: dict[str, Value]) -> None:
        (self._staging / str(config["name"]) / "config.pbtxt").write_text(config_text(config), encoding="utf-8")
