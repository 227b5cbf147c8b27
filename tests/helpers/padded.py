"""Tiny language models, and the same batch of prompts and answers with more or less padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from zolit.models.batches import AnswerBatch
from zolit.models.language_model import LanguageModel
from zolit.models.tuning import Full, Tuning

PAD = 0
PROMPTS = [[5, 9, 3, 9, 14], [7, 2], [11, 4, 6]]
ANSWERS = [[[8, 3], [10]], [[13, 1, 2], [6, 6]], [[4], [12, 7]]]
"""Two answers for each prompt."""


def language(
    tuning: Tuning | None = None, tied: bool = False, dtype: torch.dtype = torch.float64, kind: str = "llama"
) -> LanguageModel:
    """Returns a language model of two layers. The embedding of its padding is large, so that it cannot be missed."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 23}
    if kind == "opt":
        config: Any = OPTConfig(ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=32, **sizes)
    else:
        config = LlamaConfig(intermediate_size=24, num_key_value_heads=2, tie_word_embeddings=tied, **sizes)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[PAD] *= 1.0 if tied else 1e4
    found = LanguageModel(model, tuning or Full())
    with torch.no_grad():  # LoRA's second factor begins at 0
        for name, parameter in found.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    found.model.to(dtype)
    return found


def batch(left: int = 0, right: int = 0, prompts: list[int] | None = None) -> AnswerBatch:
    """Returns the prompts with two answers each.

    Args:
        left: Additional columns of padding before the prompts.
        right: Additional columns of padding after the answers.
        prompts: Indices of the prompts; None is all of them.
    """
    chosen = range(len(PROMPTS)) if prompts is None else prompts
    questions = [PROMPTS[index] for index in chosen]
    answers = [answer for index in chosen for answer in ANSWERS[index]]
    width, length = left + max(map(len, questions)), right + max(map(len, answers))
    rows = torch.arange(len(answers))
    return AnswerBatch(
        prompt_ids=torch.tensor([[PAD] * (width - len(row)) + row for row in questions]),
        prompt_mask=torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in questions]),
        answer_ids=torch.tensor([row + [PAD] * (length - len(row)) for row in answers]),
        answer_mask=torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in answers]),
        prompt_index=rows // 2,
        choice_index=rows % 2,
        is_correct=rows % 2 == 0,
        labels=torch.arange(len(questions)) * 2,
        indices=torch.tensor(list(chosen)),
        max_choices=2,
        references=[[] for _ in questions],
    )


def choices(model: LanguageModel, of: AnswerBatch) -> Callable[[], Tensor]:
    """Returns a closure: the cross-entropy over the answers of each prompt, once for each answer, shape (answers,)."""

    def losses() -> Tensor:
        scores = model.answer_scores(of).view(-1, 2)
        return functional.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.int64), reduction="none")[
            of.prompt_index
        ]

    return losses


def likelihoods(model: LanguageModel, of: AnswerBatch) -> Callable[[], Tensor]:
    """Returns a closure: minus the mean log-likelihood of the correct answer of each prompt, shape (prompts,)."""
    return lambda: -model.answer_scores(of.correct_only())
