"""Tokenizes the records of a split, and checks their prompts and answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from zolit.data.encoded import EncodedAnswers, EncodedPrompts
from zolit.data.records import Records
from zolit.data.tokenization import (
    LONGEST,
    TokenizedQuestions,
    are_single_tokens,
    check_answers,
    encode_continuations,
    end_of_long_text,
    tokenize,
    warn_of_long_answers,
)
from zolit.errors import UserError
from zolit.models.loading import context_of, is_masked_lm, load_config, load_tokenizer
from zolit.tasks.task import Question, Record, Task

T = TypeVar("T")

SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Encoder:
    """Tokenizes records of a task for one model.

    Args:
        task: The task.
        tokenizer: The model's tokenizer.
        masked: Whether the model is a masked language model rather than a causal one.
        limit: The longest prompt with its answer, in tokens; None for no limit.
        truncate: Whether the start of a prompt that is too long is removed; else such a prompt is refused.
        vocabulary: Number of tokens that the model knows; None if its configuration does not say.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    masked: bool
    limit: int | None
    truncate: bool
    vocabulary: int | None

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
        config = load_config(name_or_path, trust_remote_code)
        masked = is_masked_lm(config)
        if masked and (task.train_on_likelihood or has_demonstrations):
            raise UserError(
                f"{name_or_path} is a masked language model, which answers with one label word: use a task with label"
                " words and no --data.demonstrations, or a causal language model"
            )
        text_config = config.get_text_config()
        vocabulary = getattr(text_config, "vocab_size", None)
        context = context_of(config)
        if context is not None and context < 1:
            wrong = f"the config.json of {name_or_path} gives the model a context of {context} tokens"
            raise UserError(f"model.name_or_path: {wrong}")
        if max_tokens is not None and context is not None and max_tokens > context:
            raise UserError(f"--data.max_tokens {max_tokens} is more than the model's context of {context} tokens")
        return cls(task, tokenizer, masked, max_tokens or context, truncate, vocabulary)

    def demonstrations(self, records: Records, count: int, seed: int) -> str:
        """Returns ``count`` random records with their answers, as one text that precedes each prompt."""
        chosen = random.Random(f"demonstrations {seed}").sample(range(len(records.rows)), count)
        texts = []
        for index in chosen:
            name, row = records.name(index), records.rows[index]
            question = ask(name, self.task.question, row)
            answer = question.answers[ask(name, self.task.correct_answers, row)[0]]
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
            UserError: If a record holds no text, a prompt is empty or too long, an answer adds no token, or the model
                lacks a token.
        """
        rows = records.rows
        named = [(records.name(index), row) for index, row in enumerate(rows)]
        correct = [ask(name, self.task.correct_answers, row) if labelled else () for name, row in named]
        if self.masked:
            blank = [self.task.content_free(row) for row in rows] if calibrated else []
            masked_baseline = self._encode_masked(records, blank, correct) if calibrated else None
            return self._encode_masked(records, rows, correct, masked_baseline)
        questions = [ask(name, self.task.question, row) for name, row in named]
        whole = [replace(question, prompt=demonstrations + question.prompt) for question in questions]
        tokenized = self._tokenize(records, whole, labelled or not self.task.generates)
        baseline: TokenizedQuestions = []
        if calibrated:
            prompts = [self.task.question(self.task.content_free(row)).prompt for row in rows]
            baseline = self._tokenize(records, [replace(q, prompt=p) for q, p in zip(questions, prompts, strict=True)])
        if not self.task.generates and are_single_tokens([*tokenized, *baseline]):
            return self._as_prompts(tokenized, correct, self._as_prompts(baseline, correct) if baseline else None)
        scored = self.task.generates and labelled
        if scored:
            warn_of_long_answers(records.source, [own[0] for _, own in tokenized], self.task.max_new_tokens)
        references = [ask(name, self.task.references, row) if scored else () for name, row in named]
        content_free = self._as_answers(baseline, correct, references) if baseline else None
        return self._as_answers(tokenized, correct, references, content_free)

    def _tokenize(self, records: Records, questions: Sequence[Question], compared: bool = True) -> TokenizedQuestions:
        """Tokenizes and checks the prompts, and the answers that continue them if these are compared or trained on."""
        tokenized: TokenizedQuestions = []
        prompts = [self._shorten(records, i, question.prompt) for i, question in enumerate(questions)]
        for index, question in enumerate(questions):
            for answer in question.answers:
                if len(end_of_long_text(self.tokenizer, answer, self.limit)) < len(answer):
                    raise UserError(f"{records.name(index)} has an answer of {len(answer)} characters: shorten it")
        encoded = encode_continuations(self.tokenizer, prompts, [own.answers for own in questions])
        for index, (question, (prompt, answers)) in enumerate(zip(questions, encoded, strict=True)):
            if not answers:
                raise UserError(f"{records.name(index)} has no answers to choose from")
            if [] in answers:
                empty = question.answers[answers.index([])]
                raise UserError(f"{records.name(index)} has the answer {empty!r}, which adds no token to its prompt")
            self.check_tokens(records, index, prompt, *answers)
            if compared:
                check_answers(self.tokenizer, records.name(index), question.answers, answers)
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
        return EncodedPrompts(prompts, labels, words, self.pad_id, content_free=content_free)

    def _as_answers(
        self,
        tokenized: TokenizedQuestions,
        correct: Sequence[tuple[int, ...]],
        references: Sequence[tuple[str, ...]],
        content_free: EncodedAnswers | None = None,
    ) -> EncodedAnswers:
        prompts = [torch.tensor(ids) for ids, _ in tokenized]
        answers = [[torch.tensor(answer) for answer in own] for _, own in tokenized]
        return EncodedAnswers(prompts, answers, correct, references, self.pad_id, content_free)

    def _encode_masked(
        self,
        records: Records,
        rows: Sequence[Record],
        correct: Sequence[tuple[int, ...]],
        content_free: EncodedPrompts | None = None,
    ) -> EncodedPrompts:
        mask, mask_id = str(self.tokenizer.mask_token), self.tokenizer.mask_token_id
        words = ask(records.name(0), self.task.question, rows[0]).answers
        tokens = self._mask_tokens(words)
        prompts: list[Tensor] = []
        positions = []
        texts = [ask(records.name(i), self.task.masked_prompt, row, mask) for i, row in enumerate(rows)]
        shortened = [self._shorten(records, i, text) for i, text in enumerate(texts)]
        for index, ids in enumerate(tokenize(self.tokenizer, shortened)["input_ids"]):
            self.check_tokens(records, index, ids, tokens)
            if ids.count(mask_id) != 1 and len(shortened[index]) == len(texts[index]):
                raise UserError(f"{records.name(index)} has {ids.count(mask_id)} masks in its prompt, not 1")
            kept = self._fit_to_limit(records, index, ids, 0)
            if mask_id not in kept:
                raise UserError(f"the mask of {records.name(index)} was cut off: raise --data.max_tokens")
            positions.append(kept.index(mask_id) - len(kept))
            prompts.append(torch.tensor(kept))
        labels = torch.tensor([own[0] if own else -1 for own in correct])
        return EncodedPrompts(prompts, labels, torch.tensor(tokens), self.pad_id, torch.tensor(positions), content_free)

    def _mask_tokens(self, words: Sequence[str]) -> list[int]:
        """Returns the token of each label word in place of a mask, with a space before it."""
        tokens = []
        for word in words:
            ids = tokenize(self.tokenizer, f" {word.strip()}", add_special_tokens=False)["input_ids"]
            if len(ids) != 1:
                raise UserError(
                    f"the label word {word!r} is {len(ids)} tokens of this masked model, which fills in one:"
                    " choose another word in --data.task.label_words"
                )
            tokens += ids
        check_answers(self.tokenizer, "--data.task.label_words", words, [[token] for token in tokens])
        return tokens

    def _shorten(self, records: Records, index: int, prompt: str) -> str:
        """Returns a prompt without the start of a text that is far too long to be tokenized; see ``_fit_to_limit``."""
        end = end_of_long_text(self.tokenizer, prompt, self.limit)
        if len(end) < len(prompt) and not self.truncate:
            most = f"{LONGEST} characters" if self.limit is None else f"the limit of {self.limit} tokens"
            raise UserError(
                f"the prompt of {records.name(index)} has {len(prompt)} characters, more than {most}: shorten it, or"
                " set --data.too_long cut"
            )
        return end

    def check_tokens(self, records: Records, index: int, *texts: Sequence[int]) -> None:
        """Refuses tokens that the model has no embedding for."""
        number = max((max(ids) for ids in texts if ids), default=0)
        if not self._is_known(number):
            token = self.tokenizer.convert_ids_to_tokens(number)
            raise UserError(
                f"{records.name(index)} has the token {token!r} with the number {number}, but the model of"
                f" {self.tokenizer.name_or_path} has only {self.vocabulary} tokens: use the tokenizer of the model"
            )

    def _is_known(self, token: int) -> bool:
        return self.vocabulary is None or token < self.vocabulary

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
        # What the tokenizer puts before a text stays, such as GLM's two tokens. The end holds the question.
        before = tokenize(self.tokenizer, "")["input_ids"]
        start = next((n for n in range(min(len(before), len(ids)), 0, -1) if ids[:n] == before[:n]), 0)
        room = self.limit - reserved - start
        if room < 1:
            raise UserError(f"the answer of {records.name(index)} alone exceeds the limit of {self.limit} tokens")
        return ids[:start] + ids[start:][-room:]

    @property
    def pad_id(self) -> int:
        """The token id of padding. Masks hide it, and an added [PAD] often lies just beyond the model's vocabulary."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return int(next((token for token in known if token is not None and self._is_known(token)), 0))


def ask(name: str, question: Callable[..., T], *about: Any) -> T:
    """Asks a task about a record; an error then begins with the record's name."""
    try:
        return question(*about)
    except UserError as error:
        raise UserError(f"{name} {error}") from None
