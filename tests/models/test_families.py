"""A row scores alone as it does in a batch, for real architectures; where it does not, the model is refused."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from tests.helpers.families import CAUSAL, MASKED, build
from zolit import MeZO, quickstart
from zolit.errors import UserError
from zolit.models.batches import AnswerBatch, PromptBatch
from zolit.models.language_model import LanguageModel
from zolit.models.tuning import Full
from zolit.tasks.classification import Classification
from zolit.training.objective import Objective
from zolit.training.row_check import RowCheck

ROWS = [[7, 8, 9, 10, 11, 12, 13, 14, 15], [20, 21, 22], [30, 31, 32, 33, 34, 35]]
ANSWERS = [[40, 41], [42], [43, 44, 45], [46, 47], [48], [49]]
MASKS = [-2, -1, -3]
IGNORE_PADDING = {"rwkv", "recurrent-gemma"}

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about kernels that are not installed


def padded(rows: Sequence[Sequence[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(len(row))
        ids[index, place], mask[index, place] = torch.tensor(row), 1
    return ids, mask


def prompts(rows: Sequence[Sequence[int]], masks: Sequence[int] = ()) -> PromptBatch:
    count = torch.arange(len(rows))
    positions = torch.tensor(masks) if masks else torch.full_like(count, -1)
    return PromptBatch(*padded(rows, True), torch.zeros_like(count), torch.tensor([5, 6]), count, positions)


def answers() -> AnswerBatch:
    ids, mask = padded(ROWS, True)
    return AnswerBatch(
        ids,
        mask,
        *padded(ANSWERS, False),
        prompt_index=torch.tensor([0, 0, 1, 1, 2, 2]),
        choice_index=torch.tensor([0, 1] * 3),
        is_correct=torch.tensor([True, False] * 3),
        labels=torch.tensor([0, 2, 4]),
        indices=torch.arange(3),
        max_choices=2,
        references=[[], [], []],
    )


def language(name: str) -> LanguageModel:
    return LanguageModel(build(name), Full())


@pytest.mark.parametrize("name", [*CAUSAL, *MASKED])
def test_a_row_alone_scores_as_in_a_batch(name: str) -> None:
    masks = MASKS if name in MASKED else []
    lm = language(name)
    objective = Objective("task", Classification(), None)
    batch = prompts(ROWS, masks)

    def check() -> None:
        RowCheck(True)(batch, lambda: objective.losses(lm, batch), objective, lm)

    if name in IGNORE_PADDING:
        with pytest.raises(UserError, match="gives an example the loss"):
            check()
        RowCheck(False)(batch, lambda: objective.losses(lm, batch), objective, lm)
        return
    check()
    with torch.no_grad():
        together = lm.word_logits(batch)
        for index, row in enumerate(ROWS):
            alone = lm.word_logits(prompts([row], masks[index : index + 1]))
            torch.testing.assert_close(alone[0], together[index], atol=2e-5, rtol=2e-5)
    assert together.std() > 0


@pytest.mark.parametrize("name", sorted(CAUSAL.keys() - IGNORE_PADDING))
def test_answers_that_share_a_prompt_score_as_without(name: str) -> None:
    lm = language(name)
    with torch.no_grad():
        apart = lm.answer_scores(answers())
        for _ in range(2):  # the second time, a model without a plain cache makes no forward of the prompts
            torch.testing.assert_close(lm.answer_scores(answers(), share_prompts=True), apart, atol=2e-5, rtol=2e-5)


def test_answers_are_written_greedily_whatever_the_folder_says() -> None:
    odd = build("llama")
    odd.generation_config.update(num_beams=3, do_sample=True, repetition_penalty=3.0, min_length=9)  # type: ignore[union-attr]  # it has one
    plain, asked = (LanguageModel(model, Full()) for model in (build("llama"), odd))
    options = {"max_new_tokens": 6, "pad_token_id": 0, "do_sample": False}
    ids, mask = padded(ROWS, True)
    written = [lm.model.generate(input_ids=ids, attention_mask=mask, **options) for lm in (plain, asked)]  # type: ignore[operator]  # a model of transformers
    assert torch.equal(*written)


@pytest.mark.parametrize("name", [*CAUSAL, *MASKED])
def test_a_step_streams(name: str) -> None:
    """Both kinds of probing measure the same losses; every weight that moves a loss is among those that are drawn."""
    losses: dict[str, list[float]] = {}
    said = []
    for probing in ("streamed", "in_place"):
        lm = LanguageModel(build(name), Full())
        objective = Objective("task", Classification(), None)
        batch = prompts(ROWS, MASKS if name in MASKED else [])
        optimizer = MeZO(lm.model, lr=0.0, eps=1e-1, probing=probing)
        losses[probing] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                optimizer.step(lambda: objective.losses(lm, batch))  # noqa: B023  # within this round
                losses[probing] += optimizer.last_step.losses
        said += [str(warning.message) for warning in caught if "holds weights elsewhere" in str(warning.message)]
    assert losses["streamed"] == pytest.approx(losses["in_place"], rel=1e-4)
    assert losses["streamed"][0] != losses["streamed"][1]
    assert not said  # every architecture of the table streams; a model that does not is in tests/optim/probing


@pytest.mark.parametrize("name", sorted(CAUSAL.keys() - IGNORE_PADDING))
def test_answers_are_written_as_transformers_writes_them(name: str) -> None:
    lm = LanguageModel(build(name), Full())
    tokenizer = AutoTokenizer.from_pretrained(quickstart.MODEL)
    written = lm.generate(answers(), tokenizer, max_new_tokens=5)
    plain = build(name)
    plain.generation_config = GenerationConfig()
    for row, text in zip(ROWS, written, strict=True):
        ids = torch.tensor([row])
        with torch.no_grad():
            for _ in range(5):  # without a cache
                logits = plain(input_ids=ids, use_cache=False).logits
                ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        whole = tokenizer.decode(ids[0, len(row) :], skip_special_tokens=True)
        assert text == whole.strip().split("\n")[0].strip()
