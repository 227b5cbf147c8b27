"""Tasks: prompts, answers and metrics. Each file defines one data set or one kind of task."""

from zolit.tasks.boolq import BoolQ
from zolit.tasks.cb import CB
from zolit.tasks.classification import Classification
from zolit.tasks.copa import COPA
from zolit.tasks.drop import DROP
from zolit.tasks.generation import Generation
from zolit.tasks.multiple_choice import MultipleChoice
from zolit.tasks.multirc import MultiRC
from zolit.tasks.record import ReCoRD
from zolit.tasks.rte import RTE
from zolit.tasks.squad import SQuAD
from zolit.tasks.sst2 import SST2
from zolit.tasks.task import DatasetSplits, Question, Task
from zolit.tasks.text import Text
from zolit.tasks.wic import WiC
from zolit.tasks.wsc import WSC

__all__ = [
    "CB",
    "COPA",
    "DROP",
    "RTE",
    "SST2",
    "WSC",
    "BoolQ",
    "Classification",
    "DatasetSplits",
    "Generation",
    "MultiRC",
    "MultipleChoice",
    "Question",
    "ReCoRD",
    "SQuAD",
    "Task",
    "Text",
    "WiC",
]
