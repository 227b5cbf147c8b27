"""The matrices that write into the residual stream are found in all families of models, and lead where they should."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.families import CAUSAL, MASKED, build
from tests.helpers.tiny import ResidualStream as TinyStream
from tests.helpers.tiny import layered
from zolit import UserError
from zolit.optim.feedback.stream import ResidualStream
from zolit.optim.feedback.writers import Writer, finding_writers

LLAMA = (r"self_attn\.o_proj", r"mlp\.down_proj")
FFN = (r"self_attn\.out_proj", r"fc2")
BERT = (r"attention\.output\.dense", r"output\.dense")
MIXER = (r"mixer\.out_proj",)
EXPERTS = (r"self_attn\.o_proj",)
"""Experts are one module with a router, and no plain matrix."""

WRITERS: dict[str, tuple[tuple[str, ...], ...]] = {
    **dict.fromkeys(("gpt2",), ((r"attn\.c_proj", r"mlp\.c_proj"),)),
    **dict.fromkeys(("gpt-neox",), ((r"attention\.dense", r"mlp\.dense_4h_to_h"),)),
    **dict.fromkeys(("opt", "opt, projected", "xglm", "biogpt"), (FFN,)),
    **dict.fromkeys(("bloom", "falcon", "falcon, alibi"), ((r"self_attention\.dense", r"mlp\.dense_4h_to_h"),)),
    "mpt": ((r"attn\.out_proj", r"ffn\.down_proj"),),
    **dict.fromkeys(("llama", "mistral", "qwen3", "gemma2", "gemma3", "olmo", "cohere", "stablelm", "olmo2"), (LLAMA,)),
    **dict.fromkeys(("qwen2", "phi3", "glm4", "smollm3"), (LLAMA,)),
    "phi": ((r"self_attn\.dense", r"mlp\.fc2"),),
    **dict.fromkeys(("qwen3-moe", "gpt-oss"), (EXPERTS,)),
    "qwen3-next": ((r"linear_attn\.out_proj",), EXPERTS),
    **dict.fromkeys(("deepseek-v3", "ernie-moe"), (LLAMA, (*EXPERTS, r"mlp\.shared_experts\.down_proj"))),
    **dict.fromkeys(("mamba", "mamba2"), (MIXER,)),
    "jamba": ((r"mamba\.out_proj", r"feed_forward\.down_proj"), EXPERTS),
    "falcon-h1": ((r"feed_forward\.down_proj", r"mamba\.out_proj", r"self_attn\.o_proj"),),
    "lfm2": ((r"conv\.out_proj", r"feed_forward\.w2"), (r"self_attn\.out_proj", r"feed_forward\.w2")),
    "rwkv": ((r"attention\.output",),),  # the output of its other half is gated
    "recurrent-gemma": (
        *((r"temporal_block\.linear_out", r"mlp_block\.down_proj"),) * 2,
        (r"temporal_block\.o_proj", r"mlp_block\.down_proj"),
    ),
    "gptj": ((r"attn\.out_proj", r"mlp\.fc_out"),),
    "starcoder2": ((r"self_attn\.o_proj", r"mlp\.c_proj"),),
    "granite-hybrid": (
        (r"shared_mlp\.output_linear", r"mamba\.out_proj"),
        (r"shared_mlp\.output_linear", r"self_attn\.o_proj"),
    ),
    "gpt-neo": ((r"attn\.attention\.out_proj", r"mlp\.c_proj"),),
    **dict.fromkeys(("bert", "electra", "deberta", "roberta", "xlm-roberta", "camembert"), (BERT,)),
    "distilbert": ((r"attention\.out_lin", r"ffn\.lin2"),),
    "mpnet": ((r"attention\.attn\.o", r"output\.dense"),),
    "modernbert": ((r"attn\.Wo", r"mlp\.Wo"),),
}
"""Names of the writers of each layer, or of all layers."""

EXACT = {
    *("gpt2", "opt", "llama", "gemma2", "gemma3", "olmo2", "glm4", "mpt", "bloom", "starcoder2", "lfm2", "mamba"),
    *("opt, projected", "bert", "distilbert", "mpnet", "modernbert", "qwen3", "recurrent-gemma", "biogpt"),
}
"""Families in whose last layer the writer that is called last is followed by sums and norms alone."""

PARALLEL = {"gpt-neox", "falcon", "phi", "gptj", "cohere"}
"""Families in whose layers attention and MLP read the same input, so that this holds for both."""


def inputs(name: str) -> dict[str, Tensor]:
    ids = torch.arange(27).view(3, 9) * 31 % 900 + 5
    return {"input_ids": ids} if name in ("rwkv", "mamba") else {"input_ids": ids, "attention_mask": ids.new_ones(3, 9)}


def writers_of(model: nn.Module, *args: Any, **kwargs: Any) -> list[Writer]:
    with torch.no_grad(), finding_writers(model, ResidualStream(model), 0) as found:
        model(*args, **kwargs)
    return found


def test_all_families_are_in_the_table() -> None:
    assert set(WRITERS) == {*CAUSAL, *MASKED} - {"albert"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WRITERS)
def test_writers_of_a_family(name: str, dtype: torch.dtype) -> None:
    model = build(name)
    if dtype == torch.bfloat16 and name not in ("gpt2", "llama", "gemma3", "bert", "falcon", "bloom", "qwen3-moe"):
        dtype = torch.float32
    found = writers_of(model.to(dtype), **inputs(name))
    layers = list(ResidualStream(model).layers)
    for index, layer in enumerate(layers):
        expected = WRITERS[name][index if len(WRITERS[name]) > 1 else 0]
        own = [writer.module.removeprefix(layer + ".") for writer in found if writer.layer == index]
        assert sorted(own) == sorted(pattern.replace("\\", "") for pattern in expected)
    for writer in found:
        weight = model.get_submodule(writer.module).weight
        assert weight.shape[int(writer.transposed)] == 32
        assert writer.transposed == (name == "gpt2")
        assert [place for place in writer.path if isinstance(place, float)] == pytest.approx(
            [1.0] * (len(writer.norms) + 1), rel=0.01
        )
        normed = re.search(r"gemma2|gemma3|olmo2|glm4|projected|bert|electra|mpnet", name) and name != "modernbert"
        after_both = (
            normed and re.search(r"attention|attn", writer.module) and name in MASKED
        ) or name == "opt, projected"
        assert len(writer.norms) == (0 if not normed else 2 if after_both and "fc2" not in writer.module else 1)


@pytest.mark.parametrize("name", sorted(EXACT | PARALLEL))
def test_the_gradient_behind_a_writer_of_the_last_layer_is_exact(name: str) -> None:
    """δ of the last layer, through gains and norms, equals autograd's gradient by the output of the writer."""
    model = build(name)
    found = [w for w in writers_of(model, **inputs(name)) if w.layer == len(ResidualStream(model).layers) - 1]
    called: list[str] = []
    values: dict[str, Tensor] = {}

    def keep(writer: str) -> Any:
        def on_call(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            called.append(writer)
            values[writer] = output
            output.retain_grad()

        return on_call

    norms: dict[str, Tensor] = {}
    for writer in found:
        model.get_submodule(writer.module).register_forward_hook(keep(writer.module))
        for norm in writer.norms:
            model.get_submodule(norm).register_forward_pre_hook(lambda _, args, n=norm: norms.update({n: args[0]}))
    last = list(ResidualStream(model).layers.values())[-1]
    states: list[Tensor] = []
    last.register_forward_hook(
        lambda _, args, output: states.append(output if isinstance(output, Tensor) else output[0])
    )
    logits = model(**inputs(name)).logits[:, -1]
    states[0].retain_grad()
    logits.square().mean().backward()
    for writer in found:
        if name not in PARALLEL and writer.module != called[-1]:
            continue
        delta = states[0].grad
        for place in reversed(writer.path):
            if isinstance(place, float):
                delta = delta * place
            else:
                rows = norms[place].detach().reshape(delta.shape).requires_grad_()
                (delta,) = torch.autograd.grad(model.get_submodule(place)(rows), rows, delta)
        expected = values[writer.module].grad.reshape(delta.shape)
        assert float((delta - expected).norm()) < 1e-4 * float(expected.norm())


def test_layers_that_are_called_twice_are_refused() -> None:
    with pytest.raises(UserError, match="layers that run once each") as caught:
        writers_of(build("albert"), **inputs("albert"))
    assert "\n" not in str(caught.value)


def test_layers_without_a_residual_stream_are_refused() -> None:
    with pytest.raises(UserError, match=r"pass their output on to the next layer, but layers\.1 is called otherwise"):
        writers_of(layered(), torch.randn(5, 4))


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(UserError, match="needs a model with a list of layers"):
        ResidualStream(nn.Linear(3, 3))


class Gated(nn.Module):
    """A layer of which three parts are added: one with a gain, one through a gate, one through a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled, self.gated, self.normed, self.gate = (nn.Linear(6, 6) for _ in range(4))
        self.norm = nn.LayerNorm(6)
        self.before = nn.LayerNorm(6)

    def forward(self, hidden: Tensor) -> Tensor:
        read = self.before(hidden)
        hidden = hidden + 0.25 * self.scaled(read)
        hidden += torch.sigmoid(self.gate(read)) * self.gated(read)
        return hidden + self.norm(self.normed(self.before(hidden)))


def test_gains_gates_norms_and_sums_in_place() -> None:
    torch.manual_seed(0)
    model = TinyStream()
    model.layers = nn.ModuleList([Gated(), Gated()])
    found = writers_of(model, torch.randn(40, 4))
    assert [writer.module for writer in found] == [
        f"layers.{i}.{part}" for i in (0, 1) for part in ("scaled", "normed")
    ]
    assert found[0].path == pytest.approx((0.25,), rel=1e-4)
    assert found[1].norms == ("layers.0.norm",)


def test_a_plain_norm_of_equal_weights_is_no_gain() -> None:
    """A norm of wide vectors multiplies nearly all of them by the same number, if they are equally long."""
    torch.manual_seed(0)

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.norm = nn.Linear(2048, 2048, bias=False), nn.RMSNorm(2048)
            nn.init.zeros_(self.part.weight)

        def forward(self, hidden: Tensor) -> Tensor:
            return hidden + self.norm(self.part(hidden))

    class OneLayer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Wide()])

        def forward(self, hidden: Tensor) -> Tensor:
            return self.layers[0](hidden)

    (writer,) = writers_of(OneLayer(), torch.randn(4, 5, 2048))
    assert writer.norms == ("layers.0.norm",)
