"""Whisper: an encoder, a decoder, and the decoder's attention to the encoder ("cross")."""

from __future__ import annotations

from gatenorm_export.architectures.adapter import Adapter, DimKeys, Modules, TowerRow


def _row(name: str, stack: str, attention: str, norm: tuple[str, ...]) -> TowerRow:
    layers = f"{stack}.layers.{{layer}}"
    return TowerRow(
        name=name,
        tensors=(f"{layers}.{attention}.q_proj.weight", f"{layers}.{attention}.k_proj.weight"),
        modules=Modules(f"{stack}.layers", attention, "fc2"),
        dims=DimKeys(
            n_layers=f"{stack}_layers",
            d_model="d_model",
            n_heads=f"{stack}_attention_heads",
            aliases=(("hidden_size", "d_model"),),
        ),
        norm=tuple(f"{layers}.{name}.weight" for name in norm),
    )


_ENCODER = _row("encoder", "encoder", "self_attn", ("self_attn_layer_norm",))
_DECODER = _row("decoder", "decoder", "self_attn", ("self_attn_layer_norm",))
# The norm before cross attention only meets the query; keys come from the encoder, which has a norm of its own. So
# there is no norm weight that could be folded into both.
_CROSS = _row("cross", "decoder", "encoder_attn", ())

WHISPER = Adapter("whisper", (_ENCODER, _DECODER, _CROSS))
WHISPER_DECODER = Adapter("whisper, decoder", (_DECODER, _CROSS))
WHISPER_ENCODER = Adapter("whisper, encoder", (_ENCODER,))
