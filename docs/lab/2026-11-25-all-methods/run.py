"""Compares every method at equal forwards on the quickstart's model and on a quadratic: loss, cosine, seconds.

    python docs/lab/2026-11-25-all-methods/run.py OUT.csv            # about half an hour on one core
    python docs/lab/2026-11-25-all-methods/run.py OUT.csv --rates EARLIER.csv --factor 0.333   # a third of those rates
    python docs/lab/2026-11-25-all-methods/run.py OUT.csv --plot OUT.png

Each method gets the same tuning, with two tuning seeds, of which the worse one counts. Rates from 1e-8 to 10, a factor
of 10 apart, run with a quarter of the forwards. The best of them, a third of it and three times of it run with all
forwards. Then five other seeds run at the best rate. A forward with a backward pass counts as three forwards. With
``--rates`` nothing is tuned.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import zolit
from zolit.optim import BlockScores, CurvatureSampling, FixedBudget

sys.path.append(str(Path(__file__).parents[1] / "common"))
from reviews import Reviews

QUICKSTART = Path(__file__).parents[3] / "zolit" / "quickstart"
FORWARDS = {"quickstart": 200, "quadratic": 300}
POINTS = 5
TUNING_SEEDS, SEEDS = (100, 101), (1, 2, 3, 4, 5)
COLUMNS = ("problem", "method", "lr", "seed", "forwards", "loss", "cosine", "seconds")


class Quadratic(nn.Module):
    """A linear layer that learns a teacher's outputs for inputs of decaying spectrum; its loss is quadratic."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(32, 24)])
        self.inputs = torch.randn(64, 32, generator=generator) * torch.logspace(0, -1.5, 32)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.targets = self.inputs @ torch.randn(32, 24, generator=generator) + 1.0

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the layer's outputs, shape (64, 24)."""
        output: Tensor = self.layers[0](inputs)
        return output


def problems(name: str) -> tuple[nn.Module, Callable[[int], Callable[[], Tensor]], Callable[[], float]]:
    """Returns a model, a function from a step to its closure, and a function that returns the held-out loss."""
    if name == "quadratic":
        quadratic = Quadratic()

        def losses() -> Tensor:
            return (quadratic(quadratic.inputs) - quadratic.targets).square().sum(1) / 2

        return quadratic, lambda step: losses, lambda: float(losses().mean())
    folder = str(QUICKSTART / "model")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    files = QUICKSTART / "reviews.train.jsonl", QUICKSTART / "reviews.validation.jsonl"
    reviews = Reviews(folder, *files, model, 200)

    def batch(step: int) -> Callable[[], Tensor]:
        chosen = torch.randperm(len(reviews.train), generator=torch.Generator().manual_seed(step))[:16].tolist()
        return lambda: reviews.losses([reviews.train[i] for i in chosen])

    return model, batch, lambda: reviews.held_out()[0]


Row = tuple[int, float, float, float]


def run(problem: str, label: str, lr: float, seed: int, share: float = 1.0) -> Iterator[Row]:
    """Yields forwards, held-out loss, mean cosine of steps to the descent direction, and the steps' total seconds."""
    model, batch, held_out = problems(problem)
    method, options = ENTRIES[label]
    optimizer = method(model, lr=lr, seed=seed, **options)
    total = int(share * FORWARDS[problem])
    parameters = [weight.parameter for block in optimizer.blocks for weight in block.weights]
    used, spent, points, cosines = 0, 0.0, 0, [0.0]
    with torch.no_grad():
        yield 0, held_out(), 0.0, 0.0
    step = 0
    while used < total:
        closure = batch(1000 * seed + step)
        measures_cosine = step % 10 == 0
        if measures_cosine:
            with torch.enable_grad():
                gradient = torch.cat([g.flatten() for g in torch.autograd.grad(closure().mean(), parameters)])
            before = torch.cat([p.detach().flatten().clone() for p in parameters])
        start = time.perf_counter()
        optimizer.step(closure)
        spent += time.perf_counter() - start
        if measures_cosine:
            moved = torch.cat([p.detach().flatten() for p in parameters]) - before
            cosines.append(float(nn.functional.cosine_similarity(-moved, gradient, dim=0)))
        step += 1
        report = optimizer.last_step
        used = report.total_forward_passes + 2 * report.total_backward_passes
        if used * POINTS // total > points:
            points = used * POINTS // total
            with torch.no_grad():
                yield used, held_out(), mean(cosines[1:]), spent


