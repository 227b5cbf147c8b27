"""Tuning of all weights, of some by name, of adapters and of a prefix; and the results of a run with each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.conftest import ROOT, Fit, summary
from zolit import UserError
from zolit.models.tuning import Full, LoRA, PrefixTuning, Tuning


def loaded() -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(ROOT / "zolit" / "quickstart" / "model")
    return model


def trained(tuning: Tuning) -> set[str]:
    return {name for name, parameter in tuning.apply(loaded()).named_parameters() if parameter.requires_grad}


def test_some_weights_by_name() -> None:
    assert trained(Full(r"layers\.1\..*norm")) == {
        "model.layers.1.input_layernorm.weight",
        "model.layers.1.post_attention_layernorm.weight",
    }
    assert len(trained(Full())) == len(list(loaded().parameters()))


def test_adapters_depend_on_the_seed_alone() -> None:
    """The global generator has no influence, and stays unchanged."""
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = LoRA(rank=4).apply(loaded()).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    second = LoRA(rank=4).apply(loaded()).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = LoRA(rank=4, seed=1).apply(loaded()).state_dict()
    assert any(not torch.equal(value, other[name]) for name, value in first.items())
    names = trained(LoRA(targets=["down_proj"]))
    assert names
    assert all("down_proj.lora" in name for name in names)


@pytest.mark.parametrize("tuning", ["lora", "prefix"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_run_resumes_and_validates(zolit: Fit, tmp_path: Path, tuning: str, precision: str) -> None:
    options = (
        "--config=configs/method/mezo.yaml",
        f"--config=configs/tuning/{tuning}.yaml",
        f"--trainer.precision={precision}",
        "--model.optimizer.lr=1e-2",
        "--trainer.val_check_interval=4",
    )
    zolit("fit", *options, "--trainer.max_steps=4")
    figures = summary(tmp_path)
    cli = zolit("validate", *options[:3], f"--ckpt_path={figures['checkpoint']}")
    assert float(cli.trainer.callback_metrics["val/loss"]) == pytest.approx(figures["loss_after"], rel=1e-5)
    resumed = zolit("fit", *options, "--trainer.max_steps=6", f"--ckpt_path={figures['checkpoint']}")
    assert resumed.trainer.global_step == 6


def test_lora_learns(zolit: Fit, tmp_path: Path) -> None:
    zolit(
        "fit",
        "--config=configs/method/mezo.yaml",
        "--config=configs/tuning/lora.yaml",
        "--model.tuning.targets=[q_proj, v_proj, up_proj, down_proj]",
        "--model.optimizer.lr=0.1",
        "--trainer.max_steps=200",
        "--trainer.val_check_interval=200",
    )
    figures = summary(tmp_path)
    assert figures["loss_after"] < 0.9 * figures["loss_before"]


def test_invalid_tables() -> None:
    for option, make in {
        "model.tuning.pattern": lambda: Full("(layers"),
        "model.tuning.rank": lambda: LoRA(rank=0),
        "model.tuning.tokens": lambda: PrefixTuning(tokens=0),
    }.items():
        with pytest.raises(UserError, match=option):
            make()
    with pytest.raises(UserError, match=r"model.tuning.pattern: 'nobody' matches no weight"):
        Full("nobody").apply(loaded())
    with pytest.raises(UserError, match=r"model.tuning.targets"):
        LoRA(targets=["nobody"]).apply(loaded())
