"""The quickstart's model and data: a tiny language model and a small task, so that the first run needs no network.

``python -m zolit.quickstart.build`` makes both from a seed, and they are shipped beside this file. The model is a Llama
of about 200,000 weights, pretrained on invented reviews (see :mod:`zolit.quickstart.language`). The data are sentences
of the same language, labelled 1 (liking) or 0 (disliking). The prompt is ``{sentence} It was``, and the label words are
" terrible" and " great".
"""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
TRAIN = Path(__file__).parent / "reviews.train.jsonl"
VALIDATION = Path(__file__).parent / "reviews.validation.jsonl"

__all__ = ["MODEL", "TRAIN", "VALIDATION"]
