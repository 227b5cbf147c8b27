"""The ways in which first order saves memory: what they compute is what backpropagation with all kept computes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.helpers import padded
from tests.helpers.tiny import Layered, layered, regression, same, weights_of
from zolit import FirstOrder, UserError
from zolit.cli.bench.memory import peak_bytes
from zolit.models.tuning import LoRA, PrefixTuning
from zolit.optim.modules.layers import find_layers

RULES = ("adam", "sgd", "factored")
WAYS = [{"keep_gradients": keep, "recompute": again} for keep, again in itertools.product((True, False), repeat=2)]


def trained(dtype: torch.dtype, steps: int = 12, **options: Any) -> tuple[Layered, FirstOrder]:
    model = layered(dtype)
    optimizer = FirstOrder(model, lr=1e-2, weight_decay=0.1, **options)
    closure = regression(model)
    for _ in range(steps):
        optimizer.step(closure)
    return model, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", WAYS[1:], ids=str)
def test_weights_are_the_same_to_the_bit(way: dict[str, bool], rule: str, dtype: torch.dtype) -> None:
    """In this model no matrix outside of the layers has a thin gradient."""
    plain, _ = trained(dtype, rule=rule)
    frugal, _ = trained(dtype, rule=rule, **way)
    assert not same(weights_of(plain), weights_of(layered(dtype)))
    assert same(weights_of(frugal), weights_of(plain))


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("way", WAYS[1:], ids=str)
def test_autocast(way: dict[str, bool], around: bool) -> None:
    def run(**options: Any) -> dict[str, Tensor]:
        model = layered()
        optimizer, losses = FirstOrder(model, lr=1e-2, **options), regression(model)

        def closure() -> Tensor:
            # The cache of autocast would keep a copy of every weight in 16 bits.
            assert torch.is_autocast_cache_enabled() == (not options.get("recompute", False))
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=torch.is_autocast_cache_enabled()):
                return losses().float()

        for _ in range(5):
            with torch.autocast("cpu", torch.bfloat16, enabled=around):
                optimizer.step(closure)
        assert torch.is_autocast_cache_enabled()
        return weights_of(model)

    assert same(run(**way), run())


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_sgd_is_torchs(way: dict[str, bool]) -> None:
    model, twin = layered(), layered()
    optimizer = FirstOrder(model, lr=1e-2, rule="sgd", weight_decay=0.1, **way)
    vectors = [p for p in twin.parameters() if p.ndim == 1]
    matrices = [{"params": [p for p in twin.parameters() if p.ndim > 1], "weight_decay": 0.1}]
    theirs = torch.optim.SGD([*matrices, {"params": vectors}], lr=1e-2)  # type: ignore[list-item]  # two kinds of groups
    closure, other = regression(model), regression(twin)
    for _ in range(20):
        optimizer.step(closure)
        theirs.zero_grad()
        other().mean().backward()
        theirs.step()
    for name, theta in weights_of(twin).items():
        torch.testing.assert_close(weights_of(model)[name], theta, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_last_layers_move_as_with_a_masked_gradient(way: dict[str, bool], rule: str) -> None:
    """In one step, from the same state; the other weights do not move."""
    whole, part = layered(), layered()
    FirstOrder(whole, lr=1e-2, rule=rule).step(regression(whole))
    optimizer = FirstOrder(part, lr=1e-2, rule=rule, layers=1, **way)
    optimizer.step(regression(part))
    before, all_moved, found = weights_of(layered()), weights_of(whole), weights_of(part)
    for name, theta in found.items():
        assert torch.equal(theta, (all_moved if name.startswith("layers.1.") else before)[name]), name
    assert [block.name for block in optimizer.blocks] == ["layers.1.weight", "layers.1.bias"]


def test_nothing_is_kept_below_the_last_layers() -> None:
    language = padded.language(dtype=torch.float32)
    closure = padded.choices(language, padded.batch(2, 1))
    FirstOrder(language.model, lr=1e-2, layers=1)
    saved: list[Tensor] = []
    outputs: dict[int, Tensor] = {}
    for index, layer in enumerate(find_layers(language.model)[1]):
        layer.register_forward_hook(lambda _, __, output, index=index: outputs.update({index: output}))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        closure()
    found = [output[0] if isinstance(output, tuple) else output for output in outputs.values()]
    assert [output.requires_grad for output in found] == [False, False, True]
    assert saved


@pytest.mark.parametrize(("layers", "said"), [(0, "layers: must lie between 1 and 2"), (3, "between 1 and 2")])
def test_impossible_numbers_of_layers(layers: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        FirstOrder(layered(), layers=layers)


def test_layers_without_a_trainable_weight() -> None:
    language = padded.language(PrefixTuning())
    with pytest.raises(UserError, match=r"layers: the last 1 layers have no trainable weight; see model\.tuning"):
        FirstOrder(language.model, layers=1)


def test_an_unknown_rule() -> None:
    with pytest.raises(UserError, match="rule: 'adamw' is none of adam, sgd, factored"):
        FirstOrder(layered(), rule="adamw")  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("layers", [None, 1])
@pytest.mark.parametrize("rule", RULES)
def test_lora_needs_the_gradients_of_adapters_alone(rule: str, layers: int | None) -> None:
    """All ways move the adapters to the same bits, and nothing else."""
    ends, starts = [], []
    for way in WAYS:
        language = padded.language(LoRA(rank=2), dtype=torch.float32)
        starts.append(weights_of(language.model))
        optimizer = FirstOrder(language.model, lr=1e-2, rule=rule, layers=layers, **way)
        closure = padded.choices(language, padded.batch(2, 1))
        for _ in range(3):
            optimizer.step(closure)
        ends.append(weights_of(language.model))
    moved = {name for name, theta in ends[0].items() if not torch.equal(theta, starts[0][name])}
    assert moved
    assert all("lora" in name and (layers is None or "layers.2." in name) for name in moved)
    assert all(same(end, ends[0]) for end in ends)


@pytest.mark.parametrize("rule", RULES)
def test_a_run_goes_on_with_or_without_kept_gradients(rule: str) -> None:
    """The state is the same, so a resumed run may keep gradients or not; another rule is refused."""
    whole, _ = trained(torch.bfloat16, 12, rule=rule)
    half, optimizer = trained(torch.bfloat16, 6, rule=rule)
    fresh = FirstOrder(half, lr=1e-2, weight_decay=0.1, rule=rule, keep_gradients=False)
    fresh.load_state_dict(optimizer.state_dict())
    closure = regression(half)
    for _ in range(6):
        fresh.step(closure)
    assert same(weights_of(half), weights_of(whole))
    other = FirstOrder(half, rule="sgd" if rule != "sgd" else "adam")
    with pytest.raises(UserError, match=r"model\.optimizer: the checkpoint has update Backprop"):
        other.load_state_dict(optimizer.state_dict())


def test_a_state_from_before_there_were_rules() -> None:
    half, optimizer = trained(torch.float32, 6)
    state = optimizer.state_dict()
    state["zo"]["update"]["adam"] = state["zo"]["update"].pop("rule")
    fresh = FirstOrder(half)
    fresh.load_state_dict(state)
    assert fresh.update.state_dict()["rule"]["steps"] == 6


VOCABULARY, WIDTH, ROWS = 100_000, 64, (2, 8)


def peak_of(layers: int, **options: Any) -> tuple[int, int]:
    """Returns the peak of a step beyond the weights, and the bytes of the weights."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "vocab_size": VOCABULARY, "intermediate_size": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(num_hidden_layers=layers, tie_word_embeddings=True, **heads, **sizes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    ids = torch.randint(VOCABULARY, ROWS)

    def closure() -> Tensor:
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        return torch.nn.functional.cross_entropy(logits, ids[:, 0], reduction="none")

    optimizer = FirstOrder(model, lr=1e-3, **options)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return peak_bytes(torch.device("cpu"), lambda: optimizer.step(closure), lambda: optimizer.step(closure)), weights


def test_memory() -> None:
    """Bytes of all tensors that are alive at once, beyond the weights. Most weights are in the tied embedding."""
    frugal: dict[str, Any] = {"rule": "sgd", "keep_gradients": False, "recompute": True}
    peak, weights = peak_of(8, **frugal)
    assert peak < 0.4 * weights  # no gradient of the embedding is ever whole
    assert peak_of(8, rule="sgd", recompute=True)[0] > weights  # gradients are kept
    inputs = ROWS[0] * ROWS[1] * WIDTH * 4
    layer = (weights - VOCABULARY * WIDTH * 4) // 8
    deep, deeper = (peak_of(layers, **frugal)[0] for layers in (16, 32))
    assert deeper - deep < 16 * 2 * inputs < 0.2 * 16 * layer  # the input of each layer, and no gradient of it
    deep, deeper = (peak_of(layers, **{**frugal, "recompute": False})[0] for layers in (16, 32))
    assert deeper - deep > 16 * 10 * inputs  # activations of each layer
    adam, factored = (peak_of(8, **{**frugal, "rule": rule})[0] for rule in ("adam", "factored"))
    assert adam > 2 * weights
    assert factored < peak + 0.1 * weights
