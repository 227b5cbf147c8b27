"""From records to batches of tokens: the LightningDataModule and its parts."""

from zolit.data.datamodule import PromptedData

__all__ = ["PromptedData"]
