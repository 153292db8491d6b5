"""Every family's adapter against the framework: weights as its attention uses them, and modules to silence."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import operator
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.matrix.models import FAMILIES, N_LAYERS, Family
from benchmarks.matrix.models import family as family_of
from gatenorm_export.architectures import ADAPTERS, LayerTensors, Tower, adapter_for, towers_of
from gatenorm_export.architectures.layouts import Blocks, Interleaved, Stacked
from gatenorm_export.checkpoints import TensorInfo
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.scoring import ScoreRequest, score_model
from gatenorm_export.sources import resolve_model
from tests.attention_probe import gate_norms, query_and_key

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
warnings.simplefilter("ignore")

_SIZE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
}
_WORDS: dict[str, Any] = {"vocab_size": 128, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_PIXELS: dict[str, Any] = {"image_size": 16, "patch_size": 4}
_TOWERS: dict[str, Any] = {"text_config": {**_SIZE, **_WORDS}, "vision_config": {**_SIZE, "hidden_size": 32, **_PIXELS}}
_SIGLIP = {**_TOWERS, "text_config": {**_SIZE, **_WORDS, "projection_size": 32}}
# No exits: what is silenced is tested on each tower alone.
_BOTH: dict[str, tuple[str, ...]] = {"text": (), "vision": ()}
_TEXT = {"": ("text_model.encoder.layers.{i}.self_attn.out_proj",)}
_GEMMA3: dict[str, Any] = {
    "text_config": {**_SIZE, **_WORDS, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 4},
    "vision_config": {**_SIZE, "hidden_size": 32, **_PIXELS},
}


def _more(base: str, name: str, **extra: Any) -> Family:
    row = family_of(base)
    return dataclasses.replace(row, name=name, extra={**row.extra, **extra})


# What the benchmark's table of families does not have.
MORE: tuple[Family, ...] = (
    dataclasses.replace(
        _more("qwen3-moe", "qwen2-moe", shared_expert_intermediate_size=32),
        config_class="Qwen2MoeConfig",
        model_class="Qwen2MoeForCausalLM",
    ),
    dataclasses.replace(
        _more("olmo2", "olmo3", sliding_window=4), config_class="Olmo3Config", model_class="Olmo3ForCausalLM"
    ),
    dataclasses.replace(_more("glm4", "glm"), config_class="GlmConfig", model_class="GlmForCausalLM"),
    _more("gpt-bigcode", "gpt-bigcode-mha", multi_query=False),
    # As many heads as blocks would hide how they lie in a block.
    _more("codegen", "codegen-8-heads", num_attention_heads=8),
    _more("phi", "phi-qk-norm", qk_layernorm=True),
    _more("opt", "opt-post-norm", do_layer_norm_before=False),
    _more("deepseek-v3", "deepseek-v3-plain-query", q_lora_rank=None),
    Family("clip", "CLIPConfig", "CLIPModel", _BOTH, "vision", _TOWERS),
    Family("siglip", "SiglipConfig", "SiglipModel", _BOTH, "vision", _SIGLIP),
    Family("clip-text", "CLIPTextConfig", "CLIPTextModel", _TEXT, "encoder"),
    Family("siglip-text", "SiglipTextConfig", "SiglipTextModel", _TEXT, "encoder"),
    Family("gemma3-multimodal", "Gemma3Config", "Gemma3ForConditionalGeneration", {"text": ()}, "vision", _GEMMA3),
)
ROWS = {row.name: row for row in (*FAMILIES, *MORE)}
# The framework multiplies the query by head_dim**-0.5 before the dot product, where others pass that factor on.
SCALED = {"opt", "opt-post-norm", "whisper"}
# CodeGen's attention casts to fp32; gatenorm multiplies low-rank factors in fp32.
ROUNDED = {"codegen", "codegen-8-heads", "deepseek-v2", "deepseek-v3", "deepseek-v3-plain-query"}
# Its yarn also scales what it rotates; and its experts only work in fp32, where the probe works in fp64.
PROBED = {
    "gpt-oss": {"rope_scaling": None},
    "deepseek-v3": {"first_k_dense_replace": N_LAYERS},
    "deepseek-v3-plain-query": {"first_k_dense_replace": N_LAYERS},
}
# Of a multi-query layout both orders are the same.
FUSED = {
    "phi3": Interleaved(),
    "gpt2": Stacked(),
    "codegen": Interleaved(),
    "codegen-8-heads": Blocks(8),
    "gpt-neox": Stacked(),
    "gpt-bigcode-mha": Stacked(),
    "bloom": Stacked(),
    "falcon": Stacked(),
    "falcon-new": Stacked(),
    "falcon-rw": Blocks(4),
    "mpt": Interleaved(),
    "modernbert": Interleaved(),
}


def make(row: Family) -> Any:
    return dataclasses.replace(row, extra={**row.extra, **PROBED.get(row.name, {})}).make()


def saved(model: Any, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, TensorInfo]]:
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    arrays = load_file(folder / "model.safetensors")
    return config, arrays, {name: TensorInfo(name, a.shape, "F32", a.nbytes, "f") for name, a in arrays.items()}


def inputs(model: Any, row: Family, batch: int, length: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    # No token that is a special one: CLIP looks for the end of the text.
    tokens = torch.randint(4, 128, (batch, length), generator=generator)
    dtype = next(model.parameters()).dtype
    pixels = torch.randn(batch, 3, 16, 16, generator=generator).to(dtype)
    if row.name in {"clip", "siglip"}:
        return {"input_ids": tokens, "pixel_values": pixels}
    if row.kind == "vision" and row.name != "gemma3-multimodal":
        return {"pixel_values": pixels}
    if row.kind == "speech":
        features = torch.randn(batch, 8, 32, generator=generator).to(dtype)
        return {"input_features": features, "decoder_input_ids": tokens}
    return {"input_ids": tokens, "use_cache": False} if row.kind == "decoder" else {"input_ids": tokens}


def score(tower: Tower, layer: LayerTensors, arrays: dict[str, np.ndarray]) -> tuple[float, float]:
    """The definition, word for word, of what the splitter gives."""
    query, key = tower.split(layer, [arrays[name] for name in layer.names])
    assert query.shape == (tower.n_heads * tower.head_dim, tower.d_model)
    assert key.shape == (tower.n_kv_heads * tower.head_dim, tower.d_model)
    heads = [value.astype(np.float64).reshape(-1, tower.head_dim, tower.d_model) for value in (query, key)]
    heads[1] = heads[1].repeat(tower.n_heads // tower.n_kv_heads, axis=0)
    return gate_norms(np.stack(heads))


@pytest.mark.parametrize("name", ROWS)
def test_scores_are_those_of_the_weights_that_attention_uses(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    model = make(row)
    config, arrays, infos = saved(model, tmp_path)
    architecture = config["architectures"][0]
    towers = towers_of(architecture, config, infos)
    spec = resolve_model(str(tmp_path))
    records = [score_model(spec), score_model(spec, ScoreRequest(variant="per-head"))]
    written = [{(entry.tower, entry.layer): entry.score for entry in record.layers} for record in records]
    for tower in towers:
        if name == "gemma3-multimodal" and tower.name == "vision":
            continue  # only runs with images, whose number of tokens is fixed; the same rows as SigLIP's
        modules = adapter_for(architecture).tower(tower.name)
        probed = query_and_key(model, modules, inputs(model.double(), row, tower.d_model + 1), tower.d_model)
        assert tower.n_layers == len(probed) == len(tower.layers) == N_LAYERS
        assert tower.guessed is None
        factor = tower.head_dim**0.5 if name in SCALED else 1.0
        for layer, weights in zip(tower.layers, probed, strict=True):
            expected = [value * factor for value in gate_norms(weights)]
            tolerance = 1e-6 if name in ROUNDED else 1e-9
            assert score(tower, layer, arrays) == pytest.approx(expected, rel=tolerance), (tower.name, layer.layer)
            assert [scores[tower.name, layer.layer] for scores in written] == pytest.approx(expected, rel=1e-6)
            if "deepseek" in name:
                joined = tower.joined()
                assert (joined.n_heads, joined.head_dim) == (1, 24)
                assert joined.shapes(layer) == tower.shapes(layer)
                assert score(joined, layer, arrays)[0] == pytest.approx(expected[0], rel=tolerance)
            else:
                assert tower.joined() is tower
            if name in FUSED:
                wrong = dataclasses.replace(tower, layout=FUSED[name])
                if name == "gpt2":
                    arrays = {**arrays, layer.names[0]: arrays[layer.names[0]].reshape(-1, tower.d_model)}
                assert score(wrong, layer, arrays) != pytest.approx(expected, rel=1e-3)


@contextlib.contextmanager
def silenced(attentions: list[Any]):
    def zeros(module: Any, arguments: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        return (torch.zeros_like(first), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(first)

    handles = [module.register_forward_hook(zeros) for module in attentions]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def outputs(model: Any, row: Family) -> torch.Tensor:
    given = inputs(model, row, 2, 6)
    with torch.no_grad():
        result = model(**given)
    return result.logits if "logits" in result else result.last_hidden_state


@pytest.mark.parametrize(
    ("name", "stack"), [(name, stack) for name, row in ROWS.items() for stack, exits in row.exits.items() if exits]
)
def test_silencing_the_module_is_removing_the_branch(name: str, stack: str) -> None:
    row = ROWS[name]
    model = row.make()
    modules = adapter_for(type(model).__name__).tower(stack)
    blocks = operator.attrgetter(modules.blocks)(model)
    plain = outputs(model, row)
    with silenced([operator.attrgetter(modules.attention)(blocks[layer]) for layer in (1, 2)]):
        got = outputs(model, row)
    row.silence(model, (1, 2), stack)
    expected = outputs(model, row)
    assert not torch.allclose(plain, expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


CONFIGS = {row.config_class: row for row in reversed(tuple(ROWS.values()))}
CONFIGS["XLMRobertaConfig"] = dataclasses.replace(ROWS["bert"], config_class="XLMRobertaConfig")


@pytest.mark.parametrize("architecture", ADAPTERS)
def test_every_architecture_of_the_table_has_its_tensors_and_modules(architecture: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model_class = getattr(transformers, architecture)
        config_class = getattr(model_class, "config_class", None) or model_class.__annotations__["config"]
        row = CONFIGS[config_class.__name__]
        config = row.config()
        with torch.device("meta"):
            model = model_class(config)
    infos = {name: TensorInfo(name, tuple(t.shape), "F32", 0, "f") for name, t in model.state_dict().items()}
    towers = towers_of(architecture, json.loads(config.to_json_string()), infos)
    adapter = adapter_for(architecture)
    assert [tower.name for tower in towers] == [row.name for row in adapter.towers]
    for tower in towers:
        modules = adapter.tower(tower.name)
        blocks = operator.attrgetter(modules.blocks)(model)
        assert len(blocks) == tower.n_layers
        parameters = {name for name, _ in model.named_parameters()}
        for layer in tower.layers:
            owner = operator.attrgetter(modules.attention)(blocks[layer.layer])
            assert isinstance(owner, torch.nn.Module)
            assert {*layer.names} <= parameters
            assert all(name.startswith(f"{modules.blocks}.{layer.layer}.") for name in layer.names)
            if layer.norm is not None:
                assert infos[layer.norm].shape == (tower.d_model,)
            if modules.down is not None:
                down = operator.attrgetter(modules.down)(blocks[layer.layer])
                assert down.weight.shape[1 if modules.down_transposed else 0] == tower.d_model
                assert isinstance(down, torch.nn.Linear) != modules.down_transposed


def hand_made(name: str, **changes: Any) -> tuple[str, dict[str, Any], dict[str, TensorInfo]]:
    """A family's config with changes (``None`` takes a key out), and the table of its tensors."""
    row = ROWS[name]
    with torch.device("meta"):
        model = getattr(transformers, row.model_class)(row.config())
    config = {**json.loads(row.config().to_json_string()), **changes}
    config = {key: value for key, value in config.items() if value is not None}
    infos = {key: TensorInfo(key, tuple(t.shape), "F32", 0, "w.safetensors") for key, t in model.state_dict().items()}
    return row.model_class, config, infos


