"""Tiny random models of real architectures of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from transformers import PreTrainedModel

SIZES: dict[str, Any] = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED: dict[str, Any] = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
ENCODER: dict[str, Any] = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 64}
MOE: dict[str, Any] = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SSM: dict[str, Any] = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
SMALL = {"vocab_size": 200, "n_embd": 32, "n_layer": 2, "n_head": 4}


def _model(name: str, **options: Any) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        family, kind = name.split(":")
        config = getattr(transformers, f"{family}Config")(**options)
        config.architectures = [f"{family}For{kind}"]
        model: PreTrainedModel = getattr(transformers, f"{family}For{kind}")(config)
        return model

    return build


CAUSAL: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": _model("GPT2:x", **SMALL)
    if False
    else lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**SMALL)),
    "gpt-neox": _model("GPTNeoX:CausalLM", **SIZES, intermediate_size=48),
    "opt": _model("OPT:CausalLM", **SIZES, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64),
    "bloom": _model("Bloom:CausalLM", vocab_size=200, hidden_size=32, n_layer=2, n_head=4),
    "mpt": _model("Mpt:CausalLM", vocab_size=200, d_model=32, n_layers=2, n_heads=4, expansion_ratio=2),
    "falcon": _model("Falcon:CausalLM", **SIZES),
    "falcon, alibi": _model("Falcon:CausalLM", **SIZES, alibi=True),
    "llama": _model("Llama:CausalLM", **GROUPED),
    "mistral": _model("Mistral:CausalLM", **GROUPED, sliding_window=6),
    "qwen3": _model("Qwen3:CausalLM", **GROUPED, head_dim=8),
    "qwen3-moe": _model("Qwen3Moe:CausalLM", **MOE, head_dim=8),
    "qwen3-next": _model(
        "Qwen3Next:CausalLM",
        **MOE,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        shared_expert_intermediate_size=24,
    ),
    "gemma2": _model("Gemma2:CausalLM", **GROUPED, head_dim=8, sliding_window=6),
    "gemma3": _model("Gemma3:CausalLM", **GROUPED, head_dim=8, sliding_window=6)
    if False
    else lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=6)),
    "phi": _model("Phi:CausalLM", **SIZES, intermediate_size=48),
    "olmo": _model("Olmo:CausalLM", **GROUPED),
    "cohere": _model("Cohere:CausalLM", **GROUPED),
    "deepseek-v3": _model(
        "DeepseekV3:CausalLM",
        **{**GROUPED, "num_key_value_heads": 4},
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        moe_intermediate_size=24,
    ),
    "ernie-moe": _model("Ernie4_5_Moe:CausalLM", **GROUPED, moe_num_experts=4, moe_k=2, moe_intermediate_size=24),
    "gpt-oss": _model(
        "GptOss:CausalLM", **GROUPED, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=6
    ),
    "mamba": _model("Mamba:CausalLM", vocab_size=200, hidden_size=32, num_hidden_layers=2, state_size=8),
    "jamba": _model(
        "Jamba:CausalLM",
        **GROUPED,
        num_experts=2,
        num_experts_per_tok=1,
        use_mamba_kernels=False,
        mamba_d_state=8,
        attn_layer_period=2,
        attn_layer_offset=1,
    ),
    "falcon-h1": _model("FalconH1:CausalLM", **GROUPED, **SSM),
    "lfm2": _model("Lfm2:CausalLM", **GROUPED, layer_types=["conv", "full_attention"]),
    "rwkv": _model("Rwkv:CausalLM", vocab_size=200, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32),
    "recurrent-gemma": _model(
        "RecurrentGemma:CausalLM",
        **{**GROUPED, "num_hidden_layers": 3},
        head_dim=8,
        lru_width=32,
        attention_window_size=6,
    ),
}
MASKED: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": _model("Bert:MaskedLM", **ENCODER),
    "distilbert": _model(
        "DistilBert:MaskedLM", vocab_size=200, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64
    ),
    "albert": _model("Albert:MaskedLM", **ENCODER, embedding_size=16),
    "electra": _model("Electra:MaskedLM", **ENCODER, embedding_size=16),
    "deberta": _model(
        "DebertaV2:MaskedLM", **ENCODER, relative_attention=True, pos_att_type=["p2c", "c2p"], type_vocab_size=0
    ),
    "roberta": _model("Roberta:MaskedLM", **ENCODER, pad_token_id=1),
    "xlm-roberta": _model("XLMRoberta:MaskedLM", **ENCODER, pad_token_id=1),
    "mpnet": _model("MPNet:MaskedLM", **ENCODER),
    "modernbert": _model(
        "ModernBert:MaskedLM", **ENCODER, pad_token_id=0, global_attn_every_n_layers=2, local_attention=8
    ),
}
