"""Tokenizes the records of a split, and checks their prompts and answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase

from zolit.data.encoded import EncodedAnswers, EncodedPrompts
from zolit.data.records import Records
from zolit.data.tokenization import encode_continuations
from zolit.errors import UserError
from zolit.models.loading import is_masked_lm, load_tokenizer
from zolit.tasks.task import Question, Record, Task

SEPARATOR = "\n\n"
TokenizedQuestions = list[tuple[list[int], list[list[int]]]]
"""For each question, the token ids of the prompt and those of each answer."""


@dataclass(frozen=True)
class Encoder:
    """Tokenizes records of a task for one model.

    Args:
        task: The task.
        tokenizer: The model's tokenizer.
        masked: Whether the model is a masked language model rather than a causal one.
        limit: The longest prompt with its answer, in tokens; None for no limit.
        truncate: Whether the start of a prompt that is too long is removed; else such a prompt is refused.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    masked: bool
    limit: int | None
    truncate: bool

    @classmethod
    def for_model(
        cls,
        task: Task,
        name_or_path: str,
        trust_remote_code: bool,
        *,
        max_tokens: int | None,
        truncate: bool,
        has_demonstrations: bool,
    ) -> Encoder:
        """Creates the encoder for a model.

        Args:
            task: The task.
            name_or_path: Folder or hub id of the model.
            trust_remote_code: Run code that comes with the model.
            max_tokens: The longest prompt with its answer, in tokens; None for the model's context.
            truncate: Whether prompts that are too long are truncated.
            has_demonstrations: Whether answered examples precede each prompt.

        Raises:
            UserError: If the model cannot be read, has a shorter context, or cannot answer the task's questions.
        """
        tokenizer = load_tokenizer(name_or_path, trust_remote_code)
        try:
            config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"cannot read the configuration of {name_or_path}: {reason}") from error
        masked = is_masked_lm(config)
        if masked and (task.train_on_likelihood or has_demonstrations):
            raise UserError(
                f"{name_or_path} is a masked language model, which answers with one label word: use a task with label"
                " words and no --data.demonstrations, or a causal language model"
            )
        context = getattr(config.get_text_config(), "max_position_embeddings", None)
        if context is not None and config.model_type == "roberta":
            context -= 1 + (config.pad_token_id or 0)  # RoBERTa's positions start after the padding token's id
        if max_tokens is not None and context is not None and max_tokens > context:
            raise UserError(f"--data.max_tokens {max_tokens} is more than the model's context of {context} tokens")
        return cls(task, tokenizer, masked, max_tokens or context, truncate)

    def demonstrations(self, records: Records, count: int, seed: int) -> str:
        """Returns ``count`` random records with their answers, as one text that precedes each prompt."""
        chosen = random.Random(f"demonstrations {seed}").sample(range(len(records.rows)), count)
        texts = []
        for index in chosen:
            question = self.task.question(records.rows[index])
            answer = question.answers[self._correct_answers(records, index)[0]]
            texts.append((question.prompt + answer).strip() + SEPARATOR)
        return "".join(texts)

    def encode(
        self, records: Records, labelled: bool, demonstrations: str = "", calibrated: bool = False
    ) -> EncodedPrompts | EncodedAnswers:
        """Tokenizes the records of a split.

        Args:
            records: The records.
            labelled: Whether the records have correct answers; in prediction they need none.
            demonstrations: Text that precedes each prompt.
            calibrated: Whether the answers are also encoded after content-free prompts.

        Raises:
            UserError: If a prompt is empty or too long, or an answer adds no token.
        """
        correct = [self._correct_answers(records, i) if labelled else () for i in range(len(records.rows))]
        rows = records.rows
        if self.masked:
            blank = [self.task.content_free(row) for row in rows] if calibrated else []
            masked_baseline = self._encode_masked(records, blank, correct) if calibrated else None
            return self._encode_masked(records, rows, correct, masked_baseline)
        questions = [self.task.question(row) for row in rows]
        whole = [replace(question, prompt=demonstrations + question.prompt) for question in questions]
        tokenized = self._tokenize(records, whole)
        baseline: TokenizedQuestions = []
        if calibrated:
            prompts = [self.task.question(self.task.content_free(row)).prompt for row in rows]
            baseline = self._tokenize(records, [replace(q, prompt=p) for q, p in zip(questions, prompts, strict=True)])
        if not self.task.generates and _are_single_tokens([*tokenized, *baseline]):
            return self._as_prompts(tokenized, correct, self._as_prompts(baseline, correct) if baseline else None)
        references = [self.task.references(row) if self.task.generates and labelled else () for row in rows]
        content_free = self._as_answers(baseline, correct, references) if baseline else None
        return self._as_answers(tokenized, correct, references, content_free)

    def _tokenize(self, records: Records, questions: Sequence[Question]) -> TokenizedQuestions:
        """Tokenizes and checks the prompts and the answers that continue them."""
        tokenized: TokenizedQuestions = []
        prompts = [question.prompt for question in questions]
        encoded = encode_continuations(self.tokenizer, prompts, [question.answers for question in questions])
        for index, (question, (prompt, answers)) in enumerate(zip(questions, encoded, strict=True)):
            if not answers:
                raise UserError(f"{records.name(index)} has no answers to choose from")
            if [] in answers:
                empty = question.answers[answers.index([])]
                raise UserError(f"{records.name(index)} has the answer {empty!r}, which adds no token to its prompt")
            tokenized.append((self._fit_to_limit(records, index, prompt, self._answer_room(answers)), answers))
        return tokenized

    def _as_prompts(
        self,
        tokenized: TokenizedQuestions,
        correct: Sequence[tuple[int, ...]],
        content_free: EncodedPrompts | None = None,
    ) -> EncodedPrompts:
        labels = torch.tensor([own[0] if own else -1 for own in correct])
        words = torch.tensor([token for answer in tokenized[0][1] for token in answer])
        prompts = [torch.tensor(ids) for ids, _ in tokenized]
        return EncodedPrompts(prompts, labels, words, self._pad_id, content_free=content_free)

    def _as_answers(
        self,
        tokenized: TokenizedQuestions,
        correct: Sequence[tuple[int, ...]],
        references: Sequence[tuple[str, ...]],
        content_free: EncodedAnswers | None = None,
    ) -> EncodedAnswers:
        prompts = [torch.tensor(ids) for ids, _ in tokenized]
        answers = [[torch.tensor(answer) for answer in own] for _, own in tokenized]
        return EncodedAnswers(prompts, answers, correct, references, self._pad_id, content_free)

    def _encode_masked(
        self,
        records: Records,
        rows: Sequence[Record],
        correct: Sequence[tuple[int, ...]],
        content_free: EncodedPrompts | None = None,
    ) -> EncodedPrompts:
        mask, mask_id = str(self.tokenizer.mask_token), self.tokenizer.mask_token_id
        words = self.task.question(rows[0]).answers
        tokens = self._mask_tokens(words)
        prompts: list[Tensor] = []
        positions = []
        encoded = self.tokenizer([self.task.masked_prompt(row, mask) for row in rows], verbose=False)
        for index, ids in enumerate(encoded["input_ids"]):
            if ids.count(mask_id) != 1:
                raise UserError(f"{records.name(index)} has {ids.count(mask_id)} masks in its prompt, not 1")
            kept = self._fit_to_limit(records, index, ids, 0)
            if mask_id not in kept:
                raise UserError(f"the mask of {records.name(index)} was cut off: raise --data.max_tokens")
            positions.append(kept.index(mask_id) - len(kept))
            prompts.append(torch.tensor(kept))
        labels = torch.tensor([own[0] if own else -1 for own in correct])
        return EncodedPrompts(
            prompts, labels, torch.tensor(tokens), self._pad_id, torch.tensor(positions), content_free
        )

    def _mask_tokens(self, words: Sequence[str]) -> list[int]:
        """Returns the token of each label word in place of a mask, with a space before it."""
        tokens = []
        for word in words:
            ids = self.tokenizer(f" {word.strip()}", add_special_tokens=False)["input_ids"]
            if len(ids) != 1:
                raise UserError(
                    f"the label word {word!r} is {len(ids)} tokens of this masked model, which fills in one:"
                    " choose another word in --data.task.label_words"
                )
            tokens += ids
        return tokens

    def _correct_answers(self, records: Records, index: int) -> tuple[int, ...]:
        try:
            return self.task.correct_answers(records.rows[index])
        except UserError as error:
            raise UserError(f"{records.name(index)} {error}") from None

    def _answer_room(self, answers: Sequence[Sequence[int]]) -> int:
        """Returns how many tokens must fit after the prompt; the prompt's last token predicts the answer's first."""
        longest = max(len(answer) for answer in answers)
        return (max(longest, self.task.max_new_tokens) if self.task.generates else longest) - 1

    def _fit_to_limit(self, records: Records, index: int, ids: list[int], reserved: int) -> list[int]:
        """Returns a prompt's tokens, truncated at the start if ``truncate`` is set and they are too many.

        Args:
            records: The records, for error messages.
            index: The prompt's record.
            ids: Token ids of the prompt.
            reserved: Tokens that must fit after the prompt.
        """
        if not ids:
            raise UserError(f"{records.name(index)} has an empty prompt")
        if self.limit is None or len(ids) + reserved <= self.limit:
            return ids
        if not self.truncate:
            answer = f" and {reserved} more in its answer" if reserved else ""
            raise UserError(
                f"the prompt of {records.name(index)} has {len(ids)} tokens{answer}, more than the limit of"
                f" {self.limit}: shorten it, set --data.too_long cut, or raise --data.max_tokens if the model's context"
                " allows"
            )
        # The first special token stays. Other tokens are removed from the start, because the end holds the question.
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


def _are_single_tokens(tokenized: TokenizedQuestions) -> bool:
    """Returns whether all prompts have the same answers, and each answer is a different single token."""
    first = tokenized[0][1]
    tokens = [token for answer in first for token in answer]
    return len(set(tokens)) == len(tokens) == len(first) and all(own == first for _, own in tokenized)
