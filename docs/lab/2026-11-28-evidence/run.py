"""Tunes every method and trains it with three seeds, at equal arithmetic, and appends what it finds to csv files.

    python docs/lab/2026-11-28-evidence/run.py MODEL_FOLDER TRAIN.jsonl TEST.jsonl --task reviews --name smollm2

A unit of arithmetic is one forward of 16 training examples, in floating point operations. Every run has the same number
of units, whatever they are spent on: the operations of every step are counted (``zolit_callbacks.FlopCounter``). The
rate falls to 0 with the units that are left.

Each method has four rates. All start with seed 0; after a quarter of the run two are left, after half of it one. The
mean loss of the tuning set decides (successive halving). The rate that is left runs again with seeds 1 and 2. The test
set is evaluated after a third of a run and at its end. With ``--rates auto`` the one rate is that of ``lr: auto``, and
nothing is searched. More seeds follow with ``--rates 1e-4 --seeds 3,4``.

Finished methods are skipped, so the command may be repeated, and several processes may run at once.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import gc
import math
import os
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from entries import FACTORS, SETS, Entry
from problems import Problem
from zolit_callbacks.arithmetic import FlopCounter

import zolit
from zolit.cli.allocator import tune_malloc
from zolit.errors import NonFiniteLossError
from zolit.models.batches import Batch, TextBatch
from zolit.optim import Rate
from zolit.optim.modules.answer_head import tell_words

HERE = Path(__file__).parent
THIRD = 1 / 3
RUN = ("problem", "method", "lr", "seed")
TUNING = (*RUN, "share", "loss", "score", "auto")
RESULT = (*RUN, "units", "steps", "forwards", "backwards", "loss", "score", "seconds")
EXAMPLES = (*RUN, "units", "losses", "scores")


class Training:
    """One run: a model, an optimizer and an order of batches.

    Args:
        problem: The problem.
        made: The method.
        rate: The rate, or the penalty of a linear probe. With ``auto``, only ``choose_rate`` is called.
        seed: Seed of directions and of the order of batches.
        units: Length of the run, in forwards of 16 examples.
    """

    def __init__(self, problem: Problem, made: Entry, rate: Any, seed: int, units: float) -> None:
        self.problem, self.entry, self.rate, self.seed = problem, made, rate, seed
        self.total = units
        self.used, self.seconds = 0.0, 0.0
        self.diverged = False
        self.language = problem.language(made.lora, seed)
        tell_words(self.language.model, problem.data.label_tokens)
        self.optimizer = made.make(self.language.model, rate, seed)
        self.language.keeps_logits_whole = self.optimizer.per_example
        self._batches = problem.batches(seed, made.batch)
        self.steps = 0
        self._lr = float(self.optimizer.param_groups[0]["lr"])

    def choose_rate(self) -> Rate:
        """Returns what ``lr: auto`` chooses for this run. Its forwards are not counted."""
        batches = list(islice(self.problem.batches(self.seed, self.entry.batch), 8))
        closures, ids = zip(*(self.closure(batch) for batch in batches), strict=True)
        for batch in batches:
            self._look(batch)
        examples = [own for own in ids if own is not None]
        with FlopCounter() as plain, torch.no_grad():
            self.problem.objective.losses(self.language, batches[0])
        self.optimizer.needs_rate = False
        with FlopCounter() as counter:
            self._probe_once(batches[0])  # with a rate of 0, for its arithmetic
        self.optimizer.needs_rate = True
        steps = self.total * plain.flops / counter.flops
        return zolit.choose_rate(
            self.optimizer, closures, max(steps / 3, 1.0), examples, repeats_batch=not examples
        )  # a rate that falls to 0 has a third of the squares

    def _probe_once(self, batch: Batch) -> None:
        self.optimizer.param_groups[0]["lr"] = 0.0
        closure, ids = self.closure(batch)
        self.optimizer.step(closure, examples=ids, repeats_batch=ids is None)
        self.optimizer.param_groups[0]["lr"] = 1.0

    def closure(self, batch: Batch) -> tuple[Any, list[int] | None]:
        """Returns the closure of a batch, and the ids of its rows for per-example directions."""
        objective, language, optimizer = self.problem.objective, self.language, self.optimizer
        if not optimizer.per_example:
            return lambda: objective.losses(language, batch.repeated(optimizer.batch_repeats)), None
        rows = objective.example_of_row(batch, optimizer.collectives)
        return lambda: objective.losses(language, batch)[rows], batch.indices[rows].tolist()

    def _look(self, batch: Batch) -> None:
        if isinstance(batch, TextBatch):
            self.language.prepare_texts(batch)

    def train(self, share: float) -> None:
        """Makes steps until a share of the run's units is used. Stops where the losses are not finite."""
        while self.used < share * self.total and not self.diverged:
            batch = next(self._batches)
            self._look(batch)
            self.optimizer.param_groups[0]["lr"] = self._lr * max(1.0 - self.used / self.total, 0.0)
            closure, ids = self.closure(batch)
            answers = self.problem.objective.answers(self.language, batch) if self.optimizer.needs_answers else None
            begin = time.perf_counter()
            try:
                with FlopCounter() as counter:
                    self.optimizer.step(closure, examples=ids, repeats_batch=ids is None, answers=answers)
            except NonFiniteLossError as error:
                print(error, flush=True)
                self.diverged = True
            self.seconds += time.perf_counter() - begin
            self.steps += 1
            self.used += counter.flops / self.problem.unit
            if not self.diverged and self.optimizer.last_step.forward_passes == 0:
                self.used = self.total  # a linear probe that has seen all examples changes no more


