from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor
from zolit_callbacks.heat_map import draw_heat_map

KINDS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    "input_layernorm",
    "post_attention_layernorm",
)


def llama(layers: int, *more: str) -> list[str]:
    tensors = (f"model.layers.{layer}.{kind}.weight" for layer in range(layers) for kind in KINDS)
    return ["model.embed_tokens.weight", *tensors, "model.norm.weight", *more]


def labels(ticks: Iterable[Text]) -> list[str]:
    return [label.get_text() for label in ticks]


def draw(
    names: Sequence[str], steps: Sequence[int] = (49, 99), history: Tensor | None = None
) -> tuple[Figure, list[Axes], list[Tensor]]:
    if history is None:
        history = torch.rand(len(steps), len(names))
    figure = draw_heat_map(names, steps, history, max_rows=40)
    panels = [axes for axes in figure.axes if axes.axison and axes.get_ylabel() != "π"]
    cells = [torch.tensor(axes.collections[0].get_array().filled(math.nan)) for axes in panels]
    return figure, panels, cells


def test_few_blocks_have_a_row_each_in_network_order() -> None:
    names = llama(2)
    history = torch.rand(2, len(names))
    figure, (axes,), (cells,) = draw(names, history=history)
    rows = labels(axes.get_yticklabels())
    assert rows[:2] == ["embed_tokens", "layers.0.self_attn.q_proj"]
    assert len(rows) == 20
    assert rows[-1] == "norm"
    assert axes.yaxis_inverted()
    torch.testing.assert_close(cells, history.T.double(), check_dtype=False)
    assert "step 99" in figure.get_suptitle()
    assert axes.get_xlabel() == "step"


def test_a_language_model_is_layers_and_kinds() -> None:
    names = llama(30)
    history = torch.rand(2, len(names))
    figure, (upper, now, lower), (over_layers, crossed, over_kinds) = draw(names, history=history)
    assert len(names) == 272
    assert labels(upper.get_yticklabels()) == ["embed_tokens", *(f"layers.{i}" for i in range(30)), "norm"]
    assert labels(lower.get_yticklabels()) == labels(now.get_xticklabels()) == list(KINDS)
    blocks = history[:, 1:-1].unflatten(1, (30, 9))
    torch.testing.assert_close(over_layers[1:-1], blocks.mean(2).T, check_dtype=False)
    torch.testing.assert_close(over_kinds, blocks.mean(1).T, check_dtype=False)
    torch.testing.assert_close(crossed[1:-1], blocks[-1], check_dtype=False)
    # The embedding is not in a layer, so it is one long cell.
    torch.testing.assert_close(crossed[0], history[-1, 0].expand(9), check_dtype=False)
    # All panels share the one scale that the color bar shows.
    assert len({(axes.collections[0].norm.vmin, axes.collections[0].norm.vmax) for axes in (upper, now, lower)}) == 1
    assert any(axes.get_ylabel() == "π" for axes in figure.axes)


def test_columns_are_drawn_at_their_steps() -> None:
    _, (axes,), _ = draw(["a", "b"], steps=(49, 99, 199))
    assert axes.collections[0].get_coordinates()[0, :, 0].tolist() == [-1, 49, 99, 199]


def test_deep_models_share_rows_but_the_embedding_does_not() -> None:
    _, (upper, *_), _ = draw(llama(80, "lm_head.weight"))
    rows = labels(upper.get_yticklabels())
    assert rows[:3] == ["embed_tokens", "layers.0 ... layers.2", "layers.3 ... layers.5"]
    assert rows[-2:] == ["norm", "lm_head"]
    assert len(rows) == 30


def test_names_without_layers_are_grouped_in_order() -> None:
    _, (axes,), (cells,) = draw([f"part_{index}" for index in range(100)], history=torch.ones(2, 100))
    assert labels(axes.get_yticklabels())[0] == "part_0 ... part_2"
    assert cells.shape == (34, 2)


def test_experts_are_one_kind() -> None:
    names = [f"layers.{i}.experts.{j}.up.weight" for i in range(5) for j in range(20)]
    _, (_, now, _), _ = draw(names)
    assert labels(now.get_xticklabels()) == ["experts.*.up"]


def test_names_that_would_become_equal_stay_as_they_are() -> None:
    _, (axes,), _ = draw(["model.layers.0.a.weight", "model.norm.weight", "norm.weight"])
    assert labels(axes.get_yticklabels()) == ["model.layers.0.a.weight", "model.norm.weight", "norm.weight"]


@pytest.mark.parametrize("level", [0.0, 0.4, 1.0])
def test_noise_on_equal_probabilities_does_not_fill_the_color_scale(level: float) -> None:
    history = (level + 1e-4 * torch.rand(2, 3)).clamp(max=1.0)
    _, (axes,), _ = draw(["a", "b", "c"], history=history)
    scale = axes.collections[0].norm
    assert scale.vmax - scale.vmin >= 0.02