@pytest.mark.parametrize("value", [0, -3, "many", 2.5, True])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("llama-gqa", "num_hidden_layers"),
        ("llama-gqa", "num_key_value_heads"),
        ("gpt2", "n_head"),
        ("mpt", "d_model"),
        ("whisper", "decoder_attention_heads"),
        ("deepseek-v2", "kv_lora_rank"),
        ("falcon-new", "num_kv_heads"),
        ("codegen", "n_head"),
    ],
)
def test_a_senseless_dimension_is_named(name: str, key: str, value: Any) -> None:
    architecture, config, infos = hand_made(name, **{key: value})
    with pytest.raises(InputError, match=rf"^config\.json: {key} is {value!r}"):
        towers_of(architecture, config, infos)


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "num_attention_heads"])
def test_a_missing_dimension_is_named(key: str) -> None:
    architecture, config, infos = hand_made("llama-gqa", **{key: None})
    with pytest.raises(InputError, match=rf"^there: {key} is None"):
        towers_of(architecture, config, infos, where="there")


def test_other_names_of_a_dimension_are_read() -> None:
    architecture, config, infos = hand_made("bloom", n_head=None, hidden_size=None, num_attention_heads=4, n_embed=64)
    assert towers_of(architecture, config, infos)[0].head_dim == 16


