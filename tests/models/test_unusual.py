"""Models of unusual make: no declared head, few options, scaled or capped logits, few positions."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from tests.helpers.families import ENCODER, GROUPED, build
from tests.models.test_families import ANSWERS, ROWS, answers, prompts
from zolit.errors import UserError
from zolit.models.language_model import LanguageModel
from zolit.models.tuning import Full


class Bare(PreTrainedModel):
    """Takes tokens alone, names no head, and has a bias in it."""

    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(200, 16)
        self.out = nn.Linear(16, 200)

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(logits=self.out(self.words(input_ids).cumsum(1).tanh()).float())


class Masked(Bare):
    """Takes a mask, too."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:  # type: ignore[override]  # one option more
        hidden = (self.words(input_ids) * attention_mask[..., None]).cumsum(1)
        return SimpleNamespace(logits=self.out(hidden.tanh()).float())


@pytest.mark.parametrize("kind", [Bare, Masked])
def test_a_forward_with_few_options(kind: type[Bare]) -> None:
    lm = LanguageModel(kind(PretrainedConfig()).eval(), Full())
    with torch.no_grad():
        for index, row in enumerate(ROWS):
            logits = lm.model(torch.tensor([row]), *([torch.ones(1, len(row))] if kind is Masked else [])).logits[:, -1]
            torch.testing.assert_close(lm.word_logits(prompts([row])), logits)
            if kind is Masked:
                torch.testing.assert_close(lm.word_logits(prompts(ROWS))[index], logits[0])
        if kind is Masked:
            assert lm.answer_scores(answers(), share_prompts=True).shape == (len(ANSWERS),)
    with pytest.raises(UserError, match="cannot write answers"):
        lm.generate(answers(), None, 3)  # type: ignore[arg-type]  # it is not reached


HEADS: dict[str, Callable[[], PreTrainedModel]] = {
    "capped": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**GROUPED, head_dim=8, final_logit_softcapping=0.5, attn_logit_softcapping=1.0)
    ),
    "scaled": lambda: transformers.CohereForCausalLM(transformers.CohereConfig(**GROUPED, logit_scale=0.1)),
    "with a bias": lambda: build("phi"),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads(name: str) -> None:
    """Scores are those of the model's own loss."""
    lm = LanguageModel(HEADS[name]().eval(), Full())
    batch = answers()
    with torch.no_grad():
        scores = lm.answer_scores(batch)
        for score, index, answer in zip(scores, batch.prompt_index.tolist(), ANSWERS, strict=True):
            ids = torch.tensor([[*ROWS[index], *answer]])
            labels = ids.clone()
            labels[:, : len(ROWS[index])] = -100
            torch.testing.assert_close(-lm.model(input_ids=ids, labels=labels).loss, score, atol=1e-5, rtol=1e-5)


POSITIONS: dict[str, tuple[Callable[[], PreTrainedModel], int]] = {
    "bert": (lambda: transformers.BertForMaskedLM(transformers.BertConfig(**ENCODER)), 128),
    "roberta": (lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**ENCODER, pad_token_id=1)), 126),
    "xlm-roberta": (
        lambda: transformers.XLMRobertaForMaskedLM(transformers.XLMRobertaConfig(**ENCODER, pad_token_id=1)),
        126,
    ),
    "mpnet": (lambda: transformers.MPNetForMaskedLM(transformers.MPNetConfig(**ENCODER)), 126),
    "camembert": (
        lambda: transformers.CamembertForMaskedLM(transformers.CamembertConfig(**ENCODER, pad_token_id=1)),
        126,
    ),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_rows_that_are_too_long(name: str) -> None:
    make, positions = POSITIONS[name]
    model = make()
    model.config.architectures = [type(model).__name__]
    lm = LanguageModel(model.eval(), Full())
    with torch.no_grad():
        lm.word_logits(prompts([[7] * positions], [-1]))
    with pytest.raises(UserError, match=f"has {positions + 1} tokens, and the model has {positions} positions"):
        lm.word_logits(prompts([[7] * (positions + 1)], [-1]))
