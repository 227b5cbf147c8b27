"""From questions to tokens: what a split of a task is in memory."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase

from zolit.errors import UserError
from zolit.pretrained import fills_masks, load_tokenizer
from zolit.tasks.answers import EncodedAnswers
from zolit.tasks.batch import EncodedPrompts
from zolit.tasks.prompts import continued
from zolit.tasks.records import Records
from zolit.tasks.task import Question, Record, Task

SEPARATOR = "\n\n"

Encoded = list[tuple[list[int], list[list[int]]]]
"""The tokens of each prompt, and of the answers that go on with it."""


@dataclass(frozen=True)
class Encoder:
    """Makes tokens of a task's records.

    Args:
        task: The task.
        tokenizer: The model's.
        masked: Whether the model fills in a mask, rather than going on with a text.
        limit: The longest prompt with its answer, in tokens; None for no limit.
        cut: Whether what is too long loses tokens at its beginning, rather than being refused.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    masked: bool
    limit: int | None
    cut: bool

    @classmethod
    def of_model(
        cls,
        task: Task,
        name_or_path: str,
        trust_remote_code: bool,
        *,
        max_tokens: int | None,
        cut: bool,
        demonstrated: bool,
    ) -> Encoder:
        """Makes the one for a model.

        Args:
            task: The task.
            name_or_path: Folder or hub id of the model.
            trust_remote_code: Run code that comes with it.
            max_tokens: The longest prompt with its answer, in tokens; None for the model's context.
            cut: Whether what is too long is cut.
            demonstrated: Whether examples with their answers are to come before every prompt.

        Raises:
            UserError: If the model cannot be read, has a shorter context, or does not answer such questions.
        """
        tokenizer = load_tokenizer(name_or_path, trust_remote_code)
        try:
            config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"cannot read the configuration of {name_or_path}: {reason}") from error
        masked = fills_masks(config)
        if masked and (task.as_language or demonstrated):
            raise UserError(
                f"{name_or_path} fills in masks, which answers a label word and no more: take a task with label"
                " words, without --data.demonstrations, or a causal language model"
            )
        context = getattr(config.get_text_config(), "max_position_embeddings", None)
        if context is not None and config.model_type == "roberta":
            context -= 1 + (config.pad_token_id or 0)  # its positions are counted from there
        if max_tokens is not None and context is not None and max_tokens > context:
            raise UserError(f"--data.max_tokens {max_tokens} is more than the model's context of {context} tokens")
        return cls(task, tokenizer, masked, max_tokens or context, cut)

    def demonstrations(self, records: Records, count: int, seed: int) -> str:
        """Returns so many records with their right answers as the text that comes before every prompt."""
        chosen = random.Random(f"demonstrations {seed}").sample(range(len(records.rows)), count)
        shown = []
        for index in chosen:
            record = records.rows[index]
            question = self.task.question(record)
            shown.append((question.prompt + question.answers[self._right(records, index)[0]]).strip() + SEPARATOR)
        return "".join(shown)

    def encode(
        self, records: Records, known: bool, shown: str = "", calibrated: bool = False
    ) -> EncodedPrompts | EncodedAnswers:
        """Encodes the records of a split.

        Args:
            records: The records.
            known: Whether they say what is right; in prediction they need not.
            shown: What comes before every prompt.
            calibrated: Whether the answers are encoded after bare prompts too.

        Raises:
            UserError: If a record makes no prompt, or one that is too long, or has an answer that adds nothing.
        """
        right = [self._right(records, i) if known else () for i in range(len(records.rows))]
        rows = records.rows
        if self.masked:
            nothing = self._encode_masked(records, [self.task.bare(row) for row in rows], right) if calibrated else None
            return self._encode_masked(records, rows, right, nothing)
        asked = [self.task.question(row) for row in rows]
        encoded = self._continued(records, [replace(question, prompt=shown + question.prompt) for question in asked])
        bare: Encoded = []
        if calibrated:
            emptied = [self.task.question(self.task.bare(row)).prompt for row in rows]
            bare = self._continued(records, [replace(q, prompt=p) for q, p in zip(asked, emptied, strict=True)])
        if not self.task.written and _are_words([*encoded, *bare]):
            return self._of_words(encoded, right, self._of_words(bare, right) if bare else None)
        accepted = [self.task.accepted(row) if self.task.written and known else () for row in rows]
        return self._of_answers(encoded, right, accepted, self._of_answers(bare, right, accepted) if bare else None)

    def _continued(self, records: Records, questions: Sequence[Question]) -> Encoded:
        """Encodes prompts and the answers that go on with them, and checks both."""
        found: Encoded = []
        prompts = [question.prompt for question in questions]
        encoded = continued(self.tokenizer, prompts, [question.answers for question in questions])
        for index, (question, (prompt, answers)) in enumerate(zip(questions, encoded, strict=True)):
            if not answers:
                raise UserError(f"{records.name(index)} has no answers to choose from")
            if [] in answers:
                empty = question.answers[answers.index([])]
                raise UserError(f"{records.name(index)} has the answer {empty!r}, which adds no token to its prompt")
            found.append((self._fitting(records, index, prompt, self._reserved(answers)), answers))
        return found

    def _of_words(
        self, encoded: Encoded, right: Sequence[tuple[int, ...]], bare: EncodedPrompts | None = None
    ) -> EncodedPrompts:
        labels = torch.tensor([own[0] if own else -1 for own in right])
        words = torch.tensor([token for answer in encoded[0][1] for token in answer])
        return EncodedPrompts([torch.tensor(ids) for ids, _ in encoded], labels, words, self._pad_id, bare=bare)

    def _of_answers(
        self,
        encoded: Encoded,
        right: Sequence[tuple[int, ...]],
        accepted: Sequence[tuple[str, ...]],
        bare: EncodedAnswers | None = None,
    ) -> EncodedAnswers:
        answers = [[torch.tensor(answer) for answer in own] for _, own in encoded]
        return EncodedAnswers([torch.tensor(ids) for ids, _ in encoded], answers, right, accepted, self._pad_id, bare)

    def _encode_masked(
        self,
        records: Records,
        rows: Sequence[Record],
        right: Sequence[tuple[int, ...]],
        bare: EncodedPrompts | None = None,
    ) -> EncodedPrompts:
        mask, mask_id = str(self.tokenizer.mask_token), self.tokenizer.mask_token_id
        words = self.task.question(rows[0]).answers
        tokens = self._mask_words(words)
        prompts: list[Tensor] = []
        places = []
        encoded = self.tokenizer([self.task.masked_prompt(row, mask) for row in rows], verbose=False)
        for index, ids in enumerate(encoded["input_ids"]):
            if ids.count(mask_id) != 1:
                raise UserError(f"{records.name(index)} has {ids.count(mask_id)} masks in its prompt, not 1")
            fitting = self._fitting(records, index, ids, 0)
            if mask_id not in fitting:
                raise UserError(f"the mask of {records.name(index)} was cut off: raise --data.max_tokens")
            places.append(fitting.index(mask_id) - len(fitting))
            prompts.append(torch.tensor(fitting))
        labels = torch.tensor([own[0] if own else -1 for own in right])
        return EncodedPrompts(prompts, labels, torch.tensor(tokens), self._pad_id, torch.tensor(places), bare)

    def _mask_words(self, words: Sequence[str]) -> list[int]:
        """Returns the token of every label word where it stands for a mask, with a space before it."""
        tokens = []
        for word in words:
            ids = self.tokenizer(f" {word.strip()}", add_special_tokens=False)["input_ids"]
            if len(ids) != 1:
                raise UserError(
                    f"the label word {word!r} is {len(ids)} tokens of this masked model, which fills in one:"
                    " choose another in --data.task.label_words"
                )
            tokens += ids
        return tokens

    def _right(self, records: Records, index: int) -> tuple[int, ...]:
        try:
            return self.task.right(records.rows[index])
        except UserError as error:
            raise UserError(f"{records.name(index)} {error}") from None

    def _reserved(self, answers: Sequence[Sequence[int]]) -> int:
        """Returns how many tokens must have room after a prompt, beside the one that its last token predicts."""
        longest = max(len(answer) for answer in answers)
        return (max(longest, self.task.new_tokens) if self.task.written else longest) - 1

    def _fitting(self, records: Records, index: int, ids: list[int], reserved: int) -> list[int]:
        if not ids:
            raise UserError(f"{records.name(index)} makes an empty prompt")
        if self.limit is None or len(ids) + reserved <= self.limit:
            return ids
        if not self.cut:
            answer = f" and {reserved} more in its answer" if reserved else ""
            raise UserError(
                f"the prompt of {records.name(index)} has {len(ids)} tokens{answer}, more than the limit of"
                f" {self.limit}: shorten it, set --data.too_long cut, or raise --data.max_tokens if the model's context"
                " allows"
            )
        # What a tokenizer puts before a text stays; the rest goes from the left: the end is what asks.
        start = 1 if ids[0] in self.tokenizer.all_special_ids else 0
        room = self.limit - reserved - start
        if room < 1:
            raise UserError(
                f"the answer of {records.name(index)} alone is longer than the limit of {self.limit} tokens"
            )
        return ids[:start] + ids[start:][-room:]

    @property
    def _pad_id(self) -> int:
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return int(end if pad is None else pad)


def _are_words(encoded: Encoded) -> bool:
    """Tells whether all prompts have the same answers, each a token of its own."""
    first = encoded[0][1]
    tokens = [token for answer in first for token in answer]
    return len(set(tokens)) == len(tokens) == len(first) and all(own == first for _, own in encoded)