def measure_unit(problem: Problem) -> None:
    """Sets ``problem.unit``, the operations of a mean forward of 16 training examples."""
    language = problem.language(False, 0)
    flops = []
    for batch in islice(problem.batches(0), 20):
        if isinstance(batch, TextBatch):
            language.prepare_texts(batch)
        with FlopCounter() as counter, torch.no_grad():
            problem.objective.losses(language, batch)
        flops.append(counter.flops)
    problem.unit = sum(flops) / len(flops)


class Study:
    """Writes what the runs of a problem find.

    Args:
        name: Name of the problem in the csv files.
        problem: The problem.
        units: Length of a run.
        rates: The rates of all methods, in the place of their own; empty for the one that ``auto`` chooses.
        seeds: The seeds. The first one chooses the rate.
    """

    def __init__(
        self, name: str, problem: Problem, units: float, rates: tuple[float, ...] | None, seeds: tuple[int, ...]
    ) -> None:
        self.name, self.problem, self.units, self.rates, self.seeds = name, problem, units, rates, seeds
        self._rows: list[tuple[str, tuple[str, ...], list[Any]]] = []

    def race(self, label: str, made: Entry) -> None:
        """Tunes a method by successive halving, and trains it with all seeds."""
        rates, auto, seed = list(made.rates if self.rates is None else self.rates), math.nan, self.seeds[0]
        if not rates:
            auto = Training(self.problem, made, "auto", seed, self.units).choose_rate().lr
            factors = FACTORS if self.rates is None else (1.0,)
            rates = [float(f"{factor * auto:.3g}") for factor in factors]
        runs = self._halve(label, [Training(self.problem, made, lr, seed, self.units) for lr in rates], 0.25, auto)
        early = []
        for run in runs:
            run.train(THIRD)
            early.append(self._result(label, run, THIRD))
        (best,) = self._halve(label, runs, 0.5, auto)
        chosen = early[runs.index(best)]
        del runs
        gc.collect()
        best.train(1.0)
        for result in (chosen, self._result(label, best, 1.0)):
            self._write_result(*result)
        rate = best.rate
        del best
        for seed in self.seeds[1:]:
            gc.collect()
            run = Training(self.problem, made, rate, seed, self.units)
            for share in (THIRD, 1.0):
                run.train(share)
                self._write_result(*self._result(label, run, share))
            del run
        for file, columns, row in self._rows:  # at the end, so that the csv files have whole methods alone
            append(HERE / f"{file}.csv", columns, row)
        self._rows.clear()

    def _halve(self, label: str, runs: list[Training], share: float, auto: float) -> list[Training]:
        """Trains runs up to a share of their length, and returns the better half of them."""
        losses = []
        for run in runs:
            run.train(share)
            found = self.problem.evaluate(run.language, "validation", at_end=False)
            losses.append(found.loss if math.isfinite(found.loss) and not run.diverged else math.inf)
            numbers = (f"{share}", f"{losses[-1]:.4f}", f"{found.score:.4f}", f"{auto:.3g}")
            self._rows.append(("tuning", TUNING, [*self._names(label, run), *numbers]))
        return [runs[i] for i in sorted(range(len(runs)), key=losses.__getitem__)[: max(len(runs) // 2, 1)]]

    def _names(self, label: str, run: Training) -> tuple[Any, ...]:
        return self.name, label, f"{run.rate:.3g}", run.seed

    def _result(self, label: str, run: Training, share: float) -> tuple[list[Any], list[Any]]:
        """Evaluates the test set; returns a row of results, and one of the single examples."""
        found, counts = self.problem.evaluate(run.language, "test", share == 1.0), run.optimizer.counts
        names = [*self._names(label, run), round(share * self.units)]
        loss = math.inf if run.diverged else found.loss
        row = [*names, run.steps, counts["forwards"], counts["backwards"]]
        losses = " ".join(f"{float(own):.3f}" for own in found.losses)
        scores = "".join(str(int(score)) for score in found.scores)
        return [*row, f"{loss:.4f}", f"{found.score:.4f}", f"{run.seconds:.1f}"], [*names, losses, scores]

    def _write_result(self, row: list[Any], examples: list[Any]) -> None:
        self._rows += [("results", RESULT, row), (f"examples-{self.name}", EXAMPLES, examples)]


def append(file: Path, columns: tuple[str, ...], row: list[Any]) -> None:
    """Appends a row to a csv. Several processes may."""
    with file.open("a", newline="", encoding="utf-8") as lines:
        fcntl.flock(lines, fcntl.LOCK_EX)
        writer = csv.writer(lines)
        if not os.fstat(lines.fileno()).st_size:
            writer.writerow(columns)
        writer.writerow(row)


def is_done(name: str, label: str, seed: int) -> bool:
    """Returns whether the csv has a method with a seed."""
    file = HERE / "results.csv"
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines()) if file.exists() else ()
    return any((row["problem"], row["method"], row["seed"]) == (name, label, str(seed)) for row in rows)


def main() -> None:
    """Runs the methods of a problem that no process has begun yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--task", default="reviews")
    parser.add_argument("--name", required=True, help="name of the model in the csv files")
    parser.add_argument("--units", type=float, default=300.0, help="length of a run in forwards of 16 examples")
    parser.add_argument("--set", default="methods", choices=tuple(SETS))
    parser.add_argument("--only", default="", help="run only the methods of these names, with | between them")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"), help="folder for sentences and marks")
    parser.add_argument("--rates", help="the rates, with commas between them, or auto; default: those of the method")
    parser.add_argument("--seeds", default="0,1,2", help="the seeds, with commas between them")
    options = parser.parse_args()
    tune_malloc()
    name = f"{options.name}-{options.task}"
    problem = Problem(options.task, options.model, options.train, options.test, options.work / name)
    measure_unit(problem)
    is_auto = options.rates == "auto"
    rates = None if options.rates is None else () if is_auto else tuple(map(float, options.rates.split(",")))
    study = Study(name, problem, options.units, rates, tuple(map(int, options.seeds.split(","))))
    for own, made in SETS[options.set].items():
        label = f"{own}, auto" if is_auto else own
        if (options.only and own not in options.only.split("|")) or is_done(name, label, study.seeds[0]):
            continue
        mark = options.work / name / label.replace(" ", "_").replace("/", "_")
        try:
            mark.touch(exist_ok=False)  # this process has it
        except FileExistsError:
            continue
        begin = time.perf_counter()
        study.race(label, made)
        print(f"{name} {label}: {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
