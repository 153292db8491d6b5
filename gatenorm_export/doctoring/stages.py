"""What each stage needs, one row a stage: extras of pyproject.toml, and parts that are no packages."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Stage:
    """A thing that gatenorm does, the verb that does it, and all that it needs beyond a plain installation.

    ``option`` is the option of the verb that asks for it and its value, "" standing for any; None where none does.
    """

    name: str
    verb: str
    does: str
    extras: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    option: tuple[str, str] | None = None


_FRAMEWORK = ("export", "ort")

STAGES = (
    Stage("score", "score", "scores of safetensors and GGUF"),
    Stage("score-onnx", "score", "scores of the weights in an ONNX graph", ("onnx",)),
    Stage("score-remote", "score", "scores of a URL", ("remote",)),
    Stage("score-hub", "score", "scores of a hub id, or of PyTorch .bin files", ("export",)),
    Stage("plan", "plan", "which layers go, by scores"),
    Stage("plan-guard", "plan", "which layers go, by measuring (--guard)", _FRAMEWORK, option=("guard", "")),
    Stage("run", "run", "the whole job; engines where TensorRT is installed", _FRAMEWORK),
    Stage("export", "export", "checkpoint to ONNX, checked", _FRAMEWORK),
    Stage("inspect", "inspect", "attention of an ONNX graph", ("onnx",)),
    Stage("prune", "prune", "surgery on an ONNX graph", ("onnx",)),
    Stage("prune-repair", "prune", "a stand-in fitted on text (--repair)", _FRAMEWORK, option=("repair", "")),
    Stage("build-tensorrt-rtx", "build", "TensorRT-RTX engines", ("onnx",), ("tensorrt-rtx",)),
    Stage("build-tensorrt", "build", "TensorRT engines", ("onnx",), ("tensorrt", "gpu")),
    Stage("compare", "compare", "faithfulness, quality, latency, sizes", _FRAMEWORK),
    Stage(
        "compare-images",
        "compare",
        "the same on pictures of yours (--images)",
        (*_FRAMEWORK, "images"),
        option=("images", ""),
    ),
    Stage("compare-engines", "compare", "engines held against their graphs", _FRAMEWORK, ("any-tensorrt", "gpu")),
    *(
        Stage(f"bench-{backend}", "bench", f"latency {of}", extras, parts, option=("backend", backend))
        for backend, of, extras, parts in (
            ("ort-cpu", "on ONNX Runtime, CPU", ("ort",), ()),
            ("ort-cuda", "on ONNX Runtime, CUDA", ("ort", "export"), ("cuda-provider", "gpu")),
            ("tensorrt-rtx", "of TensorRT-RTX engines", ("export",), ("tensorrt-rtx", "gpu")),
            ("tensorrt", "of TensorRT engines", ("export",), ("tensorrt", "gpu")),
            ("torch", "in torch", ("export",), ()),
        )
    ),
    Stage("correlate", "correlate", "scores beside what attention does on a text", ("export",)),
    Stage("sweep", "sweep", "rankings and repairs at several numbers of layers", _FRAMEWORK),
    Stage(
        "sweep-ray",
        "sweep",
        "the same on a Ray cluster (--executor ray)",
        (*_FRAMEWORK, "ray"),
        option=("executor", "ray"),
    ),
    Stage("eval", "eval", "zero-shot tasks of lm-eval", ("eval",)),
    Stage("recover", "recover", "fine-tuning with LoRA", ("recover",)),
    Stage("report", "report", "the report of a run folder"),
    Stage("bundle", "bundle", "one folder for a server", ("ort",)),
    Stage("verify", "verify", "a bundle checked and probed", ("ort",)),
    Stage("verify-model", "verify", "faithfulness proved anew (--model)", _FRAMEWORK, option=("model", "")),
    Stage("triton", "triton", "a model repository for Triton", ("ort",)),
    Stage("triton-serve", "triton", "serving that repository here", ("triton",), ("tritonserver",)),
    Stage("cpp", "cpp", "the C++ decoder built here", (), ("c++", "cmake", "nlohmann-json", "c++ runtime")),
)
