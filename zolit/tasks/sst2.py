"""SST-2: is a sentence of a movie review positive?"""

from __future__ import annotations

from typing import ClassVar

from zolit.tasks.classification import Classification


class SST2(Classification):
    """SST-2 of GLUE (arXiv 1804.07461), prompts of MeZO (arXiv 2305.17333). Columns: sentence, label."""

    dataset: ClassVar[str | None] = "nyu-mll/glue"
    dataset_config: ClassVar[str | None] = "sst2"

    def __init__(self) -> None:
        super().__init__(
            "{sentence} It was",
            {"0": " terrible", "1": " great"},
        )
