"""Compares evaluations of real architectures with plain loops over transformers, one example at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from zolit import quickstart
from zolit.data.encoded import EncodedAnswers, EncodedPrompts
from zolit.models.batches import AnswerBatch
from zolit.models.language_model import LanguageModel
from zolit.models.tuning import Full, LoRA, PrefixTuning, Tuning

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "opt": lambda: OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=32)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED, head_dim=8, tie_word_embeddings=True)),
}


def made(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    return MODELS[name]().eval().to(dtype)


def answers(count: int = 7) -> EncodedAnswers:
    generator = torch.Generator().manual_seed(0)

    def ids(longest: int) -> Tensor:
        length = int(torch.randint(1, longest, (), generator=generator))
        return torch.randint(3, 60, (length,), generator=generator)

    prompts = [ids(14) for _ in range(count)]
    choices = [[ids(6) for _ in range(2 + i % 3)] for i in range(count)]
    return EncodedAnswers(prompts, choices, [(0,)] * count, [()] * count, pad_id=0)


@torch.no_grad()
def alone(model: torch.nn.Module, data: EncodedAnswers, index: int) -> list[float]:
    """Returns the mean log-likelihood of each answer of an example, from a plain forward without padding."""
    found = []
    for answer in data.answers[index]:
        whole = torch.cat([data.prompts[index], answer])
        logits = model(input_ids=whole[None]).logits[0].float().log_softmax(1)
        start = len(data.prompts[index])
        found.append(float(logits[torch.arange(start - 1, len(whole) - 1), answer].mean()))
    return found


TUNINGS: dict[str, Callable[[], Tuning]] = {"full": Full, "lora": LoRA, "prefix": PrefixTuning}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_each_answer_alone(name: str, tuning: str) -> None:
    language, data = LanguageModel(made(name), TUNINGS[tuning]()), answers()
    expected = torch.tensor([score for i in range(len(data)) for score in alone(language.model, data, i)])
    with torch.no_grad():
        for size in (1, 3, 7):
            batches = [data[list(range(start, min(start + size, 7)))] for start in range(0, 7, size)]
            for share in (False, True):
                found = torch.cat([language.answer_scores(batch, share_prompts=share) for batch in batches])
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_scores_in_bfloat16(name: str) -> None:
    data = answers()
    expected = torch.tensor([score for i in range(len(data)) for score in alone(made(name), data, i)])
    language = LanguageModel(made(name, torch.bfloat16), Full())
    with torch.no_grad():
        for share in (False, True):
            found = language.answer_scores(data[list(range(7))], share_prompts=share)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


def test_prompts_are_computed_once() -> None:
    language, batch = LanguageModel(made("llama"), Full()), answers()[list(range(7))]
    seen: list[int] = []
    language.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    with torch.no_grad():
        language.answer_scores(batch)
        language.answer_scores(batch, share_prompts=True)
    together, prompts, rest = seen
    assert prompts + rest < together / 2


class Repeated(TorchDispatchMode):
    """Records the size of the largest matrix that is copied for each example of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.bmm.default:
            self.numel = max([self.numel, *(arg[0].numel() for arg in args if arg.stride(0) == 0)])
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_a_frozen_head_is_not_copied_for_every_example(name: str) -> None:
    data = answers()
    language = LanguageModel(made(name), LoRA())
    batch = data[list(range(7))]
    words = EncodedPrompts(data.prompts, torch.zeros(7, dtype=torch.int64), torch.tensor([4, 5]), 0)[list(range(7))]
    with torch.no_grad(), Repeated() as repeated:
        language.word_logits(words)
        language.answer_scores(batch)
        language.answer_scores(batch, share_prompts=True)
    assert repeated.numel < 60 * 32


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(quickstart.MODEL)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("name", MODELS)
def test_generation_is_greedy(name: str, tuning: str, tokenizer: PreTrainedTokenizerBase) -> None:
    language, data = LanguageModel(made(name), TUNINGS[tuning]()), answers(5)
    batch: AnswerBatch = data[[3, 0, 4]]
    with torch.no_grad():
        found = language.generate(batch, tokenizer, 6)
        for text, index in zip(found, [3, 0, 4], strict=True):
            ids = data.prompts[index]
            for _ in range(6):
                ids = torch.cat([ids, language.model(input_ids=ids[None]).logits[0, -1:].argmax(1)])
                if ids[-1] == tokenizer.eos_token_id:
                    break
            written = tokenizer.decode(ids[len(data.prompts[index]) :], skip_special_tokens=True)
            assert text == written.strip().split("\n")[0].strip()


def test_text_after_the_line_break_is_dropped(tokenizer: PreTrainedTokenizerBase) -> None:
    """The model always generates the same tokens; the third is a line break."""
    model = made("llama")
    line = tokenizer("a\n", add_special_tokens=False)["input_ids"][-1]
    written = [tokenizer("a", add_special_tokens=False)["input_ids"][-1]] * 2 + [line] + [5] * 20
    steps: list[int] = []

    def generate(**options: object) -> Tensor:
        steps.append(len(written))
        ids = options["input_ids"]
        assert isinstance(ids, Tensor)
        stops = options["eos_token_id"]
        assert isinstance(stops, list)
        assert line in stops
        return torch.cat([ids, torch.tensor([written] * len(ids))], dim=1)

    model.generate = generate  # type: ignore[method-assign, assignment]  # the test generates in its place
    language = LanguageModel(model, Full())
    assert language.generate(answers(2)[[0, 1]], tokenizer, 23) == ["aa", "aa"]
    assert steps == [23]


def test_a_masked_models_logits_are_those_at_the_mask() -> None:
    torch.manual_seed(0)
    config = RobertaConfig(**SIZES, intermediate_size=48, max_position_embeddings=40, pad_token_id=1)
    config.architectures = ["RobertaForMaskedLM"]
    model = RobertaForMaskedLM(config).eval()
    prompts = [torch.tensor(ids) for ids in ([5, 6, 59, 8, 2], [59, 7, 2], [9, 9, 9, 9, 59])]
    places = torch.tensor([-3, -3, -1])
    data = EncodedPrompts(prompts, torch.tensor([0, 1, 0]), torch.tensor([11, 12]), 1, places)
    language = LanguageModel(copy.deepcopy(model), Full())
    with torch.no_grad():
        for indices in ([0, 1, 2], [1], [2, 0]):
            found = language.word_logits(data[indices])
            for row, index in enumerate(indices):
                ids = prompts[index]
                expected = model(input_ids=ids[None]).logits[0, len(ids) + places[index]]
                torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=0)