def test_what_a_nested_config_leaves_out_is_its_class_default() -> None:
    architecture, config, infos = hand_made("clip")
    for section in ("text_config", "vision_config"):
        config[section] = {"num_hidden_layers": 1, "hidden_size": 96}
    names = "{}_model.encoder.layers.0.self_attn.{}_proj.weight"
    infos = {
        (name := names.format(tower, part)): TensorInfo(name, (96, 96), "F32", 0, "f")
        for tower in ("text", "vision")
        for part in "qk"
    }
    text, vision = towers_of(architecture, config, infos)
    assert (text.n_heads, vision.n_heads) == (8, 12)
    with pytest.raises(InputError, match=r"^config\.json: text_config is 3"):
        towers_of(architecture, {**config, "text_config": 3}, infos)


def test_heads_that_do_not_fit_are_refused() -> None:
    for changes, message in (
        ({"num_key_value_heads": 3}, "do not divide among 3 key heads"),
        ({"head_dim": None, "hidden_size": 62}, "hidden_size is 62, which 4 heads"),
    ):
        architecture, config, infos = hand_made("llama-gqa", **changes)
        with pytest.raises(InputError, match=message):
            towers_of(architecture, config, infos)
    architecture, config, infos = hand_made("codegen", n_head=2)
    with pytest.raises(InputError, match="n_head is 2, and CodeGen's must be a multiple of 4"):
        towers_of(architecture, config, infos)


