"""A logistic regression on the last hidden state: the linear probing of the tables of MeZO, arXiv 2305.17333."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.methods.base import Unprobed
from zolit.optim import AnswerRegression
from zolit.optim.modules.answer_head import attach_probe


class LinearProbe(Unprobed):
    """Fits the rows of the output head that predict the label words, and freezes the model.

    The features of an example are the input of the output head where the answer is predicted, by one forward when the
    example is first seen. Each step fits a multinomial logistic regression with an L2 penalty to all examples so far. A
    step without a new example makes no forward and changes nothing, so that one pass over the data is all.

    As in the code of MeZO, the fitted rows replace those of the head, and there is an intercept if the head has a bias.
    That code chooses the penalty by cross-validation (``LogisticRegressionCV``). Here features are divided by their
    standard deviation and the penalty is constant. ``docs/methods/linear-probe.md`` has the measurements.

    Args:
        words: Token ids of the label words; null takes those of the task.
        l2: λ, the strength of the L2 penalty: a regression with one more example counts it less.
    """

    about: ClassVar = About(
        paper="linear probing as in MeZO, arXiv 2305.17333",
        stages="no probes, a logistic regression on the last hidden state",
        forwards="1; 0 for examples that came before",
        forwards_by_default=1,
        memory="4·d bytes per training example",
        when="answers are label words of one token: run it first, it shows what the frozen model knows",
        page="linear-probe.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        words: Sequence[int] | None = None,
        l2: float = 0.3,
        **shared: Any,
    ) -> None:
        attach_probe(model, words)
        super().__init__(
            model,
            lr=1.0,
            eps=1.0,
            update=AnswerRegression(l2),
            **shared,
        )
