"""Models that are not in the table: tried by names and shapes, named by the user, or refused with what was found."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from gatenorm_export.architectures import NamePatterns, towers_of
from gatenorm_export.checkpoints import TensorInfo
from gatenorm_export.errors import InputError, RefusedError

CONFIG = {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def infos(shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, shape, "F32", 0, "model.safetensors") for name, shape in shapes.items()}


def stack(
    query: str = "net.blocks.{}.attn.wq.weight",
    key: str = "net.blocks.{}.attn.wk.weight",
    layers: tuple[int, ...] = (0, 1, 2),
    q: tuple[int, ...] = (64, 64),
    k: tuple[int, ...] = (32, 64),
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"net.embed.weight": (128, 64)}
    for layer in range(3):
        shapes[f"net.blocks.{layer}.mlp.weight"] = (64, 64)
    for layer in layers:
        shapes |= {query.format(layer): q, key.format(layer): k}
    return shapes


def guess(shapes: dict[str, tuple[int, ...]], patterns: NamePatterns | None = None, **changes: Any) -> Any:
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (tower,) = towers_of("NewForCausalLM", config, infos(shapes), patterns=patterns, where="m")
    return tower


@pytest.mark.parametrize(
    ("query", "key"),
    [
        ("net.blocks.{}.attn.wq.weight", "net.blocks.{}.attn.wk.weight"),
        ("net.blocks.{}.self_attn.q_proj.weight", "net.blocks.{}.self_attn.k_proj.weight"),
        ("net.blocks.{}.attention.query.weight", "net.blocks.{}.attention.key.weight"),
        ("net.blocks.{}.q", "net.blocks.{}.k"),
        ("stage.0.layer.{}.to_q.weight", "stage.0.layer.{}.to_k.weight"),
    ],
)
def test_what_names_and_shapes_leave_no_doubt_about_is_taken_and_said(query: str, key: str) -> None:
    extra = {f"stage.0.layer.{layer}.x": (1,) for layer in range(3)}
    tower = guess({**stack(query, key), **extra})
    assert (tower.name, tower.n_layers, tower.d_model) == ("", 3, 64)
    assert (tower.n_heads, tower.n_kv_heads, tower.head_dim) == (4, 2, 16)
    assert [layer.names for layer in tower.layers] == [(query.format(i), key.format(i)) for i in range(3)]
    assert tower.guessed.startswith(
        f"NewForCausalLM is not in gatenorm's table; query and key weights were found by names and shapes, "
        f"{query.format('{layer}')} and {key.format('{layer}')}"
    )
    assert "4 query heads and 2 key heads of 16" in tower.guessed


def test_only_layers_with_attention_are_taken() -> None:
    tower = guess(stack(layers=(1,)))
    assert tower.n_layers == 3
    assert [layer.layer for layer in tower.layers] == [1]


def test_a_nested_config_is_read() -> None:
    tower = guess(stack(), num_hidden_layers=None, num_attention_heads=None, hidden_size=None, text_config=CONFIG)
    assert (tower.n_layers, tower.n_heads) == (3, 4)
    shallow = {**CONFIG, "num_hidden_layers": 2}
    assert guess(stack(), vision_config=shallow).n_layers == 3
    deeper = {"talker": {"text_config": CONFIG}}
    tower = guess(stack(), num_hidden_layers=None, num_attention_heads=None, hidden_size=None, thinker_config=deeper)
    assert (tower.n_layers, tower.n_heads) == (3, 4)


def test_heads_need_not_share_the_width_where_the_config_gives_their_size() -> None:
    tower = guess(stack(q=(128, 64), k=(64, 64)), head_dim=32)
    assert (tower.n_heads, tower.n_kv_heads, tower.head_dim) == (4, 2, 32)


@pytest.mark.parametrize(
    ("shapes", "changes", "message"),
    [
        (
            stack("net.blocks.{}.attn.qkv.weight", "net.blocks.{}.other.weight", q=(192, 64)),
            {},
            r"fused or of low rank \(net\.blocks\.\{layer\}\.attn\.qkv\.weight\).*cannot be known",
        ),
        (
            {**stack(), **stack("tower.{}.to_qkv.weight", "tower.{}.to_out.weight")},
            {},
            r"fused.*tower\.\{layer\}\.to_qkv.*if net\.blocks\.\{layer\}\.attn\.wq\.weight are meant, name the weights",
        ),
        (
            {**stack(), **stack("dec.{}.cross.wq.weight", "dec.{}.cross.wk.weight")},
            {},
            r"which attention is meant.*net\.blocks\.\{layer\}\.attn\.wq.* with net.*dec\.\{layer\}.*--q-pattern",
        ),
        ({f"s.{a}.b.{b}.{w}": (64, 64) for a in range(2) for b in range(2) for w in "qk"}, {}, "hold several numbers"),
        (stack("net.blocks.{}.attn.a.weight", "net.blocks.{}.attn.b.weight"), {}, r"no tensor has a name.*net\.embed"),
        (stack(k=(24, 64)), {}, r"is \[64, 64\] and .* is \[24, 64\], and no number of heads in the config fits"),
        (stack(k=(64, 64)), {}, "no number of heads in the config fits"),
        (stack(), {"hidden_size": 48}, "no number of heads in the config fits"),
        (stack(), {"head_dim": 32}, "no number of heads in the config fits"),
        (stack(k=(48, 64)), {"num_key_value_heads": None}, "no number of heads in the config fits"),
        (stack(q=(128, 64)), {}, "no number of heads in the config fits"),
        (stack(), {"num_attention_heads": None}, "no number of heads.*num_attention_heads, n_head"),
        (
            stack(k=(64, 64)),
            {"num_key_value_heads": None, "other": {"num_attention_heads": 8}},
            "can be read in 2 ways",
        ),
        (stack(q=(64, 32)), {}, "of the same width"),
        (stack(q=(64, 64, 1)), {}, "no tensor has a name"),
        ({**stack(), "net.blocks.1.attn.wq.weight": (128, 64)}, {}, r"layers differ in shape.*\[128, 64\]"),
        (stack(), {"num_hidden_layers": 2}, "the config says fewer layers"),
    ],
)
def test_doubt_is_refused_with_the_tensors_found(
    shapes: dict[str, tuple[int, ...]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RefusedError, match=message) as refused:
        guess(shapes, **changes)
    assert str(refused.value).startswith("m: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("shapes", "changes", "message"),
    [
        (stack(), {"num_attention_heads": "many"}, "^m: num_attention_heads is 'many'"),
        (stack(), {"num_hidden_layers": -3}, "^m: num_hidden_layers is -3"),
        (stack(), {"num_hidden_layers": 10**12}, r"^m: the config says 1000000000000 layers"),
        (stack(), {"num_hidden_layers": 4}, r"^m: the config says 4 layers, but .* no tensor net\.blocks\.3\.\*"),
        (
            {name: shape for name, shape in stack().items() if name != "net.blocks.1.attn.wk.weight"},
            {},
            r"^m: tensor net\.blocks\.1\.attn\.wk\.weight is missing",
        ),
    ],
)
def test_a_senseless_config_or_a_missing_tensor_is_named(
    shapes: dict[str, tuple[int, ...]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        guess(shapes, **changes)


QUERY, KEY = "net.blocks.{layer}.attn.alpha.weight", "net.blocks.{layer}.attn.beta.weight"
ODD = stack(QUERY.replace("{layer}", "{}"), KEY.replace("{layer}", "{}"), layers=(0, 2))


def test_a_user_can_name_the_weights() -> None:
    tower = guess(ODD, NamePatterns(QUERY, KEY))
    assert [layer.layer for layer in tower.layers] == [0, 2]
    assert "named by the user" in tower.guessed
    both = {**stack(), **stack("dec.{}.cross.wq.weight", "dec.{}.cross.wk.weight")}
    patterns = NamePatterns("dec.{layer}.cross.wq.weight", "dec.{layer}.cross.wk.weight")
    assert guess({**both, "dec.2.x": (1,)}, patterns).layers[1].names[0] == "dec.1.cross.wq.weight"


def test_patterns_go_before_the_table() -> None:
    (tower,) = towers_of("LlamaForCausalLM", CONFIG, infos(ODD), patterns=NamePatterns(QUERY, KEY))
    assert len(tower.layers) == 2


@pytest.mark.parametrize(
    ("query", "key", "message"),
    [
        (
            "net.blocks.{layer}.attn.alfa.weight",
            KEY,
            re.escape(f"--q-pattern net.blocks.{{layer}}.attn.alfa.weight matches no tensor; near it are {QUERY}"),
        ),
        (QUERY, "zzz{layer}", "--k-pattern zzz.* matches no tensor; the checkpoint holds net.embed.weight"),
        ("net.blocks.0.attn.alpha.weight", KEY, r"needs one \{layer\} field"),
        ("net.{layer}.{layer}.weight", KEY, r"needs one \{layer\} field"),
        (QUERY, QUERY, "name the same tensors; a weight that fuses"),
        ("net.blocks.{layer}.qkv_proj.weight", KEY, "fused or a low-rank factor"),
        (QUERY, "net.embed.{layer}", "matches no tensor"),
    ],
)
def test_a_pattern_that_does_not_help_is_refused_with_near_names(query: str, key: str, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        guess(ODD, NamePatterns(query, key))


def test_a_pattern_cannot_break_out_of_the_name() -> None:
    """Patterns are names, not regular expressions."""
    with pytest.raises(RefusedError, match="matches no tensor"):
        guess(ODD, NamePatterns(".*{layer}.*alpha.*", KEY))


@pytest.mark.parametrize(
    ("stem", "changes", "layers"),
    [
        ("Olmoe", {"num_experts": 2}, [0, 1, 2]),
        ("Electra", {"num_key_value_heads": None, "embedding_size": 64}, [0, 1, 2]),
        ("Lfm2", {"layer_types": ["conv", "full_attention", "conv"], "vocab_size": 128}, [1]),
    ],
)
def test_real_models_that_are_not_in_the_table(stem: str, changes: dict[str, Any], layers: list[int]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    given = {key: value for key, value in {**CONFIG, "intermediate_size": 96, **changes}.items() if value is not None}
    config = getattr(transformers, f"{stem}Config")(**given)
    architecture = f"{stem}ForMaskedLM" if stem == "Electra" else f"{stem}ForCausalLM"
    with torch.device("meta"):
        model = getattr(transformers, architecture)(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    (tower,) = towers_of(architecture, json.loads(config.to_json_string()), infos(shapes))
    assert [layer.layer for layer in tower.layers] == layers
    assert (tower.n_layers, tower.d_model, tower.n_heads) == (3, 64, 4)
    assert tower.n_kv_heads == (4 if stem == "Electra" else 2)
