"""Command lines with mistakes end with one sentence, whatever the mistake."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import QUIET, ROOT
from zolit.cli.lightning_cli import run
from zolit.cli.main import main

SHORT_VALUES = (
    "null None nan -1 0 0.5 1e999 true yes [] {} [1] [null] .. / * { 1_0 0x10 -- - = a=b ~ %s é \udcff {sentence}"
    " MeZO AdamW torch.nn.Linear FOLDER TEXT BINARY EMPTY MISSING LIST.yaml OTHER.yaml RECORDS CHECKPOINT"
)
VALUES = [
    *SHORT_VALUES.split(),
    *["", " ", "'", '"', "&a [*a]", "{a: 1}", "- a", "a b", "!!python/object/apply:os.getcwd []", "9" * 30, "x" * 300],
]
NAMES = """
    config model data trainer checkpoint optimizer seed_everything code nonsense ckpt_path help_ output methods batch
    tokens json device index only scale files precision seconds file
    model.name_or_path model.lr_scheduler model.tuning model.tuning.rank model.objective model.micro_batch_size
    model.check_rows model.attn_implementation model.trust_remote_code model.optimizer model.optimizer.lr
    model.optimizer.eps model.optimizer.blocks model.optimizer.momentum model.optimizer.seed model.optimizer.probing
    model.optimizer.directions model.optimizer.nonsense
    data.task data.task.label_words data.task.template data.task.init_args.label data.train data.test data.source
    data.validation data.batch_size data.eval_batch_size data.train_examples data.seed data.validation_examples
    data.test_examples data.too_long data.calibrated data.demonstrations
    trainer.precision trainer.logger trainer.callbacks trainer.callbacks+ trainer.accelerator trainer.plugins
    trainer.val_check_interval trainer.limit_val_batches trainer.profiler trainer.log_every_n_steps trainer.max_time
    trainer.default_root_dir trainer.gradient_clip_val trainer.num_sanity_val_steps trainer.fast_dev_run
    trainer.max_epochs trainer.strategy trainer.deterministic
    checkpoint.monitor checkpoint.mode checkpoint.dirpath checkpoint.last_every_n_steps
