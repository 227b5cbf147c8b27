"""The embedded default: a tiny language model and a small task, so that the first run needs no network.

Both are the project's own, made by ``python -m zolit.quickstart.build`` from a seed and shipped beside this file: a
Llama of some 200,000 weights, pretrained on invented reviews (see :mod:`zolit.quickstart.language`), and sentences of
the same language labeled 1 (liking) or 0 (disliking), for the prompt ``{sentence} It was`` with the label words
" terrible" and " great".
"""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
TRAIN = Path(__file__).parent / "reviews.train.jsonl"
VALIDATION = Path(__file__).parent / "reviews.validation.jsonl"

__all__ = ["MODEL", "TRAIN", "VALIDATION"]
