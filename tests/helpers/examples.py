"""A few records for each task, in the exact columns of its data set; all texts are made up here."""

from __future__ import annotations

from typing import Any

NAMES = ["Ada", "Ben", "Cleo", "Dov", "Eve", "Finn"]
THINGS = ["a boat", "a drum", "a lamp", "a map", "a rope", "a stove"]


def records(task: str, count: int = 24) -> list[dict[str, Any]]:
    """Returns records as the data set's library yields them, all different."""
    return [MAKERS[task](i) for i in range(count)]


def _sst2(i: int) -> dict[str, Any]:
    return {"idx": i, "sentence": f"{NAMES[i % 6]} {'loved' if i % 2 else 'hated'} film {i} ", "label": i % 2}


def _rte(i: int) -> dict[str, Any]:
    premise = f"{NAMES[i % 6]} bought {THINGS[i % 5]} on day {i}."
    return {"idx": i, "premise": premise, "hypothesis": f"{NAMES[(i + i % 2) % 6]} bought it.", "label": i % 2}


def _cb(i: int) -> dict[str, Any]:
    return {**_rte(i), "label": i % 3}


def _boolq(i: int) -> dict[str, Any]:
    passage = f"{NAMES[i % 6]} owns {THINGS[i % 5]}, number {i}."
    return {"question": f"does {NAMES[i % 6]} own {THINGS[i % 6]}", "answer": i % 2 == 0, "passage": passage}


def _wsc(i: int) -> dict[str, Any]:
    text = f"{NAMES[i % 6]} thanked {NAMES[(i + 1) % 6]} for {THINGS[i % 5]} {i}. She smiled."
    spans = {"span1_index": 0, "span2_index": 6, "span1_text": NAMES[i % 6], "span2_text": "She"}
    return {"idx": i, "text": text, **spans, "label": i % 2}


def _wic(i: int) -> dict[str, Any]:
    sentences = {"sentence1": f"The bank of river {i}.", "sentence2": ("A bank lends.", "A bank of mud.")[i % 2]}
    places = {"start1": 4, "start2": 2, "end1": 8, "end2": 6}
    return {"idx": i, "word": "bank", **sentences, **places, "label": i % 2}


def _multirc(i: int) -> dict[str, Any]:
    paragraph = f"{NAMES[i % 6]} lost {THINGS[i % 5]} in month {i}."
    place = {"paragraph": i, "question": 0, "answer": 0}
    return {"idx": place, "paragraph": paragraph, "question": "What was lost?", "answer": THINGS[i % 6], "label": i % 2}


def _copa(i: int) -> dict[str, Any]:
    choices = {"choice1": "The rain fell.", "choice2": f"I dropped {THINGS[i % 5]}."}
    question = ("cause", "effect")[i // 2 % 2]
    return {"idx": i, "premise": f"{NAMES[i % 6]} got wet {i}.", **choices, "question": question, "label": i % 2}


def _record(i: int) -> dict[str, Any]:
    one, other = NAMES[i % 6], NAMES[(i + 1) % 6]
    passage = f"{one} met {other} in town {i}.\n@highlight\nThey talked."
    spans = {"text": [one, other], "start": [0, 9], "end": [3, 12]}
    return {
        "idx": {"passage": i, "query": 0},
        "passage": passage,
        "query": "Later @placeholder left.",
        "entities": [one, other, "the town"][: 2 + i % 2],
        "entity_spans": spans,
        "answers": [other],
    }


def _squad(i: int) -> dict[str, Any]:
    answers = {"text": [THINGS[i % 5], THINGS[i % 5].split()[1]], "answer_start": [9, 11]}
    context = f"{NAMES[i % 6]} found {THINGS[i % 5]} {i}."
    return {"id": str(i), "title": "Finds", "context": context, "question": " What was found?", "answers": answers}


def _drop(i: int) -> dict[str, Any]:
    passage = f"{NAMES[i % 6]} scored {i} points, then {i + 2}."
    answers = {"spans": [str(2 * i + 2)], "types": ["number"]}
    about = {"section_id": "s", "query_id": str(i), "passage": passage, "question": "How many in all?"}
    return {**about, "answers_spans": answers}


def _text(i: int) -> dict[str, Any]:
    return {"id": i, "text": f"{NAMES[i % 6]} has {' and '.join(THINGS[: 1 + i % 4])}, in house {i}."}


MAKERS = {
    "sst2": _sst2,
    "rte": _rte,
    "cb": _cb,
    "boolq": _boolq,
    "wsc": _wsc,
    "wic": _wic,
    "multirc": _multirc,
    "copa": _copa,
    "record": _record,
    "squad": _squad,
    "drop": _drop,
    "text": _text,
}
