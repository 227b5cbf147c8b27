"""zolit: fine-tune language models with forward passes alone."""

from typing import TYPE_CHECKING, Any

from zolit import methods
from zolit.errors import NonFiniteLossError, UserError
from zolit.methods import *  # noqa: F403  # every method, by its name
from zolit.optim import SelectionReport, StepReport, ZerothOrder, choose_rate

__all__ = ["NonFiniteLossError", "SelectionReport", "StepReport", "UserError", "ZerothOrder", "choose_rate"]
__all__ += methods.__all__

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
