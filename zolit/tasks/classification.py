"""Classification by prompt: the model continues the text with one of a few label words."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence

from typing_extensions import override

from zolit.errors import UserError, require
from zolit.tasks.task import Question, Record, Task
from zolit.tasks.template import Template
from zolit.tasks.values import labels_of

SENTIMENT_WORDS = {"0": " terrible", "1": " great"}
MASK = "mask"
_READ_AS_BOOLEANS = ("yes", "no", "on", "off", "true", "false")


class Classification(Task):
    """Turns labelled texts into prompts that one of a few label words completes.

    As in MeZO (arXiv 2305.17333), ``{sentence} It was`` is followed by " terrible" or " great". The word with the
    higher likelihood is the answer. For words of several tokens, the mean log-likelihood of the tokens is compared.

    Args:
        template: The prompt, with columns in braces. The label word follows it directly, so a prompt ends without a
            space and a word begins with one.
        label_words: The word for each label. Labels are compared as text, so that 1, 1.0 and "1" are the same label. A
            boolean is True, true or 1.
        label_column: Column that holds the label.
        masked_template: The prompt for a masked language model (RoBERTa), with {mask} in place of the word; null
            appends the mask and a full stop to the template.

    Raises:
        UserError: If a template cannot be parsed, or a word is blank or used for two labels.
    """

    def __init__(
        self,
        template: str = "{sentence} It was",
        label_words: dict[str, str] = SENTIMENT_WORDS,
        label_column: str = "label",
        masked_template: str | None = None,
    ) -> None:
        self.template = Template.parse(template, "--data.task.template")
        self.masked_template = (
            None if masked_template is None else Template.parse(masked_template, "--data.task.masked_template")
        )
        self.label_words = {str(label): word for label, word in label_words.items()}  # YAML reads 0 and 1 as numbers
        self.label_column = label_column
        words = list(self.label_words.values())
        for index, word in enumerate(words):
            if not word.strip():
                raise UserError("--data.task.label_words: a label word is empty or blank; give every label a word")
            if word in words[:index]:
                raise UserError(
                    f"--data.task.label_words: the word {word!r} is used for two labels; give each label its own word"
                )
        self._answers = tuple(words)
        require(
            len(self.label_words) == len(label_words),
            "--data.task.label_words: a label is written twice, once with and once without quotes; write it once",
        )
        require(None not in label_words, "--data.task.label_words: a label is null; write the label in quotes")
        self._classes = {label: index for index, label in enumerate(self.label_words)}
        for index, given in enumerate(label_words):  # a label as it is written comes before what it may stand for
            for label in labels_of(given):
                self._classes.setdefault(label, index)

    def values(self, record: Record) -> Mapping[str, object]:
        """Returns the values of the template's fields, by name. Subclasses may add fields to the columns."""
        return record

    @override
    def inputs(self) -> dict[str, Sequence[str]]:
        """Returns the columns of the templates; see ``Task.inputs``."""
        fields: dict[str, Sequence[str]] = {"--data.task.template": self.template.fields}
        if self.masked_template:
            named = tuple(field for field in self.masked_template.fields if field != MASK)
            fields["--data.task.masked_template"] = named
        return fields

    @override
    def targets(self) -> dict[str, Sequence[str]]:
        """Returns the column of the label; see ``Task.targets``."""
        return {"--data.task.label_column": [self.label_column]}

    @override
    def question(self, record: Record) -> Question:
        """Returns the rendered template and the label words; see ``Task.question``."""
        return Question(self.template.render(self.values(record)), self._answers)

    @override
    def masked_prompt(self, record: Record, mask: str) -> str:
        """Returns the rendered masked template, if there is one; see ``Task.masked_prompt``."""
        if self.masked_template is None:
            return super().masked_prompt(record, mask)
        return self.masked_template.render({**self.values(record), MASK: mask})

    @override
    def correct_answers(self, record: Record) -> tuple[int, ...]:
        """Returns the index of the label; see ``Task.correct_answers``."""
        labels = labels_of(record[self.label_column])
        for label in labels:
            if label in self._classes:
                return (self._classes[label],)
        meant = labels[0].lower() in _READ_AS_BOOLEANS and not {"True", "False"}.isdisjoint(self.label_words)
        raise UserError(
            f"has the label {reprlib.repr(labels[0])}, but --data.task.label_words has no word for it (only for"
            f" {', '.join(self.label_words)})"
            + (
                "; YAML reads yes, no, on and off without quotes as True and False, so write the label in quotes"
                * meant
            )
        )
