"""BERT, RoBERTa and DistilBERT (separate, post-norm) and ModernBERT (fused, pre-norm)."""

from __future__ import annotations

from gatenorm_export.architectures.adapter import Adapter, DimKeys, Modules, TowerRow
from gatenorm_export.architectures.layouts import Stacked

_BERT_ROW = TowerRow(
    tensors=(
        "encoder.layer.{layer}.attention.self.query.weight",
        "encoder.layer.{layer}.attention.self.key.weight",
    ),
    # BERT's attention module adds the residual and norms the sum: only its output projection can be silenced.
    modules=Modules("encoder.layer", "attention.output.dense", "output.dense", projection_only=True),
)
BERT = Adapter("bert", (_BERT_ROW,))
ROBERTA = Adapter("roberta", (_BERT_ROW,))
DISTILBERT = Adapter(
    "distilbert",
    (
        TowerRow(
            tensors=(
                "transformer.layer.{layer}.attention.q_lin.weight",
                "transformer.layer.{layer}.attention.k_lin.weight",
            ),
            modules=Modules("transformer.layer", "attention", "ffn.lin2"),
            dims=DimKeys(
                n_layers="n_layers",
                d_model="dim",
                n_heads="n_heads",
                aliases=(
                    ("num_hidden_layers", "n_layers"),
                    ("hidden_size", "dim"),
                    ("num_attention_heads", "n_heads"),
                ),
            ),
        ),
    ),
)
MODERNBERT = Adapter(
    "modernbert",
    (
        TowerRow(
            tensors=("layers.{layer}.attn.Wqkv.weight",),
            modules=Modules("layers", "attn", "mlp.Wo"),
            layout=Stacked(),
            norm=("layers.{layer}.attn_norm.weight",),
            # The embeddings are normed already.
            normed_from=1,
        ),
    ),
)