def test_a_missing_tensor_and_a_wrong_shape_are_named() -> None:
    architecture, config, infos = hand_made("llama-gqa")
    name = "model.layers.2.self_attn.k_proj.weight"
    with pytest.raises(InputError, match=rf"^config\.json: tensor {name} is missing"):
        towers_of(architecture, config, {key: value for key, value in infos.items() if key != name})
    with pytest.raises(InputError, match=r"tensor model\.layers\.4\.self_attn\.q_proj\.weight is missing"):
        towers_of(architecture, {**config, "num_hidden_layers": 10**12}, infos)
    odd = {f"layers.{'9' * 5000}.self_attn.q_proj.weight": infos[name]}
    assert towers_of(architecture, config, {**infos, **odd}) == towers_of(architecture, config, infos)
    wrong = {**infos, name: dataclasses.replace(infos[name], shape=(48, 64))}
    with pytest.raises(InputError, match=rf"^w\.safetensors: tensor {name} is \[48, 64\].*\[32, 64\]"):
        towers_of(architecture, config, wrong)
    with pytest.raises(
        InputError, match=r"layers\.0\.self_attn\.q_proj\.weight is missing: no name .*it holds nothing"
    ):
        towers_of(architecture, config, {})


@pytest.mark.parametrize("name", ["clip-text", "siglip-vision"])
def test_a_tower_alone_may_be_saved_without_its_name(name: str) -> None:
    """As transformers 5 saves it."""
    architecture, config, infos = hand_made(name)
    shorter = {key.removeprefix("text_model.").removeprefix("vision_model."): info for key, info in infos.items()}
    assert towers_of(architecture, config, shorter)[0].layers[1].names[0] == "encoder.layers.1.self_attn.q_proj.weight"


def test_layers_beyond_those_of_the_config_are_left_out() -> None:
    """DeepSeek V3 keeps the layers that predict further tokens behind the others."""
    architecture, config, infos = hand_made("deepseek-v3", num_hidden_layers=3)
    assert [layer.layer for layer in towers_of(architecture, config, infos)[0].layers] == [0, 1, 2]


def test_two_stacks_of_the_same_names_are_refused() -> None:
    architecture, config, infos = hand_made("llama-gqa")
    twice = {**infos, **{f"draft.{name}": dataclasses.replace(info, name=name) for name, info in infos.items()}}
    with pytest.raises(RefusedError, match=r"several stacks.*draft\.model\.layers\.\{layer\}.*--q-pattern"):
        towers_of(architecture, config, twice)


def test_a_tower_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RefusedError, match="whisper: has no tower ''; it has encoder, decoder, cross"):
        _ = adapter_for("WhisperModel").blocks
    with pytest.raises(RefusedError, match="no single last Linear"):
        _ = adapter_for("MixtralForCausalLM").down
    assert adapter_for("BertForMaskedLM").tower().blocks == "bert.encoder.layer"
    with pytest.raises(RefusedError, match="NoSuchModel: "):
        adapter_for("NoSuchModel")


def test_norms() -> None:
    def norm(name: str, layer: int = 1) -> tuple[str | None, float]:
        tower = towers_of(*hand_made(name))[0]
        return tower.layers[layer].norm, tower.norm_offset

    assert norm("llama-gqa") == ("model.layers.1.input_layernorm.weight", 0.0)
    assert norm("gemma2") == ("model.layers.1.input_layernorm.weight", 1.0)
    assert norm("falcon-new") == ("transformer.h.1.ln_attn.weight", 0.0)
    assert norm("falcon") == ("transformer.h.1.input_layernorm.weight", 0.0)
    assert norm("modernbert", 0) == norm("bert") == norm("olmo") == norm("olmo2") == (None, 0.0)
    assert norm("opt-post-norm") == (None, 0.0)
    assert norm("opt")[0] == "model.decoder.layers.1.self_attn_layer_norm.weight"
