"""WiC: does a word have the same meaning in two sentences?"""

from __future__ import annotations

from typing import ClassVar

from zolit.tasks.classification import Classification


class WiC(Classification):
    """WiC of SuperGLUE (arXiv 1905.00537), prompts of MeZO (arXiv 2305.17333).

    Columns: word, sentence1, sentence2, label.
    """

    dataset: ClassVar[str | None] = "aps/super_glue"
    dataset_config: ClassVar[str | None] = "wic"

    def __init__(self) -> None:
        super().__init__(
            'Does the word "{word}" have the same meaning in these two sentences? Yes, No?\n{sentence1}\n{sentence2}\n',
            {"0": "No", "1": "Yes"},
        )
