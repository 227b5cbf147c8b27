"""The tokens of each task with each kind of tokenizer, decoded back to text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast, RobertaConfig

from tests.helpers.examples import records
from tests.helpers.words import write
from tests.tasks.test_tasks import GOLDEN, TASKS
from zolit.data.datamodule import PromptedData
from zolit.models.batches import AnswerBatch, PromptBatch

ROWS = [{"sentence": "a", "label": 0}, {"sentence": "a much longer sentence", "label": 1}]
SPECIAL = ["<s>", "</s>", "<unk>", "<pad>", "<mask>"]
TEXTS = [
    question.prompt + answer
    for name, task in TASKS.items()
    for question in map(task.question, records(name, 12))
    for answer in question.answers
] * 3


def _trained(
    tokenizer: Tokenizer, trainer: trainers.Trainer, before: str, after: str, texts: list[str] = TEXTS
) -> PreTrainedTokenizerFast:
    tokenizer.train_from_iterator(texts, trainer)
    special = [(token, tokenizer.token_to_id(token)) for token in SPECIAL]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{before} $A {after}".strip(), special_tokens=special
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    fast.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True)})
    return fast


def byte_level(before: str = "", after: str = "") -> PreTrainedTokenizerFast:
    """A token includes the space before its word: OPT (with a bos), Llama 3, Qwen, RoBERTa (with bos and eos)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet)
    return _trained(tokenizer, trainer, before, after)


def sentence_piece() -> PreTrainedTokenizerFast:
    """Adds a space before each text, as a character of its first word. A line break is a byte: Llama 2, Mistral."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex('▁|\n|[?.,:"]'), "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*SPECIAL, "<0x0A>"])
    words = ["(Yes", "(No", "(Maybe"] * 20
    return _trained(tokenizer, trainer, "<s>", "", [line for text in TEXTS for line in text.split("\n")] + words)


def no_space() -> PreTrainedTokenizerFast:
    """Spaces are separate tokens, and a word has the same token at the start of a text and within it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\s|[^\w\s]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _trained(tokenizer, trainers.BpeTrainer(vocab_size=900, special_tokens=SPECIAL), "", "")


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte level": byte_level,
    "byte level with a bos": lambda: byte_level("<s>"),
    "sentencepiece": sentence_piece,
    "no space": no_space,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = {}
    for kind, build in KINDS.items():
        made[kind] = str(tmp_path_factory.mktemp("tokenizer"))
        build().save_pretrained(made[kind])
        LlamaConfig(max_position_embeddings=400, hidden_size=8, num_attention_heads=1).save_pretrained(made[kind])
    return made


def batch_of(
    folder: str, name: str, tmp_path: Path, max_tokens: int | None = None, calibrated: bool = False
) -> PromptBatch | AnswerBatch:
    file = write(tmp_path / "rows.jsonl", records(name, 6))
    data = PromptedData(
        name_or_path=folder,
        task=TASKS[name],
        validation_file=file,
        eval_batch_size=6,
        max_tokens=max_tokens,
        too_long="cut",
        calibrated=calibrated,
    )
    data.setup("validate")
    batch: PromptBatch | AnswerBatch = data._encoded["validation"][list(range(6))]
    return batch


def pieces(folder: str, batch: PromptBatch | AnswerBatch, index: int) -> tuple[list[int], list[list[int]]]:
    """Returns the tokens of a prompt, and those of each answer that its loss uses."""
    if isinstance(batch, PromptBatch):
        return batch.input_ids[index][batch.attention_mask[index] == 1].tolist(), [
            [t] for t in batch.candidates.tolist()
        ]
    prompt = batch.prompt_ids[index][batch.prompt_mask[index] == 1].tolist()
    own = (batch.prompt_index == index).nonzero().flatten().tolist()
    return prompt, [batch.answer_ids[row][batch.answer_mask[row] == 1].tolist() for row in own]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "index", "prompt", "answers", "right"), GOLDEN)
def test_prompts_and_answers_are_the_text_and_nothing_else(
    folders: dict[str, str],
    tmp_path: Path,
    kind: str,
    name: str,
    index: int,
    prompt: str,
    answers: tuple[str, ...],
    right: tuple[int, ...],
) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folders[kind])
    ids, own = pieces(folders[kind], batch_of(folders[kind], name, tmp_path), index)
    assert len(own) == len(answers)
    for answer, tokens in zip(answers, own, strict=True):
        assert ids + tokens == tokenizer(prompt + answer)["input_ids"]
        text = [token for token in ids + tokens if token != tokenizer.bos_token_id]
        assert tokenizer.decode(text).strip() == (prompt + answer).strip()
        assert tokenizer.decode(tokens).strip() in answer
    assert ids.count(tokenizer.bos_token_id) == (kind in ("byte level with a bos", "sentencepiece"))