"""
OPTIONS = NAMES.split()
FIT = ["--config=configs/quickstart.yaml", *QUIET, "--data.train_examples=16", "--data.validation_examples=4"]
END = ["--trainer.max_steps=1", "--trainer.logger.init_args.save_dir=RUNS", "--trainer.num_sanity_val_steps=0"]
LINES = [
    ["fit", *FIT, "--model.optimizer=MeZO", "--model.optimizer.lr=1e-3", *END],
    ["fit", *FIT, "--config=configs/method/curvzo.yaml", "--config=configs/tuning/lora.yaml", *END],
    ["validate", *FIT, "--ckpt_path=CHECKPOINT", *END],
    ["test", *FIT, *END],
    ["predict", *FIT, "--ckpt_path=CHECKPOINT", *END],
    ["export", "--ckpt_path=CHECKPOINT", "--output=NEW"],
    ["bench", "--model=quickstart", "--methods=mezo", "--seconds=0", "--batch=2", "--tokens=4", "--device=cpu"],
    ["table", "--list_runs=true", "configs/paper/curvzo_table1.yaml"],
    ["methods"],
]


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Draws a command line with up to three mistakes."""
    line = list(draw(st.sampled_from(LINES)))
    value = st.sampled_from(VALUES)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(line) - 1))
        option, _, _ = line[at].partition("=")
        match draw(st.sampled_from(["add", "add", "replace", "replace", "drop", "twice", "split", "cut", "word"])):
            case "add":
                line.append(f"--{draw(st.sampled_from(OPTIONS))}={draw(value)}")
            case "replace":
                line[at] = f"{option}={draw(value)}"
            case "drop":
                line = line[:at] + line[at + 1 :] or [""]
            case "twice":
                line.insert(at, line[at])
            case "split":
                line[at : at + 1] = line[at].split("=", 1)
            case "cut":
                line[at] = line[at][: draw(st.integers(0, len(line[at])))]
            case _:
                line.insert(at, draw(value))
    return line


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Makes a folder of files of the right and of the wrong kind the current one."""
    folder = tmp_path_factory.mktemp("places")
    contents: dict[str, bytes] = {
        "TEXT": b"only text\n",
        "BINARY": bytes(range(256)) * 8,
        "EMPTY": b"",
        "LIST.yaml": b"- 1\n- 2\n",
        "OTHER.yaml": b"model:\n  optimizer: 3\nnonsense: {}\n",
        "RECORDS": b'{"sentence": "a", "label": 1}\n',
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "FOLDER").mkdir()
    for name in ("configs", "zolit"):
        (folder / name).symlink_to(ROOT / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["zolit"])
        patch.setattr("zolit.cli.table.command.subprocess", SimpleNamespace(run=fail))  # no table is made
        run(["fit", *FIT, "--model.optimizer=MeZO", *END])
        (checkpoint,) = Path("RUNS").rglob("last.ckpt")
        yield {"CHECKPOINT": str(checkpoint)}


def fail(*_: object, **__: object) -> SimpleNamespace:
    return SimpleNamespace(returncode=1)


def answer(line: list[str], places: dict[str, str]) -> tuple[object, str]:
    """Runs a command line in this process; returns its exit status, and what it wrote to standard error."""
    sys.argv = ["zolit", *(token.replace("CHECKPOINT", places["CHECKPOINT"]) for token in line)]
    status: object = 0
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            status = end.code
    return status, said.getvalue() + (status if isinstance(status, str) else "")


def check(line: list[str], places: dict[str, str]) -> None:
    status, said = answer(line, places)
    assert "Traceback" not in said
    if status not in (0, None):
        (sentence,) = [text for text in said.splitlines() if text.startswith("zolit: error: ")]
        assert said.rstrip().endswith(sentence)
        assert len(sentence) < 900


@pytest.mark.filterwarnings("ignore")  # options may ask for what Lightning and torch warn of
@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(line=command_lines())
def test_a_command_line_with_mistakes(line: list[str], places: dict[str, str]) -> None:
    check(line, places)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # as above
@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(line=command_lines())
def test_many_command_lines_with_mistakes(line: list[str], places: dict[str, str]) -> None:
    check(line, places)


SCHEDULER = "--model.lr_scheduler=torch.optim.lr_scheduler."
PLATEAU = "lightning.pytorch.cli.ReduceLROnPlateau"
REFUSED = {
    "a scheduler of no steps": ([f"{SCHEDULER}StepLR", "--model.lr_scheduler.step_size=0"], "model.lr_scheduler"),
    "a scheduler without a length": ([f"{SCHEDULER}OneCycleLR", "--model.lr_scheduler.max_lr=1"], "total_steps"),
    "a scheduler for momentum": (
        [f"{SCHEDULER}CyclicLR", "--model.lr_scheduler.base_lr=1", "--model.lr_scheduler.max_lr=2"],
        "cycle_momentum",
    ),
    "a metric that nobody logs": (
        [f"--model.lr_scheduler={PLATEAU}", "--model.lr_scheduler.monitor=val/f2", "--trainer.val_check_interval=1"],
        "'val/f2' is not logged",
    ),
    "a callback with a bad option": (
        ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=a", "--trainer.callbacks.mode=best"],
        "EarlyStopping: ",
    ),
    "a callback that needs gradients": (["--trainer.callbacks=LearningRateFinder"], "LearningRateFinder cannot work"),
    "a callback that accumulates": (
        ["--trainer.callbacks=GradientAccumulationScheduler", "--trainer.callbacks.scheduling={4: 2}"],
        "GradientAccumulationScheduler cannot work",
    ),
    "a logger that is not installed": (["--trainer.logger=CometLogger"], "comet"),
    "a device that is not there": (["--trainer.accelerator=tpu"], "trainer: "),
    "a precision that is not installed": (["--trainer.precision=transformer-engine"], "transformer_engine"),
    "a strategy that shards gradients": (["--trainer.strategy=fsdp"], "trainer.strategy"),
    "a validation every 0 steps": (["--trainer.val_check_interval=0"], "trainer.val_check_interval"),
    "a seed below 0": (["--seed_everything=-1"], "seed_everything"),
    "a requeue checkpoint by its name": (["--ckpt_path=hpc"], "ckpt_path"),
    "options in a file that is no text": (["--data=BINARY"], "BINARY"),
    "a configuration without a suffix": (["--config=BINARY"], "BINARY"),
    "a configuration from standard input": (["--config=-"], "standard input"),
    "a configuration that is a mark": (["--config=--"], "command line"),
    "an option cut short": (["--trainer.l=1"], "could match"),
}


@pytest.mark.filterwarnings("ignore")  # as above
@pytest.mark.parametrize(
    "line",
    [["export", "--ckpt_path=CHECKPOINT", "--output=NEW", "--config=BINARY"], ["table", "BINARY", "--list_runs=true"]],
    ids=["export", "table"],
)
def test_files_of_options_that_other_commands_read(line: list[str], places: dict[str, str]) -> None:
    status, said = answer(line, places)
    assert status not in (0, None)
    assert said.startswith("zolit: error: BINARY: not a YAML file")


@pytest.mark.filterwarnings("ignore")  # as above
@pytest.mark.parametrize("case", REFUSED)
def test_options_that_libraries_refuse(case: str, places: dict[str, str]) -> None:
    options, words = REFUSED[case]
    status, said = answer([*LINES[0], *options], places)
    assert status not in (0, None)
    (sentence,) = [text for text in said.splitlines() if text.startswith("zolit: error: ")]
    assert words in sentence
