"""Tiny random models of real architectures of transformers: one line for each."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

SIZES: dict[str, Any] = {"vocab_size": 1000, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED: dict[str, Any] = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
ENCODER: dict[str, Any] = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 128}
MOE: dict[str, Any] = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SSM: dict[str, Any] = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
SMALL: dict[str, Any] = {"vocab_size": 1000, "n_embd": 32, "n_layer": 2, "n_head": 4}


def _causal(family: str, **options: Any) -> tuple[str, str, dict[str, Any]]:
    config = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    return config, f"{family}ForCausalLM", options


def _masked(family: str, **options: Any) -> tuple[str, str, dict[str, Any]]:
    return f"{family}Config", f"{family}ForMaskedLM", options


CAUSAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", SMALL),
    "gpt-neox": _causal("GPTNeoX", **SIZES, intermediate_size=48),
    "opt": _causal("OPT", **SIZES, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=128),
    "opt, projected": _causal(
        "OPT", **SIZES, ffn_dim=48, word_embed_proj_dim=24, max_position_embeddings=128, do_layer_norm_before=False
    ),
    "bloom": _causal("Bloom", vocab_size=1000, hidden_size=32, n_layer=2, n_head=4),
    "mpt": _causal("Mpt", vocab_size=1000, d_model=32, n_layers=2, n_heads=4, expansion_ratio=2),
    "falcon": _causal("Falcon", **SIZES),
    "falcon, alibi": _causal("Falcon", **SIZES, alibi=True),
    "llama": _causal("Llama", **GROUPED),
    "mistral": _causal("Mistral", **GROUPED, sliding_window=6),
    "qwen3": _causal("Qwen3", **GROUPED, head_dim=8),
    "qwen3-moe": _causal("Qwen3Moe", **MOE, head_dim=8),
    "qwen3-next": _causal(
        "Qwen3Next",
        **MOE,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        shared_expert_intermediate_size=24,
    ),
    "gemma2": _causal("Gemma2", **GROUPED, head_dim=8, sliding_window=6),
    "gemma3": _causal("Gemma3", **GROUPED, head_dim=8, sliding_window=6),
    "phi": _causal("Phi", **SIZES, intermediate_size=48),
    "olmo": _causal("Olmo", **GROUPED),
    "cohere": _causal("Cohere", **GROUPED),
    "deepseek-v3": _causal(
        "DeepseekV3",
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
    "ernie-moe": _causal("Ernie4_5_Moe", **GROUPED, moe_num_experts=4, moe_k=2, moe_intermediate_size=24),
    "gpt-oss": _causal("GptOss", **GROUPED, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=6),
    "mamba": _causal("Mamba", vocab_size=1000, hidden_size=32, num_hidden_layers=2, state_size=8),
    "jamba": _causal(
        "Jamba",
        **GROUPED,
        num_experts=2,
        num_experts_per_tok=1,
        use_mamba_kernels=False,
        mamba_d_state=8,
        attn_layer_period=2,
        attn_layer_offset=1,
    ),
    "falcon-h1": _causal("FalconH1", **GROUPED, **SSM),
    "lfm2": _causal("Lfm2", **GROUPED, layer_types=["conv", "full_attention"]),
    "rwkv": _causal("Rwkv", vocab_size=1000, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32),
    "recurrent-gemma": _causal(
        "RecurrentGemma",
        **{**GROUPED, "num_hidden_layers": 3},
        head_dim=8,
        lru_width=32,
        attention_window_size=6,
    ),
    "gptj": _causal("GPTJ", **SMALL, rotary_dim=4),
    "stablelm": _causal("StableLm", **GROUPED),
    "olmo2": _causal("Olmo2", **GROUPED),
    "qwen2": _causal("Qwen2", **GROUPED),
    "phi3": _causal("Phi3", **GROUPED, pad_token_id=0),
    "glm4": _causal("Glm4", **GROUPED, head_dim=8, pad_token_id=0),
    "smollm3": _causal("SmolLM3", **GROUPED, pad_token_id=0),
    "starcoder2": _causal("Starcoder2", **GROUPED),
    "mamba2": _causal(
        "Mamba2",
        vocab_size=1000,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        num_heads=8,
        head_dim=8,
        n_groups=2,
    ),
    "granite-hybrid": _causal(
        "GraniteMoeHybrid", **GROUPED, layer_types=["mamba", "attention"], mamba_n_heads=4, mamba_d_state=8
    ),
    "xglm": _causal("XGLM", vocab_size=1000, d_model=32, num_layers=2, attention_heads=4, ffn_dim=48),
    "biogpt": _causal("BioGpt", **SIZES, intermediate_size=48),
    "gpt-neo": _causal(
        "GPTNeo", vocab_size=1000, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
    ),
}
MASKED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": _masked("Bert", **ENCODER),
    "distilbert": _masked(
        "DistilBert", vocab_size=1000, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=128
    ),
    "albert": _masked("Albert", **ENCODER, embedding_size=16),
    "electra": _masked("Electra", **ENCODER, embedding_size=16),
    "deberta": _masked("DebertaV2", **ENCODER, relative_attention=True, pos_att_type=["p2c", "c2p"], type_vocab_size=0),
    "roberta": _masked("Roberta", **ENCODER, pad_token_id=1),
    "xlm-roberta": _masked("XLMRoberta", **ENCODER, pad_token_id=1),
    "mpnet": _masked("MPNet", **ENCODER),
    "modernbert": _masked("ModernBert", **ENCODER, pad_token_id=0, global_attn_every_n_layers=2, local_attention=8),
    "camembert": _masked("Camembert", **ENCODER, pad_token_id=1),
}

ENCODER_DECODERS = ("T5", "MT5", "Bart", "MBart", "Pegasus", "Marian", "Blenderbot", "Whisper")


def build(name: str, noise: float = 0.1, tied: bool | None = None) -> PreTrainedModel:
    """Returns a model of the table in evaluation mode; its weights depend on its name alone.

    Args:
        name: Its name in the table.
        noise: Standard deviation of what is added to all weights, so that those that begin at 0 take part.
        tied: Whether embedding and head are one weight; None for the architecture's own choice.
    """
    config, kind, options = {**CAUSAL, **MASKED}[name]
    more = {} if tied is None else {"tie_word_embeddings": tied}
    torch.manual_seed(0)
    made = getattr(transformers, config)(**{**options, **more})
    made.architectures = [kind]
    model: PreTrainedModel = getattr(transformers, kind)(made).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * noise)
    return model
