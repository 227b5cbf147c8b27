"""Evaluates a language model: logits of a word, likelihoods of answers and texts, and generated answers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from zolit.errors import require
from zolit.models.batches import AnswerBatch, PromptBatch, TextBatch
from zolit.models.loading import is_masked_lm
from zolit.models.logit_pieces import LogitPieces
from zolit.models.tuning import Tuning


class LanguageModel:
    """A causal or masked language model of transformers, with the weights that a tuning adds.

    Args:
        loaded: The loaded model.
        tuning: Which of its weights are trained.
        use_cache: Whether keys and values may be reused from one forward to the next.

    Attributes:
        model: The model with the weights that the tuning adds.
        keeps_logits_whole: Whether the losses of texts come from one call of the head for each call of the model. A
            method needs this if it looks at all activations of an example that meet a weight.
    """

    def __init__(self, loaded: PreTrainedModel, tuning: Tuning, use_cache: bool = True) -> None:
        self._masked = is_masked_lm(loaded.config)
        options = inspect.signature(loaded.forward).parameters
        takes_all = any(option.kind is option.VAR_KEYWORD for option in options.values())
        self._options = None if takes_all else frozenset(options)
        self._accepts_positions = "position_ids" in options and not self._masked
        self._cache_option = "cache" if "cache" in options else "past_key_values"  # renamed within transformers 5
        self._use_cache = use_cache
        self._shares_prompts = use_cache and self._accepts("use_cache") and self._accepts(self._cache_option)
        self._positions = _positions(loaded) if self._masked else None
        if hasattr(loaded, "generation_config"):
            # A folder may ask for beams, sampling or penalties; answers are generated greedily.
            loaded.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]  # untyped there
        self._num_prefix_tokens = tuning.num_prefix_tokens
        head: nn.Module | None = loaded.get_output_embeddings()  # type: ignore[no-untyped-call]  # untyped there
        if head is not None:  # a class of its own may not say which module is its head
            head.register_forward_pre_hook(_make_contiguous)
        self.keeps_logits_whole = False
        self._pieces = LogitPieces(loaded)
        self.model: nn.Module = tuning.apply(loaded)

    def word_logits(self, batch: PromptBatch) -> Tensor:
        """Returns the logits of the token after each prompt, or at its mask, shape (batch, vocabulary)."""
        logits: Tensor
        if self._masked:
            # Many encoders count positions from the start of the row, so the padding goes to its end.
            ids, mask = _padded_right(batch.input_ids, batch.attention_mask)
            require(
                self._positions is None or ids.shape[1] <= self._positions,
                f"model.name_or_path: a record has {ids.shape[1]} tokens, and the model has {self._positions} "
                f"positions; set data.max_tokens {self._positions}",
            )
            logits = self._call(input_ids=ids, attention_mask=mask).logits
            return logits[torch.arange(len(logits), device=logits.device), self.answer_columns(batch)]
        logits = self._last_logits(batch.input_ids, batch.attention_mask, 1)
        return logits[:, -1]

    def answer_columns(self, batch: PromptBatch) -> Tensor:
        """Returns the position in the input of the output head that predicts each answer, shape (batch,), int64.

        It is the last one for causal models. For masked models, it is counted from the start of the text, since
        ``word_logits`` pads at the end.
        """
        return batch.attention_mask.sum(1) + batch.answer_position if self._masked else batch.answer_position

    def answer_scores(self, batch: AnswerBatch, share_prompts: bool = False) -> Tensor:
        """Returns the mean log-likelihood of each answer's tokens after its prompt, shape (answers,), float32.

        Logits have the vocabulary's width, so they are computed for the answers' tokens alone.

        Args:
            batch: Prompts and answers.
            share_prompts: Whether a prompt's keys and values are computed once for all of its answers, rather than once
                for each. Sharing saves computation and gives the same scores up to rounding.
        """
        mask = torch.cat([batch.prompt_mask[batch.prompt_index], batch.answer_mask], dim=1)
        length = batch.answer_ids.shape[1]
        several = len(batch.prompt_index) > len(batch.labels)
        logits: Tensor | None = None
        if share_prompts and self._shares_prompts and not self._num_prefix_tokens and several:
            logits = self._logits_with_shared_prompts(batch, mask)
        if logits is None:
            ids = torch.cat([batch.prompt_ids[batch.prompt_index], batch.answer_ids], dim=1)
            logits = self._last_logits(ids, mask, length + 1)[:, :-1]
        losses = functional.cross_entropy(logits.flatten(0, 1).float(), batch.answer_ids.flatten(), reduction="none")
        kept = batch.answer_mask
        return -(losses.view_as(kept) * kept).sum(1) / kept.sum(1)

    def text_losses(self, batch: TextBatch) -> Tensor:
        """Returns minus the mean log-likelihood of the tokens of each text but its first, shape (batch,), float32."""
        inputs, whole = self._text_inputs(batch)
        ids, kept = batch.input_ids[:, 1:], batch.attention_mask[:, 1:].bool()
        width = ids.shape[1] if self.keeps_logits_whole else None
        losses = self._pieces.token_losses(whole, inputs, ids, width)
        return losses.masked_fill(~kept, 0.0).sum(1) / kept.sum(1)

    def prepare_texts(self, batch: TextBatch) -> None:
        """Finds out, once, whether the logits of texts can be computed in pieces. Called outside of a step.

        Args:
            batch: The first batch. Eight tokens of it are tried.
        """
        if not self._pieces.is_checked:
            ids = batch.input_ids[:1].repeat(1, 8)[:, :8]
            inputs, whole = self._text_inputs(TextBatch(ids, torch.ones_like(ids), batch.indices[:1]))
            self._pieces.check(whole, inputs, ids[:, 1:])

    def _text_inputs(self, batch: TextBatch) -> tuple[dict[str, Tensor], Callable[[], Tensor]]:
        """Returns the arguments that predict the tokens of texts, and a function that calls the model with them."""
        # The last token of a text predicts nothing. Like padding, it is hidden from what looks at activations.
        ids, mask = batch.input_ids[:, :-1], batch.attention_mask[:, 1:]
        positions = _position_ids(mask)
        given = {"input_ids": ids, "attention_mask": mask}
        if self._accepts_positions:
            given["position_ids"] = positions

        def whole() -> Tensor:
            logits: Tensor = self._forward(ids, mask, positions, use_cache=False).logits
            return logits

        return {name: tensor for name, tensor in given.items() if self._accepts(name)}, whole

    def generate(self, batch: AnswerBatch, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> list[str]:
        """Generates an answer after each prompt: greedily, up to the end of the line.

        Args:
            batch: The prompts; the answers of the batch are not read.
            tokenizer: The model's tokenizer.
            max_new_tokens: The longest answer, in tokens.

        Returns:
            One answer for each prompt, stripped.
        """
        model: Any = self.model
        require(
            hasattr(model, "generate"), "model.name_or_path: this model cannot write answers (it has no `generate`)"
        )
        ids, mask = batch.prompt_ids, batch.prompt_mask
        options: dict[str, Any] = {}
        if self._num_prefix_tokens:
            # peft's own generate does not know the new name of the cache's option. Tokens that the cache holds already
            # are skipped, so zeros take the place of the prefix.
            mask, options = self._prepend_prefix(mask)
            ids = torch.cat([ids.new_zeros(len(ids), self._num_prefix_tokens), ids], dim=1)
            model = model.get_base_model()
        end = tokenizer.eos_token_id
        padding = next((token for token in (tokenizer.pad_token_id, end) if token is not None), 0)  # is cut off again
        generated = model.generate(
            input_ids=ids,
            attention_mask=mask,
            **options,
            use_cache=self._use_cache,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=[token for token in (end, _newline_token(tokenizer)) if token is not None] or None,
            pad_token_id=padding,
        )
        texts = tokenizer.batch_decode(generated[:, ids.shape[1] :], skip_special_tokens=True)
        return [text.strip().split("\n")[0].strip() for text in texts]

    def _last_logits(self, ids: Tensor, mask: Tensor, kept: int) -> Tensor:
        """Returns the logits of the last ``kept`` positions, shape (rows, kept, vocabulary)."""
        logits: Tensor = self._forward(ids, mask, _position_ids(mask), use_cache=False, logits_to_keep=kept).logits
        return logits[:, -kept:]

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, **options: Any) -> Any:
        """Calls the model, with the tokens' positions if it accepts them."""
        base: Any = self.model
        if self._num_prefix_tokens:
            # peft would count positions from the start of the padding, so the prefix is passed here, as peft passes it.
            mask, cached = self._prepend_prefix(mask)
            options, positions = {**options, **cached}, positions + self._num_prefix_tokens
            base = base.get_base_model()
        if self._accepts_positions:
            options["position_ids"] = positions
        return self._call(base, input_ids=ids, attention_mask=mask, **options)

    def _call(self, model: Any = None, **options: Any) -> Any:
        """Calls a model with the options that it has; the check of rows finds out where a mask was needed."""
        accepted = {name: value for name, value in options.items() if self._accepts(name)}
        return (self.model if model is None else model)(**accepted)

    def _accepts(self, option: str) -> bool:
        return self._options is None or option in self._options

    def _prepend_prefix(self, mask: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Returns the mask with the prefix before it, and the option that passes the prefix's keys and values."""
        model: Any = self.model
        prefix = mask.new_ones(len(mask), self._num_prefix_tokens)
        return torch.cat([prefix, mask], dim=1), {self._cache_option: model.get_prompt(batch_size=len(mask))}

    def _logits_with_shared_prompts(self, batch: AnswerBatch, mask: Tensor) -> Tensor | None:
        """Returns the logits that predict the answers' tokens, from one forward of the prompts and one of the answers.

        Returns None, from then on without a forward, if the model keeps another state than keys and values.

        Args:
            batch: Prompts and answers.
            mask: Mask of each prompt followed by its answer, shape (answers, prompt tokens + answer tokens).
        """
        positions = _position_ids(batch.prompt_mask)
        prompt = self._forward(batch.prompt_ids, batch.prompt_mask, positions, use_cache=True, logits_to_keep=1)
        first: Tensor = prompt.logits[:, -1:][batch.prompt_index]
        length = batch.answer_ids.shape[1]
        if length == 1:
            return first
        cache = prompt.get(self._cache_option)
        if not _is_plain(cache):
            self._shares_prompts = False
            return None
        cache.batch_select_indices(batch.prompt_index)
        positions = _position_ids(mask)[:, -length:-1]
        rest = self._forward(batch.answer_ids[:, :-1], mask[:, :-1], positions, **{self._cache_option: cache})
        return torch.cat([first, rest.logits], dim=1)


def _positions(model: nn.Module) -> int | None:
    """Returns the number of tokens for which a model has learned positions; None if it has no table of positions.

    In RoBERTa and its relatives, positions begin after the one of padding.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def _is_plain(cache: Any) -> bool:
    """Returns whether a cache holds the keys and values of attention alone, so that rows of it can be selected.

    Hybrid models keep the states of recurrent layers or convolutions too.
    """
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in getattr(cache, "layers", [None]))


def _padded_right(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Moves the padding of each row from its start to its end; shapes (rows, tokens)."""
    width = mask.shape[1]
    columns = torch.arange(width, device=mask.device) + (width - mask.sum(1, keepdim=True))
    columns %= width
    return ids.gather(1, columns), mask.gather(1, columns)


def _make_contiguous(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Makes the head's input contiguous: for a strided 3-d input, torch.matmul would copy the weight per example."""
    return (inputs[0].contiguous(),)


def _position_ids(mask: Tensor) -> Tensor:
    """Returns the position of each token in its text, without counting padding; shape and type of ``mask``."""
    return (mask.cumsum(1) - 1).clamp_(min=0)


def _newline_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Returns the token of a line break after a word; None if the break is not a token by itself."""
    word, line = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", "a\n"))
    return int(line[-1]) if len(line) == len(word) + 1 and line[:-1] == word else None
