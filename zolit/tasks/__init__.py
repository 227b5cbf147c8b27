"""Tasks, and the data module that turns their records into batches of prompts."""

from zolit.tasks.answers import AnswerBatch, EncodedAnswers
from zolit.tasks.batch import Batch, EncodedPrompts, PromptBatch, micro_batches
from zolit.tasks.boolq import BoolQ
from zolit.tasks.cb import CB
from zolit.tasks.choice import MultipleChoice
from zolit.tasks.classification import Classification
from zolit.tasks.copa import COPA
from zolit.tasks.data import PromptedData
from zolit.tasks.drop import DROP
from zolit.tasks.multirc import MultiRC
from zolit.tasks.record import ReCoRD
from zolit.tasks.rte import RTE
from zolit.tasks.sampling import GlobalBatchSampler, OrderedBatchSampler, ResumableLoader
from zolit.tasks.squad import SQuAD
from zolit.tasks.sst2 import SST2
from zolit.tasks.task import DatasetSplits, Question, Task
from zolit.tasks.wic import WiC
from zolit.tasks.writing import Writing
from zolit.tasks.wsc import WSC

__all__ = [
    "CB",
    "COPA",
    "DROP",
    "RTE",
    "SST2",
    "WSC",
    "AnswerBatch",
    "Batch",
    "BoolQ",
    "Classification",
    "DatasetSplits",
    "EncodedAnswers",
    "EncodedPrompts",
    "GlobalBatchSampler",
    "MultiRC",
    "MultipleChoice",
    "OrderedBatchSampler",
    "PromptBatch",
    "PromptedData",
    "Question",
    "ReCoRD",
    "ResumableLoader",
    "SQuAD",
    "Task",
    "WiC",
    "Writing",
    "micro_batches",
]
