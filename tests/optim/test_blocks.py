from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from tests.helpers.tiny import layered
from zolit import UserError
from zolit.optim.blocks import partition, trainable_weights
from zolit.optim.randomness import key_of


def tiny_llama(tied: bool = True) -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=11,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=tied,
        )
    )


def tiny_opt() -> nn.Module:
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=11,
            hidden_size=8,
            ffn_dim=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            word_embed_proj_dim=8,
        )
    )


def names(model: nn.Module, by: str) -> list[str]:
    return [block.name for block in partition(trainable_weights(model), by)]


def test_tensor_blocks_are_the_parameters() -> None:
    model = layered()
    blocks = partition(trainable_weights(model), "tensor")
    assert [block.name for block in blocks] == [name for name, _ in model.named_parameters()]
    assert [block.numel for block in blocks] == [parameter.numel() for parameter in model.parameters()]
    assert all(block.key == key_of(block.name) for block in blocks)


def test_layer_blocks() -> None:
    blocks = partition(trainable_weights(layered()), "layer")
    members = {block.name: [weight.name for weight in block.weights] for block in blocks}
    assert members == {
        "embed": ["embed.weight", "embed.bias"],
        "layers.0": ["layers.0.weight", "layers.0.bias"],
        "layers.1": ["layers.1.weight", "layers.1.bias"],
        "norm": ["norm.weight", "norm.bias"],
        "head": ["head.weight"],
    }
    assert [block.numel for block in blocks] == [30, 42, 42, 12, 6]


def test_layer_is_the_outermost_number() -> None:
    experts = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])])})
    assert names(experts, "layer") == ["layers.0"]


def test_layer_blocks_of_a_sequential_and_of_bare_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.register_parameter("scale", nn.Parameter(torch.ones(())))
    assert names(model, "layer") == ["scale", "0", "1"]


def test_layer_blocks_of_llama() -> None:
    model = tiny_llama()
    assert names(model, "layer") == ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm"]
    blocks = partition(trainable_weights(model), "layer")
    assert sum(block.numel for block in blocks) == sum(parameter.numel() for parameter in model.parameters())


def test_layer_blocks_of_opt() -> None:
    assert names(tiny_opt(), "layer") == [
        "model.decoder.embed_tokens",
        "model.decoder.embed_positions",
        "model.decoder.final_layer_norm",
        "model.decoder.layers.0",
        "model.decoder.layers.1",
    ]


@pytest.mark.parametrize("make", [tiny_llama, tiny_opt])
def test_tied_weights_count_once(make: Callable[[], nn.Module]) -> None:
    model = make()
    weights = trainable_weights(model)
    assert not any("lm_head" in weight.name for weight in weights)
    assert len({weight.parameter.data_ptr() for weight in weights}) == len(weights)


def test_untied_head_is_a_block() -> None:
    assert "lm_head" in names(tiny_llama(tied=False), "layer")


def test_regular_expression_with_a_group() -> None:
    assert names(layered(), r"^(\w+)\.(?:\d+\.)?(?:weight|bias)$") == ["embed", "layers", "norm", "head"]


def test_regular_expression_without_a_group_keeps_other_weights_separate() -> None:
    assert names(layered(), r"weight|layers\.\d+\.bias") == [
        "weight",
        "embed.bias",
        "layers.0.bias",
        "layers.1.bias",
        "norm.bias",
    ]


def test_regular_expression_whose_group_did_not_match() -> None:
    """The whole match names the block where the first group did not match."""
    assert names(layered(), r"(layers\.\d)|norm|embed|head") == ["embed", "layers.0", "layers.1", "norm", "head"]


def test_regular_expression_without_a_match() -> None:
    with pytest.raises(UserError, match=r"blocks.*'decoder'.*embed\.weight"):
        partition(trainable_weights(layered()), "decoder")


def test_invalid_regular_expression() -> None:
    with pytest.raises(UserError, match=r"blocks.*'\(layers'"):
        partition(trainable_weights(layered()), "(layers")


def test_frozen_weights_are_left_out() -> None:
    model = layered()
    model.embed.requires_grad_(False)
    assert names(model, "layer") == ["layers.0", "layers.1", "norm", "head"]


def test_frozen_model() -> None:
    with pytest.raises(UserError, match="no trainable parameter"):
        trainable_weights(layered().requires_grad_(False))


def test_flat_shares_memory_also_of_a_transposed_weight() -> None:
    model = nn.Linear(3, 2, bias=False)
    model.weight.data = torch.arange(6.0).view(3, 2).t()
    before = model.weight.detach().clone()
    (weight,) = trainable_weights(model)
    assert torch.equal(model.weight, before)
    weight.flat[1] = 42.0
    assert model.weight[0, 1] == 42.0
