"""A figure of the inclusion probabilities: which parts of the network the sampling moves, and since when.

Up to ``max_rows`` blocks get one row each. A language model has hundreds of blocks, which form a grid of layers x kinds
of tensor (``self_attn.q_proj``, ``input_layernorm``, ...). With more blocks than rows there are three panels:

- layers x steps (top left): a row is the mean π of the layer's blocks,
- layers x kinds (top right): each block at the last step,
- kinds x steps (bottom left): a row is the mean π of one kind over the layers.

Blocks outside of the layers (embedding, last norm, head) have their own rows among the layers, in network order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

Rows = dict[str, list[int]]  # label -> indices of the blocks whose mean the row shows

_LAYERED = re.compile(r"(?P<layer>(?:.*?\.)?\d+)\.(?P<kind>.+)")
_COLORS = "viridis"
_MIN_SPAN = 0.05  # of the color scale, so that noise on equal probabilities does not appear as a pattern


def draw_heat_map(names: Sequence[str], steps: Sequence[int], history: Tensor, *, max_rows: int) -> Figure:
    """Draws the probabilities of all blocks over time.

    Args:
        names: Names of the n blocks in network order.
        steps: The recorded steps, ascending, at least one.
        history: The probabilities at these steps, shape (len(steps), n).
        max_rows: Largest number of rows in a panel. Beyond it, consecutive layers (or blocks, if the names show no
            layers) share a row.

    Returns:
        A figure that does not belong to pyplot's state.
    """
    labels = _short_names(names)
    rows: Rows = {label: [index] for index, label in enumerate(labels)}
    kinds: Rows = {}
    if len(rows) > max_rows:
        rows, kinds = _layers_and_kinds(labels)
        if len(kinds) > max_rows:  # too many for a readable grid
            kinds = {}
        rows = _merge_rows(rows, kinds, max_rows)
    low, high = (float(bound) for bound in history.aminmax())
    center, span = (low + high) / 2, max(high - low, _MIN_SPAN)
    scale = Normalize(max(0.0, center - span / 2), min(1.0, center + span / 2))

    lower_rows = max(len(kinds), 9) if kinds else 0  # space for the names below the right panel
    figure = Figure(figsize=(13, 1.5 + 0.2 * max(len(rows) + lower_rows, 6)), layout="constrained")
    figure.suptitle(f"How likely each block is to be perturbed (inclusion probability π), up to step {steps[-1]}")
    if not kinds:
        axes = figure.subplots()
        mesh = _draw_over_time(axes, rows, steps, history, scale)
        figure.colorbar(mesh, ax=axes, label="π", pad=0.01)
        return figure

    (upper, now), (lower, corner) = figure.subplots(
        2, 2, height_ratios=[len(rows), lower_rows], width_ratios=[3, 2], sharex="col", sharey="row"
    )
    mesh = _draw_over_time(upper, rows, steps, history, scale)
    upper.set_title("layers over time (mean of a layer's blocks)", fontsize=10)
    upper.set_xlabel("")
    _draw_over_time(lower, kinds, steps, history, scale)
    lower.set_title("kinds of tensor over time (mean over the layers)", fontsize=10)
    _draw_grid(now, rows, kinds, history[-1], scale)
    now.set_title("every block now", fontsize=10)
    corner.axis("off")
    figure.colorbar(mesh, ax=now, label="π", pad=0.02)
    return figure


def _short_names(names: Sequence[str]) -> list[str]:
    """Removes ``.weight`` at the end of names, and the prefix that all layers share (``model.decoder.``)."""
    layers = [match["layer"] for name in names if (match := _LAYERED.fullmatch(name))]
    containers = {layer.rpartition(".")[0] for layer in layers}
    shared = containers.pop().rpartition(".")[0] + "." if len(containers) == 1 else ""
    short = [name.removeprefix(shared).removesuffix(".weight") for name in names]
    return short if len(set(short)) == len(short) else list(names)


def _layers_and_kinds(labels: Sequence[str]) -> tuple[Rows, Rows]:
    """Groups blocks by layer and, for blocks within a layer, by kind."""
    layers: Rows = {}
    kinds: Rows = {}
    for index, label in enumerate(labels):
        match = _LAYERED.fullmatch(label)
        layers.setdefault(match["layer"] if match else label, []).append(index)
        if match:
            # Experts of one layer are of the same kind.
            kinds.setdefault(re.sub(r"\.\d+(?=\.|$)", ".*", match["kind"]), []).append(index)
    return layers, kinds


def _merge_rows(rows: Rows, kinds: Rows, max_rows: int) -> Rows:
    """Merges consecutive layers (or rows, if there are no kinds), so that at most ``max_rows`` remain."""
    layered = set().union(*kinds.values())
    single = {label for label, members in rows.items() if kinds and layered.isdisjoint(members)}
    size = math.ceil((len(rows) - len(single)) / max(max_rows - len(single), 1))
    groups: list[list[str]] = []
    for label in rows:
        joined = groups and len(groups[-1]) < size and label not in single and groups[-1][0] not in single
        if joined:
            groups[-1].append(label)
        else:
            groups.append([label])
    return {
        group[0] if len(group) == 1 else f"{group[0]} ... {group[-1]}": [
            index for label in group for index in rows[label]
        ]
        for group in groups
    }


def _draw_over_time(axes: Axes, rows: Rows, steps: Sequence[int], history: Tensor, scale: Normalize) -> QuadMesh:
    """Draws one row for each group of blocks, with steps to the right."""
    values = torch.stack([history[:, members].mean(dim=1) for members in rows.values()])
    # A column reaches from the previous recorded step to its own: the steps with these probabilities.
    first = steps[0] - (steps[1] - steps[0] if len(steps) > 1 else steps[0] + 1)
    mesh = axes.pcolormesh([first, *steps], range(len(rows) + 1), values.tolist(), norm=scale, cmap=_COLORS)
    axes.set_yticks([row + 0.5 for row in range(len(rows))], list(rows), fontsize=8)
    axes.set_ylim(len(rows), 0)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return mesh


def _draw_grid(axes: Axes, rows: Rows, kinds: Rows, probabilities: Tensor, scale: Normalize) -> None:
    """Draws rows x kinds at one step; a row without kinds (the embedding) is one long cell."""
    values = torch.full((len(rows), len(kinds)), torch.nan)
    for row, members in enumerate(rows.values()):
        kindless = set(members).difference(*kinds.values())
        for column, of_kind in enumerate(kinds.values()):
            common = kindless.union(set(members).intersection(of_kind))
            if common:
                values[row, column] = probabilities[sorted(common)].mean()
    axes.pcolormesh(range(len(kinds) + 1), range(len(rows) + 1), values.tolist(), norm=scale, cmap=_COLORS)
    axes.set_xticks([column + 0.5 for column in range(len(kinds))], list(kinds), fontsize=8, rotation=90)
    axes.tick_params(labelbottom=True, labelleft=False)
    for label in axes.get_xticklabels():
        label.set_in_layout(False)  # they extend into the empty corner and do not move the panels