def end(problem: str, label: str, lr: float, share: float) -> float:
    """Returns the final loss of the worse tuning seed, infinite if a seed diverged."""
    losses = []
    for seed in TUNING_SEEDS:
        try:
            (*_, (_, loss, _, _)) = run(problem, label, lr, seed, share)
        except zolit.NonFiniteLossError:
            return math.inf
        # A diverged model gives every input the same answer; this loss, log 2, is below the initial one.
        if not math.isfinite(loss) or (problem == "quickstart" and abs(loss - math.log(2.0)) < 1e-3):
            return math.inf
        losses.append(loss)
    return max(losses)


def best_rate(problem: str, label: str) -> float:
    """Returns the rate with the lowest final loss."""
    decade = min((10.0**power for power in range(-8, 2)), key=lambda lr: end(problem, label, lr, 0.25))
    return min((float(f"{decade * factor:.2g}") for factor in (1 / 3, 1, 3)), key=lambda lr: end(problem, label, lr, 1))


def main() -> None:
    """Runs the methods that the csv does not hold yet, or draws the csv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--problem", choices=tuple(FORWARDS), help="run only this problem")
    parser.add_argument("--only", default="", help="run only methods whose names contain this")
    parser.add_argument("--rates", type=Path, help="take methods and rates from this csv")
    parser.add_argument("--factor", type=float, default=1.0, help="multiply the rates of that csv by this")
    options = parser.parse_args()
    if options.plot:
        plot(options.out, options.plot)
        return
    torch.set_num_threads(1)
    new = not options.out.exists()
    held = set() if new else {(row["problem"], row["method"]) for row in rows(options.out)}
    known = {(row["problem"], row["method"]): float(row["lr"]) for row in rows(options.rates)} if options.rates else {}
    with options.out.open("a", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        if new:
            writer.writerow(COLUMNS)
        for problem in [options.problem] if options.problem else FORWARDS:
            for label in ENTRIES:
                if (problem, label) in held or options.only not in label or (known and (problem, label) not in known):
                    continue
                lr = known[problem, label] * options.factor if known else best_rate(problem, label)
                for seed in SEEDS:
                    for used, loss, cosine, seconds in run(problem, label, lr, seed):
                        writer.writerow(
                            [problem, label, f"{lr:.2g}", seed, used, f"{loss:.5g}", f"{cosine:.4f}", f"{seconds:.2f}"]
                        )
                lines.flush()


def rows(file: Path) -> list[dict[str, str]]:
    """Reads the rows of a csv."""
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def plot(file: Path, image: Path) -> None:
    """Draws a panel for each method, with MeZO's curve in gray, and prints a table of final results."""
    found = rows(file)
    labels = list(dict.fromkeys(row["method"] for row in found))
    columns = 6
    figure, axes = plt.subplots(
        2 * math.ceil(len(labels) / columns),
        columns,
        figsize=(15, 4.2 * math.ceil(len(labels) / columns)),
        sharex="row",
    )
    print("| problem | method | rate | loss | cosine | seconds |")
    for half, problem in enumerate(FORWARDS):
        curves = {
            label: curve([r for r in found if (r["problem"], r["method"]) == (problem, label)]) for label in labels
        }
        for index, label in enumerate(labels):
            panel = axes[half * math.ceil(len(labels) / columns) + index // columns][index % columns]
            for name, color in (("MeZO", "0.7"), (label, "C0")):
                x, middle, low, high = curves[name][:4]
                panel.plot(x, middle, color=color)
                panel.fill_between(x, low, high, color=color, alpha=0.25, linewidth=0)
            panel.set_title(label, fontsize=9)
            panel.set_yscale("log")
            panel.tick_params(labelsize=7)
            end = [r for r in found if (r["problem"], r["method"]) == (problem, label)]
            last = [
                max((r for r in end if r["seed"] == s), key=lambda r: int(r["forwards"]))
                for s in {r["seed"] for r in end}
            ]
            losses = torch.tensor([float(r["loss"]) for r in last])
            print(
                f"| {problem} | {label} | {last[0]['lr']} | {losses.mean():.3g} ± {losses.std():.2g} | "
                f"{mean(float(r['cosine']) for r in last):.3f} | {mean(float(r['seconds']) for r in last):.1f} |"
            )
    for panel in axes.flat:
        panel.set_visible(bool(panel.lines))
    figure.supxlabel("forward passes (upper half: quickstart, lower half: quadratic)", fontsize=9)
    figure.supylabel("held-out loss, mean and range of five seeds; gray: MeZO", fontsize=9)
    figure.tight_layout()
    figure.savefig(image, dpi=80)


def curve(found: list[dict[str, str]]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Returns the forwards of each point, and the mean, least and largest loss of the seeds at it."""
    seeds = [[r for r in found if r["seed"] == seed] for seed in dict.fromkeys(r["seed"] for r in found)]
    points = list(zip(*seeds, strict=True))
    losses = [[float(r["loss"]) for r in point] for point in points]
    forwards = [mean(float(r["forwards"]) for r in point) for point in points]
    return forwards, [mean(part) for part in losses], [min(part) for part in losses], [max(part) for part in losses]


ENTRIES: dict[str, tuple[Callable[..., zolit.ZerothOrder], dict[str, Any]]] = {
    "MeZO": (zolit.MeZO, {}),
    "MeZO, q = 4": (zolit.MeZO, {"directions": 4}),
    "MeZO, momentum": (zolit.MeZO, {"momentum": 0.9}),
    "CurvZO": (zolit.CurvZO, {}),
    "CurvZO, published": (zolit.CurvZO, {"variant": "code"}),
    "CurvZO, uniform": (zolit.CurvZO, {"sampling": "uniform"}),
    "PerExample": (zolit.PerExample, {}),
    "PerExample, rank 2": (zolit.PerExample, {"rank": 2}),
    "PerExample, rank 4": (zolit.PerExample, {"rank": 4}),
    "PerExample, plain": (zolit.PerExample, {"guided": False, "eps": 1e-3}),
    "PerExample, plain, rank 4": (zolit.PerExample, {"guided": False, "eps": 1e-3, "rank": 4}),
    "PerExample, half": (
        lambda model, **options: zolit.PerExample(
            model,
            selection=CurvatureSampling(budget=FixedBudget(0.5), scores=BlockScores(rule="unbiased"), exploration=0.1),
            **options,
        ),
        {},
    ),
    "BSZO": (zolit.BSZO, {}),
    "BSZO-B": (zolit.BSZO, {"adaptive": True}),
    "AGZO": (zolit.AGZO, {}),
    "ZOAct": (zolit.ZOAct, {}),
    "DominantLayer": (zolit.DominantLayer, {}),
    "MeZOGV": (zolit.MeZOGV, {}),
    "MeZOGreedy": (zolit.MeZOGreedy, {}),
    "HiZFO": (zolit.HiZFO, {}),
    "DiZO": (zolit.DiZO, {"pattern": "weight"}),
    "SparseMeZO": (zolit.SparseMeZO, {}),
    "SubZero": (zolit.SubZero, {}),
    "LOZO": (zolit.LOZO, {}),
    "HiZOO": (zolit.HiZOO, {}),
    "FZOO": (zolit.FZOO, {}),
    "SensZOQ": (zolit.SensZOQ, {}),
    "FirstOrder": (zolit.FirstOrder, {}),
}

if __name__ == "__main__":
    main()
