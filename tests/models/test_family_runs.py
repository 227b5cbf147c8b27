"""Each architecture through the command line: types, streaming, resuming, predicting, writing, and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from tests.conftest import Fit, summary
from tests.helpers.examples import records
from tests.helpers.families import CAUSAL, ENCODER_DECODERS, MASKED, build
from tests.helpers.runs import assert_same
from tests.helpers.words import write
from tests.models.test_families import IGNORE_PADDING, ROWS, padded
from zolit import quickstart
from zolit.cli.export import run as export
from zolit.errors import UserError
from zolit.models.language_model import LanguageModel
from zolit.models.loading import load_config, load_language_model
from zolit.models.tuning import Full

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about kernels that are not installed
FORMS = [(name, None) for name in (*CAUSAL, *MASKED)] + [("llama", True), ("opt", False), ("gemma3", False)]


@pytest.fixture(params=FORMS, ids=lambda form: form[0] + {None: "", True: ", tied", False: ", untied"}[form[1]])
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """The name of an architecture and a folder with a model of it, with the quickstart's tokenizer and a mask."""
    name, tied = request.param
    build(name, tied=tied).save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(quickstart.MODEL)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.save_pretrained(tmp_path / "model")
    return name, tmp_path / "model"


def plain(name: str, folder: Path, dtype: torch.dtype) -> Any:
    kind = AutoModelForMaskedLM if name in MASKED else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=dtype).eval()


def test_a_run(zolit: Fit, family: tuple[str, Path], tmp_path: Path) -> None:
    """The first half resumed equals the whole, and the exported folder scores as the trained model does."""
    name, folder = family
    train = write(tmp_path / "train.jsonl", records("sst2", 24))
    held_out = write(tmp_path / "validation.jsonl", records("sst2", 28)[24:])
    options = (
        *[f"--data.train_file={train}", f"--data.validation_file={held_out}", "--data.batch_size=4"],
        *[f"--model.name_or_path={folder}", "--trainer.precision=bf16-true", "--model.optimizer=MeZO"],
        *["--model.optimizer.lr=1e-3", "--model.optimizer.momentum=0.5", "--trainer.num_sanity_val_steps=0"],
        *([f"--model.check_rows={name not in IGNORE_PADDING}"]),
    )
    whole = zolit("fit", *options, "--trainer.max_steps=4")
    figures = summary(tmp_path)
    zolit("fit", *options, "--trainer.max_steps=2", "--trainer.logger.init_args.name=half")
    (half,) = tmp_path.glob("half/*/checkpoints/last.ckpt")
    resumed = zolit("fit", *options, "--trainer.max_steps=4", f"--ckpt_path={half}")
    assert_same(resumed.model.state_dict(), whole.model.state_dict())
    model = whole.model.model
    assert isinstance(model, torch.nn.Module)
    started = plain(name, folder, torch.bfloat16).state_dict()
    moved = [key for key, value in model.state_dict().items() if not torch.equal(value, started[key])]
    assert moved
    zolit("predict", *options, f"--ckpt_path={figures['checkpoint']}", "--data.test_examples=4")
    (file,) = tmp_path.rglob("predictions.jsonl")
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 4

    export([f"--ckpt_path={figures['checkpoint']}", f"--output={tmp_path / 'plain'}"])
    opened = plain(name, tmp_path / "plain", torch.bfloat16)
    ids, mask = padded(ROWS[:1], left=True)
    with torch.no_grad():
        assert torch.equal(opened(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)
    assert_same(dict(opened.state_dict()), dict(model.state_dict()))


def test_16_bits_are_those_of_transformers(family: tuple[str, Path]) -> None:
    name, folder = family
    options = {"attn_implementation": None, "trust_remote_code": False}
    lm = LanguageModel(load_language_model(str(folder), dtype=torch.bfloat16, **options), Full())
    theirs = plain(name, folder, torch.bfloat16)
    ids, mask = padded(ROWS[:1], left=True)
    with torch.no_grad():
        assert torch.equal(lm.model(ids, attention_mask=mask).logits, theirs(ids, attention_mask=mask).logits)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_encoder_decoders_are_refused(family: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{family}Config")()
    head = "MTModel" if family == "Marian" else "ForConditionalGeneration"
    config.architectures = [f"{family}{head}"]
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"names {family}{head}, which is not a causal or masked language model"):
        load_config(str(tmp_path), trust_remote_code=False)
