"""Finds the matrices that write into the residual stream, by moving their outputs and not by their names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import linear

from zolit.errors import require
from zolit.optim.feedback.stream import ResidualStream, hidden_input, hidden_output
from zolit.optim.feedback.trial import OUTPUT, LayerTrial
from zolit.optim.modules.calls import ModelCalls
from zolit.optim.precision import without_autocast

_CLOSE = 0.05


class Writer(NamedTuple):
    """A matrix W whose product Wx, or a norm of it, is added to the residual stream.

    Attributes:
        layer: Index of its layer.
        module: Name of its module in the model.
        transposed: Whether the weight has the shape (inputs, outputs).
        path: What lies between Wx and the output of the layer, in this order: a gain, the name of a norm in the model,
            a gain, a norm, ..., a gain. A plain sum is a gain of 1 alone.
        feeder: Name of the module without an activation whose output is x, such as the first factor of LoRA; "" if
            there is none.
        feeder_transposed: As ``transposed``, for the feeder.
    """

    layer: int
    module: str
    transposed: bool
    path: tuple[float | str, ...]
    feeder: str = ""
    feeder_transposed: bool = False

    @property
    def norms(self) -> tuple[str, ...]:
        """The names of the norms between Wx and the output of the layer."""
        return tuple(place for place in self.path if isinstance(place, str))


@contextmanager
def finding_writers(model: nn.Module, stream: ResidualStream, first: int) -> Iterator[list[Writer]]:
    """Finds the writers of the layers from the ``first`` on, in the forward that is made within the context.

    Layers whose modules have the same names, types and shapes are looked at once. A layer is then run again about ten
    times.

    Yields:
        A list that holds the writers after the forward, from the first layer to the last.

    Raises:
        UserError: In the forward, if a layer does not pass on its output to the next, as it is.
    """
    found: list[Writer] = []
    known: dict[object, list[Writer]] = {}
    entered: list[int] = []
    passed_on: list[Tensor] = []
    done: set[int] = set()
    calls = ModelCalls(model, on_begin=lambda _: entered.clear())

    def enter(index: int, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = hidden_input(args, kwargs)
        require(
            len(entered) == index and (not index or _equal(passed_on[0], hidden)),
            "model.optimizer: DirectFeedback needs layers that run once each, in order, and pass their output on to "
            f"the next layer, but {name} is called otherwise; use another method",
        )
        entered.append(index)
        if index < first or index in done or not hidden.numel():
            return
        done.add(index)
        kind = _kind_of(layer)
        if kind not in known:
            known[kind] = list(_writers_in(LayerTrial(layer, args, kwargs, calls.kept(hidden))))
        found.extend(_renamed(writer, index, name) for writer in known[kind])

    def watch(index: int, name: str, layer: nn.Module, hooks: ExitStack) -> None:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            enter(index, name, layer, args, kwargs)

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            passed_on[:] = [hidden_output(output)]

        hooks.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
        hooks.callback(layer.register_forward_hook(after).remove)

    with calls.followed(), ExitStack() as hooks:
        for index, (name, layer) in enumerate(stream.layers.items()):
            watch(index, name, layer, hooks)
        yield found


def _equal(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and bool((left == right)[~left.isnan()].all())


def _kind_of(layer: nn.Module) -> object:
    modules = tuple((name, type(module)) for name, module in layer.named_modules())
    return modules, tuple((name, parameter.shape) for name, parameter in layer.named_parameters())


def _renamed(writer: Writer, index: int, layer: str) -> Writer:
    def full(name: str) -> str:
        return f"{layer}.{name}" if name else ""

    path = tuple(full(place) if isinstance(place, str) else place for place in writer.path)
    return writer._replace(layer=index, module=full(writer.module), path=path, feeder=full(writer.feeder))


def _writers_in(trial: LayerTrial) -> Iterator[Writer]:
    for name, output in trial.outputs.items():
        if not isinstance(output, Tensor) or output.shape[-1:] != trial.hidden.shape[-1:]:
            continue
        transposed = _is_transposed(trial, name) if output.numel() == trial.hidden.numel() else None
        path = None if transposed is None else _path_from(trial, name)
        if transposed is None or path is None:
            continue
        feeder = trial.feeders.get(name, "")
        fed = _is_transposed(trial, feeder) if feeder in trial.outputs else None
        yield Writer(0, name, transposed, path, "" if fed is None else feeder, bool(fed))


def _is_transposed(trial: LayerTrial, name: str) -> bool | None:
    """Returns whether a module computes xW + b rather than xWᵀ + b; None if it computes something else."""
    module = trial.module(name)
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None or weight.ndim != 2 or not weight.is_floating_point() or weight.element_size() == 1:
        return None
    x, y = trial.inputs[name].float(), trial.outputs[name].float()
    y = y if bias is None else y - bias.float()
    errors = {}
    with without_autocast(x.device):
        for transposed, matrix in ((False, weight), (True, weight.t())):
            if matrix.shape == (y.shape[-1], x.shape[-1]):
                errors[_size(linear(x, matrix.float()) - y)] = transposed
    closest = min(errors, default=None)
    return None if closest is None or closest > _CLOSE * _size(y) else errors[closest]


def _size(values: Tensor) -> float:
    """Returns the norm of the numbers that are not NaN, as those of padding may be."""
    return float(values.square().nansum().sqrt())


def _path_from(trial: LayerTrial, name: str) -> tuple[float | str, ...] | None:
    """Returns what lies between the output of a module and that of the layer; None if it is not added to it."""
    arrivals = trial.arrivals(name)
    if OUTPUT in arrivals:
        return (arrivals[OUTPUT],)
    for place, gain in arrivals.items():
        output = trial.outputs[place]
        if trial.holds_matrix(place) or not isinstance(output, Tensor) or output.shape != trial.inputs[place].shape:
            continue
        rest = _path_from(trial, place)
        if rest is not None:
            return (gain, place, *rest)
    return None
