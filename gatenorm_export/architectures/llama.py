"""LLaMA and everything that kept its names: Mistral, Qwen2, Qwen3, SmolLM."""

from gatenorm_export.architectures.adapter import Adapter

LLAMA = Adapter(
    family="llama",
    query="model.layers.{layer}.self_attn.q_proj.weight",
    key="model.layers.{layer}.self_attn.k_proj.weight",
    # llama.cpp stores the rows of each LLaMA head in another order, the same for query and key, and the product of the
    # two does not change when both are reordered alike: scores need no undoing of it.
    gguf_query="blk.{layer}.attn_q.weight",
    gguf_key="blk.{layer}.attn_k.weight",
    blocks="model.layers",
    attention="self_attn",
    down="mlp.down_proj",
)