SPELLED = {
    "byte level": {
        "sst2": [["Ġterrible"], ["Ġgreat"]],
        "rte": [["Yes"], ["No"]],
        "cb": [["Yes"], ["No"], ["Maybe"]],
        "squad": [["Ġa", "Ġboat", "Ċ"]],
        "copa": [["Ġthe", "Ġrain", "Ġfell", "."], ["ĠI", "Ġdropped", "Ġa", "Ġboat", "."]],
    },
    "sentencepiece": {
        "sst2": [["▁terrible"], ["▁great"]],
        "rte": [["Yes"], ["No"]],
        "cb": [["Yes"], ["No"], ["Maybe"]],
        "squad": [["▁a", "▁boat", "<0x0A>"]],
        "copa": [["▁the", "▁rain", "▁fell", "."], ["▁I", "▁dropped", "▁a", "▁boat", "."]],
    },
    "no space": {
        "sst2": [[" ", "terrible"], [" ", "great"]],
        "rte": [["Yes"], ["No"]],
        "cb": [["Yes"], ["No"], ["Maybe"]],
        "squad": [[" ", "a", " ", "boat", "\n"]],
        "copa": [
            [" ", "the", " ", "rain", " ", "fell", "."],
            [" ", "I", " ", "dropped", " ", "a", " ", "boat", "."],
        ],
    },
}
SPELLED["byte level with a bos"] = SPELLED["byte level"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["sst2", "rte", "cb", "squad", "copa"])
def test_answers_decode_to_their_text(folders: dict[str, str], tmp_path: Path, kind: str, name: str) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folders[kind])
    _, own = pieces(folders[kind], batch_of(folders[kind], name, tmp_path), 0)
    assert [tokenizer.convert_ids_to_tokens(tokens) for tokens in own] == SPELLED[kind][name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TASKS)
def test_cut_prompts_keep_the_question_the_answer_and_the_bos(
    folders: dict[str, str], tmp_path: Path, kind: str, name: str
) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folders[kind])
    whole = batch_of(folders[kind], name, tmp_path)
    needed = []
    for index in range(6):
        ids, own = pieces(folders[kind], whole, index)
        needed.append(len(ids) + max([len(answer) for answer in own] + [50] * TASKS[name].generates) - 1)
    cut = batch_of(folders[kind], name, tmp_path, min(needed) - 3)
    begins = kind in ("byte level with a bos", "sentencepiece")
    for index in range(6):
        (ids, own), (kept, same) = (pieces(folders[kind], batch, index) for batch in (whole, cut))
        assert own == same
        assert kept[: int(begins)] == [tokenizer.bos_token_id] * begins
        assert ids[-len(kept[begins:]) :] == kept[begins:]
        assert len(kept) < len(ids)


@pytest.mark.parametrize("name", ["sst2", "rte", "cb", "boolq"])
def test_answer_positions_are_those_of_the_masks(tmp_path: Path, name: str) -> None:
    tokenizer = byte_level("<s>", "</s>")
    tokenizer.save_pretrained(tmp_path)
    RobertaConfig(architectures=["RobertaForMaskedLM"], max_position_embeddings=400).save_pretrained(tmp_path)
    batch = batch_of(str(tmp_path), name, tmp_path, calibrated=True)
    assert isinstance(batch, PromptBatch)
    words = {"sst2": ["Ġterrible", "Ġgreat"], "cb": ["ĠYes", "ĠNo", "ĠMaybe"]}.get(name, ["ĠYes", "ĠNo"])
    assert tokenizer.convert_ids_to_tokens(batch.candidates.tolist()) == words
    assert batch.content_free is not None
    assert batch.content_free.input_ids.shape[1] < batch.input_ids.shape[1]
    for asked in (batch, batch.content_free):
        for row, place in zip(asked.input_ids, asked.answer_position.tolist(), strict=True):
            assert (row == tokenizer.mask_token_id).nonzero().tolist() == [[len(row) + place]]
            assert int(row[-1]) == tokenizer.eos_token_id


def test_padding_is_a_token_that_the_model_knows(folders: dict[str, str], tmp_path: Path) -> None:
    """A [PAD] that was added to a tokenizer lies just beyond the vocabulary of its model."""
    folder = tmp_path / "added"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folders["byte level"])
    vocabulary = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    small = {"hidden_size": 8, "num_attention_heads": 1, "vocab_size": vocabulary}
    LlamaConfig(max_position_embeddings=400, **small).save_pretrained(folder)
    assert tokenizer.pad_token_id == vocabulary
    data = PromptedData(name_or_path=str(folder), validation_file=write(tmp_path / "rows.jsonl", ROWS))
    data.setup("validate")
    batch = data._encoded["validation"][[0, 1]]
    assert isinstance(batch, PromptBatch)
    assert batch.input_ids[batch.attention_mask == 0].unique().tolist() == [tokenizer.eos_token_id]
