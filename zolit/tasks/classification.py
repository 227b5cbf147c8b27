"""Classification by prompt: the model goes on with the text, and one word stands for each label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from typing_extensions import override

from zolit.errors import UserError
from zolit.tasks.prompts import Template
from zolit.tasks.task import Question, Record, Task

SENTIMENT_WORDS = {"0": " terrible", "1": " great"}
MASK = "mask"


class Classification(Task):
    """Labelled texts as prompts that one of a few label words answers.

    As in MeZO (arXiv 2305.17333): ``{sentence} It was`` is followed by " terrible" or " great", and the likelier
    word is the answer; words of several tokens count by their tokens' mean log-likelihood.

    Args:
        template: The prompt, with columns in braces. The label word follows it: a prompt ends without a space, and a
            word begins with one.
        label_words: The word for each label. A label is the text of its value, so that 1 and "1" are the same.
        label_column: Column that holds the label.
        masked_template: The prompt for a model that fills in a mask (RoBERTa), with {mask} in the word's place; null
            is the template with the mask and a full stop after it.

    Raises:
        UserError: If a template cannot be read, or a word is empty or stands for two labels.
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
        self.label_words = {str(label): word for label, word in label_words.items()}  # YAML makes numbers of 0 and 1
        self.label_column = label_column
        words = list(self.label_words.values())
        for index, word in enumerate(words):
            if not word:
                raise UserError("a label word is empty: give every label in --data.task.label_words a word")
            if word in words[:index]:
                raise UserError(f"--data.task.label_words: the word {word!r} stands for two labels")
        self._answers = tuple(words)
        self._classes = {label: index for index, label in enumerate(self.label_words)}

    def values(self, record: Record) -> Mapping[str, object]:
        """Returns what fills the gaps of the template; the columns themselves, but for subclasses."""
        return record

    @override
    def inputs(self) -> dict[str, Sequence[str]]:
        fields: dict[str, Sequence[str]] = {"--data.task.template": self.template.fields}
        if self.masked_template:
            named = tuple(field for field in self.masked_template.fields if field != MASK)
            fields["--data.task.masked_template"] = named
        return fields

    @override
    def targets(self) -> dict[str, Sequence[str]]:
        return {"--data.task.label_column": [self.label_column]}

    @override
    def question(self, record: Record) -> Question:
        return Question(self.template.render(self.values(record)), self._answers)

    @override
    def masked_prompt(self, record: Record, mask: str) -> str:
        if self.masked_template is None:
            return super().masked_prompt(record, mask)
        return self.masked_template.render({**self.values(record), MASK: mask})

    @override
    def right(self, record: Record) -> tuple[int, ...]:
        label = str(record[self.label_column])
        if label not in self._classes:
            raise UserError(
                f"has the label {label!r}, for which --data.task.label_words has no word (it has words for"
                f" {', '.join(self._classes)})"
            )
        return (self._classes[label],)
