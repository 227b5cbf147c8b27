"""What a language model is asked: the logits of a word, how likely answers are, and what it would write itself."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zolit.pretrained import fills_masks
from zolit.tasks import AnswerBatch, PromptBatch
from zolit.tuning import Tuning


class LanguageModel:
    """A causal or masked language model of transformers, with whatever a tuning adds to it.

    Args:
        loaded: The model as it was loaded.
        tuning: Which of its weights are tuned.
        caches: Whether keys and values may be kept from one forward to the next.

    Attributes:
        model: The model with what the tuning adds.
    """

    def __init__(self, loaded: PreTrainedModel, tuning: Tuning, caches: bool = True) -> None:
        self._masked = fills_masks(loaded.config)
        options = inspect.signature(loaded.forward).parameters
        self._takes_positions = "position_ids" in options and not self._masked
        self._cache = "cache" if "cache" in options else "past_key_values"  # renamed within transformers 5
        self._caches = caches
        self._prefix = tuning.prefix
        head: nn.Module = loaded.get_output_embeddings()  # type: ignore[no-untyped-call]  # untyped there
        head.register_forward_pre_hook(_in_a_row)
        self.model: nn.Module = tuning.prepare(loaded)

    def word_logits(self, batch: PromptBatch) -> Tensor:
        """Returns the logits of the token after each prompt, or in place of its mask, shape (batch, vocabulary)."""
        logits: Tensor
        if self._masked:
            logits = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            return logits[torch.arange(len(logits), device=logits.device), batch.answers_at]
        logits = self._logits(batch.input_ids, batch.attention_mask, 1)
        return logits[:, -1]

    def answer_scores(self, batch: AnswerBatch, share_prompts: bool = False) -> Tensor:
        """Returns the mean log-likelihood of each answer's tokens after its prompt, shape (answers,), float32.

        Logits, in the vocabulary's width, are formed for the answers alone.

        Args:
            batch: Prompts and answers.
            share_prompts: Whether the keys and values of a prompt are computed once for all of its answers, rather
                than with each of them, which saves forwards and gives the same numbers to rounding.
        """
        whole = torch.cat([batch.prompt_mask[batch.owners], batch.answer_mask], dim=1)
        length = batch.answer_ids.shape[1]
        if share_prompts and self._caches and not self._prefix and len(batch.owners) > len(batch.labels):
            logits = self._after_shared_prompts(batch, whole)
        else:
            ids = torch.cat([batch.prompt_ids[batch.owners], batch.answer_ids], dim=1)
            logits = self._logits(ids, whole, length + 1)[:, :-1]
        losses = functional.cross_entropy(logits.flatten(0, 1).float(), batch.answer_ids.flatten(), reduction="none")
        kept = batch.answer_mask
        return -(losses.view_as(kept) * kept).sum(1) / kept.sum(1)

    def write(self, batch: AnswerBatch, tokenizer: PreTrainedTokenizerBase, new_tokens: int) -> list[str]:
        """Returns what the model writes after each prompt: greedily, to the end of the line.

        Args:
            batch: The prompts; their answers are not looked at.
            tokenizer: The model's.
            new_tokens: How many tokens an answer may have.
        """
        model: Any = self.model
        ids, mask = batch.prompt_ids, batch.prompt_mask
        options: dict[str, Any] = {}
        if self._prefix:
            # peft's own way leads past the cache's new name; tokens that the cache has already are passed over.
            mask, options = self._after_prefix(mask)
            ids = torch.cat([ids.new_zeros(len(ids), self._prefix), ids], dim=1)
            model = model.get_base_model()
        end = tokenizer.eos_token_id
        written = model.generate(
            input_ids=ids,
            attention_mask=mask,
            **options,
            use_cache=self._caches,
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=[token for token in (end, _newline(tokenizer)) if token is not None],
            pad_token_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )
        texts = tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)
        return [text.strip().split("\n")[0].strip() for text in texts]

    def _logits(self, ids: Tensor, mask: Tensor, kept: int) -> Tensor:
        logits: Tensor = self._called(ids, mask, _positions(mask), use_cache=False, logits_to_keep=kept).logits
        return logits[:, -kept:]

    def _called(self, ids: Tensor, mask: Tensor, positions: Tensor, **options: Any) -> Any:
        """Calls the model, and tells it where tokens stand if it can be told."""
        model: Any = self.model
        if self._prefix:
            # peft would count positions from the padding on; so its prefix is handed over here, as it would do it.
            mask, cached = self._after_prefix(mask)
            options, positions, model = {**options, **cached}, positions + self._prefix, model.get_base_model()
        if self._takes_positions:
            options["position_ids"] = positions
        return model(input_ids=ids, attention_mask=mask, **options)

    def _after_prefix(self, mask: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Returns a mask with the prefix before it, and the option with the prefix's keys and values."""
        model: Any = self.model
        prefix = mask.new_ones(len(mask), self._prefix)
        return torch.cat([prefix, mask], dim=1), {self._cache: model.get_prompt(batch_size=len(mask))}

    def _after_shared_prompts(self, batch: AnswerBatch, whole: Tensor) -> Tensor:
        places = _positions(batch.prompt_mask)
        prompt = self._called(batch.prompt_ids, batch.prompt_mask, places, use_cache=True, logits_to_keep=1)
        first: Tensor = prompt.logits[:, -1:][batch.owners]
        length = batch.answer_ids.shape[1]
        if length == 1:
            return first
        cache = prompt[self._cache]
        cache.batch_select_indices(batch.owners)
        places = _positions(whole)[:, -length:-1]
        rest = self._called(batch.answer_ids[:, :-1], whole[:, :-1], places, **{self._cache: cache})
        return torch.cat([first, rest.logits], dim=1)


def _in_a_row(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Has rows lie beside one another: for a part of them torch would copy a frozen matrix, once for every example."""
    return (inputs[0].contiguous(),)


def _positions(mask: Tensor) -> Tensor:
    """Returns the place of every token in its own text, wherever the padding is; shape and type of ``mask``."""
    return (mask.cumsum(1) - 1).clamp_(min=0)


def _newline(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Returns the token of a line's end after a word; None where it is not one of its own."""
    word, line = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", "a\n"))
    return int(line[-1]) if len(line) == len(word) + 1 and line[:-1] == word else None
