"""The framework model: loaded from a checkpoint, and with attention branches switched off."""

from __future__ import annotations

import contextlib
import json
import operator
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatenorm_export.architectures import adapter_for
from gatenorm_export.branch_hooks import hook_branch
from gatenorm_export.errors import InputError, RefusedError, needs
from gatenorm_export.gguf_reading import gguf_read_once
from gatenorm_export.graphs import TOKENIZER_FILES
from gatenorm_export.kinds import kind_of
from gatenorm_export.records import ModelSpec
from gatenorm_export.silence import silenced

if TYPE_CHECKING:
    from gatenorm_export.repairs import LayerRepair


def load_framework_model(spec: ModelSpec, tower: str = "") -> tuple[Any, Any | None]:
    """Load a checkpoint into transformers, fp32, in evaluation mode; and its tokenizer, or None where it has none.

    The class is that of the architecture; of a checkpoint of several towers side by side only ``tower`` is loaded.
    Nothing is fetched and no code of the checkpoint is run.

    Raises:
        MissingPartError: torch or transformers is not installed.
        InputError: transformers cannot load the checkpoint.
        RefusedError: the architecture is not one that is exported, or a tower has to be named.
    """
    loader = kind_of(spec, tower).loader
    with needs("export", "the framework model"):
        import torch  # noqa: F401
        import transformers  # noqa: F401
    with gguf_read_once():
        model = _load_model(spec, loader, tower)
        return model, load_tokenizer(None, spec)


def _load_model(spec: ModelSpec, loader: str, tower: str) -> Any:
    import torch
    import transformers

    folder, options = _location(spec)
    with silenced():
        try:
            options |= _tower_config(folder, loader, tower)
            model = getattr(transformers, loader).from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, **options
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise InputError(f"{spec.path}: transformers cannot load it ({type(error).__name__}: {first})") from error
    if getattr(model.config, "attn_logit_softcapping", None) is not None:
        # Gemma 2 caps its attention scores; torch's fused attention, the default, leaves the cap out.
        model.set_attn_implementation("eager")
    return model.eval()


def _tower_config(folder: str, loader: str, tower: str) -> dict[str, Any]:
    """The config of one CLIP tower: its projection has the size that the whole model's config says, not its own."""
    if not loader.endswith("ModelWithProjection") or not tower:
        return {}
    from transformers import AutoConfig

    whole = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    section = getattr(whole, f"{tower}_config", None)
    if section is None:
        return {}
    section.projection_dim = whole.projection_dim
    return {"config": section}


def load_config(folder: Path, spec: ModelSpec | None) -> Any:
    """The transformers config beside a graph, or else the checkpoint's; of CLIP's two towers that of the exported one.

    Raises:
        MissingPartError: transformers is not installed.
        InputError: there is none, or it cannot be read.
    """
    with needs("export", "reading the model's config"):
        import transformers
    places = [folder, *([Path(spec.path)] if spec is not None and spec.source != "gguf" else [])]
    place = next((place for place in places if (place / "config.json").is_file()), None)
    if place is None:
        raise InputError(f"{folder}: holds no config.json, which tells what to feed the graph; copy the model's there")
    with silenced():
        try:
            kind = json.loads((place / "config.json").read_text(encoding="utf-8")).get("model_type")
            # A tower of SigLIP is a model of its own that transformers' automatic classes do not know.
            loader = getattr(transformers, "SiglipTextConfig" if kind == "siglip_text_model" else "AutoConfig")
            return loader.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise InputError(f"{place / 'config.json'}: transformers cannot read it ({first})") from error


def load_feature_extractor(folder: Path, spec: ModelSpec | None, config: Any) -> Any:
    """What turns sound into Whisper's features, as the checkpoint describes it, or as ``config`` implies.

    Raises:
        InputError: a description is there but cannot be read.
    """
    from transformers import WhisperFeatureExtractor

    for place in (folder, *([Path(spec.path)] if spec is not None else [])):
        if (place / "preprocessor_config.json").is_file():
            try:
                return WhisperFeatureExtractor.from_pretrained(str(place), local_files_only=True)
            except (OSError, ValueError, KeyError, TypeError) as error:
                first = (str(error).strip().splitlines() or [""])[0]
                raise InputError(f"{place / 'preprocessor_config.json'}: cannot be read ({first})") from error
    return WhisperFeatureExtractor(feature_size=config.num_mel_bins)


