"""Tasks: data modules that turn records into batches of prompts."""

from zolit.tasks.batch import EncodedPrompts, PromptBatch, micro_batches
from zolit.tasks.prompted import DatasetSplits, PromptedClassification
from zolit.tasks.sampling import GlobalBatchSampler, OrderedBatchSampler, ResumableLoader

__all__ = [
    "DatasetSplits",
    "EncodedPrompts",
    "GlobalBatchSampler",
    "OrderedBatchSampler",
    "PromptBatch",
    "PromptedClassification",
    "ResumableLoader",
    "micro_batches",
]
