from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.connectors import data_connector

from tests.helpers.words import VOCABULARY, sentences, write
from zolit.data import parts as data_file
from zolit.data.datamodule import PromptedData
from zolit.errors import UserError
from zolit.models.batches import PromptBatch
from zolit.tasks.task import DatasetSplits

# Lightning 2.6 under torch 2.13 causes this warning at each use of a loader.
pytestmark = pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")

Build = Callable[..., PromptedData]


class Recorder(LightningModule):
    """Makes steps without learning, and records its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.automatic_optimization = False
        self.trained: list[list[list[int]]] = []
        self.validated = 0

    def training_step(self, batch: PromptBatch, index: int) -> torch.Tensor:
        self.optimizers().step(lambda: None)
        self.trained.append(batch.input_ids.tolist())
        return torch.zeros(())

    def validation_step(self, batch: PromptBatch, index: int) -> None:
        self.validated += len(batch.labels)

    test_step = validation_step

    def predict_step(self, batch: PromptBatch, index: int) -> torch.Tensor:
        return batch.attention_mask.sum(1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        **(quiet | options),
    )


def test_batches_hold_the_records(module: Build) -> None:
    data = module()
    data.setup("fit")
    assert data._encoded["train"].candidates.tolist() == [VOCABULARY[" bad"], VOCABULARY[" great"]]
    rows = sentences(11)
    expected = {}
    for row in rows:
        head, *rest = row["sentence"].split(" ")
        words = [head, *(" " + word for word in [*rest, "It", "was"])]
        expected[(1, *(VOCABULARY[word] for word in words))] = row["label"]
    seen = {}
    for batch in data.val_dataloader():
        assert batch.candidates is data._encoded["validation"].candidates
        for ids, mask, label in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True):
            assert ids[-1] == VOCABULARY[" was"]
            assert not ids[mask == 0].ne(VOCABULARY["</s>"]).any()  # there is no pad token, so the eos pads
            seen[tuple(ids[mask == 1].tolist())] = int(label)
    assert seen == expected


def test_setup_reads_what_a_stage_needs_and_each_split_once(module: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    real = data_file.read_file
    monkeypatch.setattr(data_file, "read_file", lambda path: (read.append(path), real(path))[1])
    data = module()
    for stage in ("validate", "fit", "fit", "predict"):
        data.setup(stage)
    assert [Path(path).name for path in read] == [
        "validation.jsonl",
        "train.jsonl",
        "validation.jsonl",
    ]  # the last one without labels


def test_label_words_may_have_numbers_for_keys(module: Build) -> None:
    data = module(label_words={0: " bad", 1: " great"})  # YAML's result for {0: " bad", 1: " great"}
    data.setup("fit")
    assert list(data.task.label_words) == ["0", "1"]


def test_options_of_size(module: Build) -> None:
    data = module(train_examples=9, validation_examples=3, max_tokens=10, seed=3)
    data.setup("fit")
    assert len(data.train_dataloader()) == 2
    assert sum(len(batch.labels) for batch in data.val_dataloader()) == 3


class Share(DDPStrategy):
    """The strategy of one of several processes."""

    def __init__(self, rank: int, count: int) -> None:
        super().__init__()
        self._share = {"rank": rank, "num_replicas": count}

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        return self._share


def of_rank(rank: int, count: int) -> SimpleNamespace:
    return SimpleNamespace(strategy=Share(rank, count), overfit_batches=0)


def test_two_ranks_share_the_batches_of_one(module: Build) -> None:
    whole = module(batch_size=8)
    whole.setup("fit")
    shards = []
    for rank in range(2):
        shard = module(batch_size=4)
        shard.trainer = of_rank(rank, 2)
        shard.setup("fit")
        shards.append(shard.train_dataloader())
    for batch, first, second in zip(whole.train_dataloader(), *shards, strict=True):
        for part, of_whole in ((first, batch.labels[::2]), (second, batch.labels[1::2])):
            assert part.labels.tolist() == of_whole.tolist()


def test_files_take_precedence_over_datasets(module: Build, tmp_path: Path) -> None:
    saved = datasets.DatasetDict({"few": datasets.Dataset.from_list(sentences(5))})
    saved.save_to_disk(tmp_path / "saved")
    splits = DatasetSplits(train=None, validation="few", test="few")
    data = module(dataset=str(tmp_path / "saved"), dataset_splits=splits, validation_file=None)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    data.setup("predict")
    assert len(data.train_dataloader()) == 9  # the file
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert sum(len(batch.labels) for batch in loader) == 5


def test_mistakes(module: Build, tmp_path: Path, model_folder: str) -> None:
    def made(rows: list[dict[str, Any]]) -> str:
        return write(tmp_path / "made.jsonl", rows)

    good = sentences(8)
    long = made([*good, {"sentence": "a " * 20 + "b", "label": 0}])
    empty = write(tmp_path / "empty.jsonl", [])
    label = write(tmp_path / "label.jsonl", [*good, {"sentence": "a", "label": 2}])
    cases: list[tuple[dict[str, Any], str]] = [
        ({"train_file": "nowhere.jsonl"}, "there is no file nowhere.jsonl"),
        ({"train_file": empty}, "empty.jsonl is empty"),
        (
            {"template": "{text} It was"},
            "--data.task.template names the column 'text', but .*train.jsonl has only: s",
        ),
        ({"label_column": "gold"}, "--data.task.label_column names the column 'gold', but"),
        (
            {"train_file": label},
            "record 9 of .*label.jsonl has the label '2', but --data.task.label_words has no word",
        ),
        (
            {"train_file": long, "max_tokens": 23},
            "prompt of record 9 of .*made.jsonl has 24 tokens, more than the limit of 23",
        ),
        ({"max_tokens": 5}, "prompt of record 3 of .*train.jsonl has 6 tokens, more than the limit of 5"),
        ({"max_tokens": 25}, "--data.max_tokens 25 is more than the model's context of 24 tokens"),
        ({"batch_size": 38}, "37 train examples, fewer than the 38 that 1 processes need: one batch of 38 each"),
        ({"train_file": None}, "there is no train data: set --data.train_file or --data.dataset"),
        ({"eval_batch_size": 0}, "--data.eval_batch_size must be at least 1, not 0"),
        (
            {"train_file": write(tmp_path / "void.jsonl", [{"sentence": "", "label": 0}]), "template": "{sentence}"},
            "record 1 of .*void.jsonl has no text in the column 'sentence'",
        ),
        ({"name_or_path": str(tmp_path)}, "the config.json of .* cannot be read"),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            module(**options).setup("fit")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="there is no test data"):
        module().setup("test")
    with pytest.raises(UserError, match="there is no validation data"):
        module(validation_file=None).setup("predict")


def test_the_context_of_the_model_is_the_limit(module: Build, tmp_path: Path) -> None:
    fits = write(tmp_path / "fits.jsonl", [{"sentence": "a" + " b" * 20, "label": 0}] * 4)
    module(train_file=fits).setup("fit")
    too_long = write(tmp_path / "long.jsonl", [{"sentence": "a" + " b" * 21, "label": 0}] * 4)
    with pytest.raises(UserError, match="has 25 tokens, more than the limit of 24"):
        module(train_file=too_long).setup("fit")


def test_too_few_examples_for_the_processes(module: Build) -> None:
    data = module(batch_size=10, validation_examples=2)
    data.trainer = of_rank(0, 3)
    with pytest.raises(UserError, match="2 validation examples, fewer than the 3"):
        data.setup("validate")
    data.trainer = of_rank(0, 4)
    with pytest.raises(UserError, match="37 train examples, fewer than the 40"):
        data.setup("fit")


def test_every_stage_runs_under_lightning_without_a_warning(
    module: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_connector, "suggested_max_num_workers", lambda devices: 8)  # as on a larger machine
    recorder, data = Recorder(), module()
    trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0).fit(recorder, datamodule=data)
    assert (len(recorder.trained), recorder.validated) == (9, 11)
    for run in (Trainer.validate, Trainer.test):
        recorder.validated = 0
        tested = module(test_file=data._parts.files["validation"])
        run(trainer(tmp_path), recorder, datamodule=tested, verbose=False)
        assert recorder.validated == 11
    predicted = trainer(tmp_path).predict(recorder, datamodule=data)
    lengths = [1 + len(row["sentence"].split(" ")) + 2 for row in sentences(11)]
    assert lengths != sorted(lengths)
    assert torch.cat(predicted).tolist() == lengths  # in the order of the file


def test_a_fit_needs_no_validation_data(module: Build, tmp_path: Path) -> None:
    recorder = Recorder()
    trainer(tmp_path, max_epochs=1).fit(recorder, datamodule=module(validation_file=None))
    assert (len(recorder.trained), recorder.validated) == (9, 0)


def test_overfitting_with_another_sampler_is_refused(module: Build, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape("overfit_batches")):
        trainer(tmp_path, max_epochs=1, overfit_batches=2).fit(Recorder(), datamodule=module())


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
@pytest.mark.parametrize(
    ("limits", "saving", "steps"),
    [
        # 9 batches an epoch: within the first and the second, at an epoch's last batch
        ({"max_steps": 20}, {"every_n_train_steps": 1}, (4, 9, 13)),
        ({"max_epochs": 2}, {"every_n_train_steps": 1}, (4, 9, 13)),
        # after the end of an epoch, Lightning 2.6 does not restore a loader's state ...
        ({"max_epochs": 2}, {"every_n_epochs": 1, "save_on_train_epoch_end": True}, (9,)),
        # ... and with max_steps it miscounts the epochs
        ({"max_steps": 20}, {"every_n_epochs": 1, "save_on_train_epoch_end": True}, (9, 18)),
        # epochs whose length Lightning sets
        ({"max_epochs": 4, "limit_train_batches": 5}, {"every_n_train_steps": 1}, (3, 5, 8)),
    ],
)
def test_a_resumed_fit_continues_with_the_next_batch(
    module: Build, tmp_path: Path, limits: dict[str, int], saving: dict[str, Any], steps: tuple[int, ...]
) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path / "saved", filename="{step}", save_top_k=-1, **saving)
    whole = Recorder()
    trainer(tmp_path, saver, **limits).fit(whole, datamodule=module())
    for step in steps:
        rest = Recorder()
        checkpoint = tmp_path / "saved" / f"step={step}.ckpt"
        trainer(tmp_path, **limits).fit(rest, datamodule=module(), ckpt_path=checkpoint, weights_only=True)
        assert rest.trained == whole.trained[step:]


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_only_a_fit_needs_the_batches_of_the_checkpoint(module: Build, tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path / "saved", filename="{step}", every_n_train_steps=1)
    trainer(tmp_path, saver, max_steps=3).fit(Recorder(), datamodule=module())
    resume = {"ckpt_path": tmp_path / "saved" / "step=3.ckpt", "weights_only": True}
    recorder = Recorder()
    with pytest.raises(UserError, match=r"set data\.batch_size to 4, which is right for 1 process"):
        trainer(tmp_path, max_steps=5).fit(recorder, datamodule=module(batch_size=8), **resume)
    assert recorder.validated == 0  # before the validation that precedes a fit
    other = module(batch_size=8, seed=1, train_examples=9)
    trainer(tmp_path).validate(recorder, datamodule=other, verbose=False, **resume)
    trainer(tmp_path).predict(recorder, datamodule=other, **resume)
    trainer(tmp_path, max_steps=5).fit(recorder, datamodule=module(), **resume)
    assert len(recorder.trained) == 2


def test_a_second_fit_starts_from_the_first_batch(module: Build, tmp_path: Path) -> None:
    data, first, second = module(), Recorder(), Recorder()
    trainer(tmp_path, max_epochs=1).fit(first, datamodule=data)
    trainer(tmp_path, max_epochs=1).fit(second, datamodule=data)
    assert first.trained == second.trained
