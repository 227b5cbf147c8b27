"""The texts of each task: prompts, answers, correct answers, and scores of generated answers."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.helpers.examples import records
from zolit import tasks
from zolit.errors import UserError
from zolit.tasks.classification import Classification
from zolit.tasks.generation import Generation
from zolit.tasks.multiple_choice import MultipleChoice
from zolit.tasks.task import Question, Task

TASKS: dict[str, Task] = {
    name.lower(): getattr(tasks, name)()
    for name in ("SST2", "RTE", "CB", "BoolQ", "WSC", "WiC", "MultiRC", "COPA", "ReCoRD", "SQuAD", "DROP")
}
YES_NO = ("Yes", "No")

# As in MeZO's paper and code: task, number of the record, prompt, answers, numbers of the correct answers.
GOLDEN: list[tuple[str, int, str, tuple[str, ...], tuple[int, ...]]] = [
    ("sst2", 0, "Ada hated film 0 It was", (" terrible", " great"), (0,)),
    (
        "rte",
        1,
        'Ben bought a drum on day 1.\nDoes this mean that "Cleo bought it." is true? Yes or No?\n',
        YES_NO,
        (1,),
    ),
    (
        "cb",
        2,
        'Suppose Cleo bought a lamp on day 2. Can we infer that "Cleo bought it."? Yes, No, or Maybe?\n',
        ("Yes", "No", "Maybe"),
        (2,),
    ),
    ("boolq", 5, "Finn owns a boat, number 5. Does Finn own a stove?\n", YES_NO, (1,)),
    (
        "wsc",
        1,
        "Ben thanked Cleo for a drum 1. She smiled.\n"
        'In the previous sentence, does the pronoun "she" refer to Ben? Yes or No?\n',
        ("No", "Yes"),
        (1,),
    ),
    (
        "wic",
        0,
        'Does the word "bank" have the same meaning in these two sentences? Yes, No?\n'
        "The bank of river 0.\nA bank lends.\n",
        ("No", "Yes"),
        (0,),
    ),
    (
        "multirc",
        1,
        "Ben lost a drum in month 1.\nQuestion: What was lost?\n"
        'I found this answer "a drum". Is that correct? Yes or No?\n',
        ("No", "Yes"),
        (1,),
    ),
    ("copa", 0, "Ada got wet 0 because", (" the rain fell.", " I dropped a boat."), (0,)),
    ("copa", 3, "Dov got wet 3 so", (" the rain fell.", " I dropped a map."), (1,)),
    (
        "record",
        1,
        "Ben met Cleo in town 1.\n- They talked.\n-",
        (" Later Ben left.", " Later Cleo left.", " Later the town left."),
        (1,),
    ),
    (
        "squad",
        0,
        "Title: Finds\nContext: Ada found a boat 0.\nQuestion: What was found?\nAnswer:",
        (" a boat\n",),
        (0,),
    ),
    ("drop", 3, "Passage: Dov scored 3 points, then 5.\nQuestion: How many in all?\nAnswer:", (" 8\n",), (0,)),
]


@pytest.mark.parametrize(("name", "index", "prompt", "answers", "right"), GOLDEN)
def test_prompts_and_answers(
    name: str, index: int, prompt: str, answers: tuple[str, ...], right: tuple[int, ...]
) -> None:
    task, record = TASKS[name], records(name)[index]
    assert task.question(record) == Question(prompt, answers)
    assert task.correct_answers(record) == right


@pytest.mark.parametrize("name", TASKS)
def test_columns_are_those_of_the_data_set_and_all_that_is_read(name: str) -> None:
    task, record = TASKS[name], records(name)[0]
    inputs = {column for columns in task.inputs().values() for column in columns}
    targets = {column for columns in task.targets().values() for column in columns}
    assert inputs | targets <= set(record)
    question = task.question({column: record[column] for column in inputs})
    assert question.prompt == task.question(record).prompt
    assert task.correct_answers({column: record[column] for column in inputs | targets}) == task.correct_answers(record)


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("sst2", "Ada hated film 0 It was <mask>."),
        ("rte", "Ada bought a boat on day 0?<mask>, ada bought it."),
        ("cb", "Ada bought a boat on day 0?<mask>, ada bought it."),
        ("boolq", "Ada owns a boat, number 0. Does Ada own a boat? <mask>."),
    ],
)
def test_prompts_of_masked_models(name: str, prompt: str) -> None:
    assert TASKS[name].masked_prompt(records(name)[0], "<mask>") == prompt


def test_several_answers_may_be_correct() -> None:
    record = {
        "passage": "p",
        "query": "@placeholder @placeholder",
        "entities": ["B", "A", "C", "A"],
        "answers": ["A", "C"],
    }
    assert TASKS["record"].correct_answers(record) == (1, 3, 2)
    assert TASKS["record"].question(record).answers[1] == " A A"


@pytest.mark.parametrize(
    ("task", "record", "message"),
    [
        (TASKS["record"], {"entities": ["A"], "answers": ["B"]}, "has no entity that equals one of its answers ['B']"),
        (TASKS["copa"], {"label": 2}, "has the label 2, but COPA has only 0 for choice1"),
        (TASKS["cb"], {"label": -1}, "has the label '-1', but --data.task.label_words has no word"),
        (TASKS["squad"], {"answers": {"text": []}}, "has no answer in the column 'answers'"),
        (MultipleChoice("{q}", ["a", "b"]), {"label": "c"}, "has the label 'c', but --data.task.choices allows"),
    ],
)
def test_records_without_a_valid_label(task: Task, record: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        task.correct_answers(record)


def test_generic_tasks() -> None:
    choice = MultipleChoice("{q} So", ["yes", "no"], "gold")
    record = {"q": "It rained.", "yes": "it is wet.", "no": "it is dry.", "gold": "no"}
    assert choice.question(record) == Question("It rained. So", (" it is wet.", " it is dry."))
    assert choice.correct_answers(record) == choice.correct_answers({**record, "gold": 1}) == (1,)
    generation = Generation("Q: {q}\nA:", "gold")
    assert generation.question(record) == Question("Q: It rained.\nA:", (" no\n",))
    assert generation.references({"gold": ["x", "y"]}) == ("x", "y")
    assert generation.judge("The No!", ["no"]) == {"f1": 1.0, "exact_match": 1.0}
    assert generation.question({"q": "?"}).prompt == "Q: ?\nA:"  # in prediction
    masked = Classification("{q}", {"a": " a", "b": " b"}, masked_template="{mask}: {q}")
    assert masked.masked_prompt({"q": "x"}, "[M]") == "[M]: x"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classification(label_words={"0": "", "1": " a"}), "a label word is empty"),
        (lambda: Classification(label_words={"0": " \n", "1": " a"}), "a label word is empty or blank"),
        (lambda: Classification(label_words={"0": " a", "1": " a"}), "the word ' a' is used for two labels"),
        (lambda: Classification("no gap"), "--data.task.template: 'no gap' has no field"),
        (lambda: MultipleChoice("{q}", ["a"]), "--data.task.choices: name at least two columns"),
    ],
)
def test_invalid_options(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make()
