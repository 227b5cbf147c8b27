import itertools
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from zolit.quickstart import MODEL, TRAIN, VALIDATION, build, language


def read(path: Path) -> list[language.Record]:
    return [language.Record(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MODEL, local_files_only=True)


@pytest.mark.parametrize(("path", "size"), [(TRAIN, 1_000), (VALIDATION, 400)])
def test_records_are_balanced_and_differ(path: Path, size: int) -> None:
    records = read(path)
    assert len({record.sentence for record in records}) == size
    assert sum(record.label for record in records) == size // 2


def test_records_are_those_of_the_seed(tmp_path: Path) -> None:
    build.write_records(tmp_path)
    for path in (TRAIN, VALIDATION):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_validation_pairs_occur_nowhere_else() -> None:
    corpus = [record.sentence for record in read(TRAIN)]
    corpus += [
        sentence for text in itertools.islice(language.texts(build.SEED + 1), 2_000) for sentence in text.split(". ")
    ]
    seen = set().union(*map(language.pairs, corpus))
    for record in read(VALIDATION):
        # Each opinion has a pair, else holding out pairs would have no effect.
        assert language.pairs(record.sentence)
        assert language.pairs(record.sentence).isdisjoint(seen)


def test_label_words_are_distinct_single_tokens_after_the_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = f"{read(VALIDATION)[0].sentence} It was"
    alone = tokenizer(prompt).input_ids
    labels = [tokenizer(prompt + word).input_ids for word in language.LABEL_WORDS]
    assert all(label[:-1] == alone for label in labels)
    assert len({label[-1] for label in labels}) == 2


def test_model_before_tuning_answers_at_chance_and_represents_the_mood(tokenizer: PreTrainedTokenizerBase) -> None:
    """The label words carry no information before fine-tuning; the other words of opinion do."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, local_files_only=True)
    assert isinstance(model, LlamaForCausalLM)
    records = read(VALIDATION)
    batch = tokenizer([f"{record.sentence} It was" for record in records], padding=True, return_tensors="pt")
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(**batch, position_ids=positions, logits_to_keep=1).logits[:, -1]
    labels = torch.tensor([record.label for record in records])

    def accuracy(disliking: list[str], liking: list[str]) -> float:
        sides = [
            logits[:, tokenizer(words, add_special_tokens=False, return_tensors="pt").input_ids[:, 0]].logsumexp(1)
            for words in (disliking, liking)
        ]
        return float((torch.stack(sides, dim=1).argmax(1) == labels).float().mean())

    terrible, great = language.LABEL_WORDS
    assert 0.4 < accuracy([terrible], [great]) < 0.6
    assert accuracy([" dull", " weak", " grim", " bland"], [" lovely", " warm", " vivid", " fresh"]) > 0.95


def test_files_are_small() -> None:
    files = [TRAIN, VALIDATION, *MODEL.iterdir()]
    assert sum(file.stat().st_size for file in files) < 1_500_000


def test_builder_writes_the_shipped_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build.main(["--output", str(tmp_path), "--steps", "3"])
    assert "pretraining" in capsys.readouterr().out
    built = {file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()}
    assert built == {file.relative_to(MODEL.parent) for file in [TRAIN, VALIDATION, *MODEL.iterdir()]}
    assert (tmp_path / MODEL.name / "tokenizer.json").read_bytes() == (MODEL / "tokenizer.json").read_bytes()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / MODEL.name, local_files_only=True)
    assert torch.isfinite(model.lm_head.weight).all()