def load_generation_config(folder: Path, spec: ModelSpec | None) -> Any | None:
    """The generation config beside a graph or in the checkpoint; None where there is none.

    Raises:
        InputError: it is there but cannot be read.
    """
    from transformers import GenerationConfig

    for place in (folder, *([Path(spec.path)] if spec is not None else [])):
        if (place / "generation_config.json").is_file():
            try:
                return GenerationConfig.from_pretrained(str(place), local_files_only=True)
            except (OSError, ValueError, TypeError) as error:
                first = (str(error).strip().splitlines() or [""])[0]
                raise InputError(f"{place / 'generation_config.json'}: cannot be read ({first})") from error
    return None


def load_tokenizer(folder: Path | None, spec: ModelSpec | None) -> Any | None:
    """The tokenizer in ``folder``, or else the checkpoint's; None where neither has one.

    Raises:
        ImportError: transformers is not installed.
        InputError: a tokenizer is there but cannot be loaded.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folders = [folder] if folder is not None else []
    if spec is not None and spec.source != "gguf":
        folders.append(Path(spec.path))
    for place in folders:
        if any((place / name).is_file() for name in TOKENIZER_FILES):
            kind = PreTrainedTokenizerFast if _of_transformers_5(place) else AutoTokenizer
            with silenced():
                try:
                    return kind.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)
                except (OSError, ValueError, KeyError, TypeError) as error:
                    first = (str(error).strip().splitlines() or [""])[0]
                    raise InputError(f"{place}: its tokenizer cannot be loaded ({first})") from error
    if spec is None or spec.source != "gguf":
        return None
    location, options = _location(spec)
    # Whether a GGUF file carries a tokenizer that transformers understands only shows when it is tried.
    misunderstood = (OSError, ValueError, KeyError, TypeError, NotImplementedError)
    with silenced(), gguf_read_once(), contextlib.suppress(*misunderstood):
        return AutoTokenizer.from_pretrained(location, local_files_only=True, trust_remote_code=False, **options)
    return None


def _of_transformers_5(folder: Path) -> bool:
    """Whether the tokenizer was saved by transformers 5, which has another word for its class of all fast tokenizers.

    onnxruntime-genai's model builder runs on that version, and its folders are read here.
    """
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Whether that matters, and how, transformers itself says best.
        return False
    return isinstance(config, dict) and config.get("tokenizer_class") == "TokenizersBackend"


@contextlib.contextmanager
def zeroed_attention(
    model: Any,
    spec: ModelSpec,
    layers: Iterable[int],
    repairs: Mapping[int, LayerRepair] | None = None,
    *,
    tower: str = "",
) -> Iterator[None]:
    """While the block runs, the attention modules of a tower's ``layers`` return zeros; their KV cache is still filled.

    With ``repairs`` they return what their stand-ins compute from what the modules are given, and a repaired MLP has
    its new last matrix.

    Raises:
        RefusedError: a layer or the tower does not exist.
    """
    import torch

    adapter, repairs = adapter_for(spec.architecture).tower(tower), repairs or {}
    blocks = operator.attrgetter(adapter.blocks)(model)
    beyond = [layer for layer in layers if not 0 <= layer < len(blocks)]
    if beyond:
        raise RefusedError(f"layer {beyond[0]} does not exist: {spec.name} has {len(blocks)} attention layers")
    hooks: list[Any] = []
    replaced = []
    for layer in layers:
        repair = repairs.get(layer)
        hooks.extend(hook_branch(blocks[layer], adapter, repair))
        if repair is not None and repair.down is not None:
            if adapter.down is None:
                raise RefusedError(f"{spec.name}: the MLP of {spec.architecture} has no single last matrix to repair")
            weight = operator.attrgetter(adapter.down)(blocks[layer]).weight
            replaced.append((weight, weight.data))
            matrix = repair.down if adapter.down_transposed else repair.down.T
            weight.data = torch.from_numpy(matrix.copy()).to(weight.dtype)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for weight, data in replaced:
            weight.data = data


def _location(spec: ModelSpec) -> tuple[str, dict[str, Any]]:
    path = Path(spec.path)
    if spec.source == "gguf":
        return str(path.parent), {"gguf_file": path.name}
    return str(path), {}
