"""Tokenizes texts whose likelihood is trained: one example for each text, or blocks of equal length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from zolit.data.encoding import Encoder, ask
from zolit.data.records import Records
from zolit.data.tokenization import LONGEST, start_of_long_text, tokenize
from zolit.errors import UserError, require
from zolit.models.batches import TextBatch
from zolit.tasks.text import Text


class EncodedTexts(Dataset[TextBatch]):
    """Tokenized texts. A list of the indices of examples returns these examples as one batch.

    Args:
        texts: Token ids of each text or block, each of shape (tokens,), int64, of two tokens or more.
        pad_id: Token id of padding, which the attention mask hides.
    """

    def __init__(self, texts: Sequence[Tensor], pad_id: int) -> None:
        self.texts = texts
        self.pad_id = pad_id
        self.lengths = [len(text) for text in texts]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, indices: list[int]) -> TextBatch:
        """Returns the examples with these indices as one batch, as wide as its longest text."""
        texts = [self.texts[i] for i in indices]
        return TextBatch(
            pad_sequence(texts, batch_first=True, padding_value=self.pad_id),
            pad_sequence([torch.ones_like(text) for text in texts], batch_first=True),
            torch.tensor(indices),
        )


def encode_texts(encoder: Encoder, task: Text, records: Records, packed: bool) -> EncodedTexts:
    """Tokenizes the texts of a split, with the special tokens that the tokenizer adds.

    Args:
        encoder: The encoder of the model. If it truncates, the start of a text that is too long is kept.
        task: The task.
        records: The records.
        packed: Whether the texts are joined and cut into blocks. The last block may be shorter.

    Raises:
        UserError: If a record holds no text, a text has one token or is too long, or the model lacks a token.
    """
    limit = encoder.limit
    require(
        limit is None or limit > 1,
        f"--data.max_tokens must be at least 2, not {limit}: the first token of a text is not predicted",
    )
    whole = [ask(records.name(index), task.text, row) for index, row in enumerate(records.rows)]
    texts = whole if packed else [start_of_long_text(encoder.tokenizer, text, limit) for text in whole]
    tokens: list[list[int]] = tokenize(encoder.tokenizer, texts)["input_ids"]
    for index, ids in enumerate(tokens):
        encoder.check_tokens(records, index, ids)
    if packed:
        return EncodedTexts(_blocks(encoder, tokens), encoder.pad_id)
    for index, (ids, text, start) in enumerate(zip(tokens, whole, texts, strict=True)):
        name, place = records.name(index), f"in the column {task.column!r}"
        require(len(ids) > 1, f"{name} has a text of one token {place}; a loss needs another token before it")
        if not encoder.truncate and (len(start) < len(text) or len(ids) > (limit or len(ids))):
            size = f"{len(text)} characters" if len(start) < len(text) else f"{len(ids)} tokens"
            most = f"{LONGEST} characters" if limit is None else f"the limit of {limit} tokens"
            raise UserError(
                f"{name} has a text of {size} {place}, more than {most}: shorten it, set --data.too_long cut or "
                "--data.task.packed true, or raise --data.max_tokens if the model's context allows"
            )
    return EncodedTexts([torch.tensor(ids[:limit]) for ids in tokens], encoder.pad_id)


def _blocks(encoder: Encoder, tokens: Sequence[list[int]]) -> Sequence[Tensor]:
    """Returns all texts, each followed by the end token, in blocks of ``encoder.limit`` tokens."""
    end, size = encoder.tokenizer.eos_token_id, encoder.limit
    if end is None:
        name = encoder.tokenizer.name_or_path
        raise UserError(f"--data.task.packed: the tokenizer of {name} has no end token, which joins the texts")
    if size is None:
        raise UserError("--data.task.packed needs the length of a block: set --data.max_tokens")
    ended = (ids if ids[-1:] == [end] else [*ids, end] for ids in tokens)
    blocks = torch.split(torch.tensor([token for ids in ended for token in ids]), size)
    return blocks if len(blocks[-1]) > 1 else blocks[:-1]  # nothing predicts a last token alone
