"""Rebuilds the quickstart's files: ``python -m zolit.quickstart.build [--output FOLDER]``.

The program writes the classification records, trains a byte-level BPE tokenizer, and pretrains a tiny Llama with
gradients, on texts of :mod:`zolit.quickstart.language`. Records and tokenizer are the same on every machine. The
weights differ between machines as the rounding errors of their matrix products grow.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from zolit.quickstart import MODEL, TRAIN, VALIDATION, language

SEED = 2026
TRAIN_SIZE, VALIDATION_SIZE = 1_000, 400
VOCABULARY = 1_000
STEPS, BATCH, WARMUP, LEARNING_RATE = 1_500, 32, 100, 5e-3
LESSON_STEPS = 300


def write_records(output: Path) -> None:
    """Writes the training and validation records into the folder ``output``, one JSON object a line."""
    train = language.records(TRAIN_SIZE, "train", SEED)
    validation = language.records(VALIDATION_SIZE, "validation", SEED)
    for path, records in ((TRAIN, train), (VALIDATION, validation)):
        lines = (json.dumps(record._asdict()) + "\n" for record in records)
        (output / path.name).write_text("".join(lines), encoding="utf-8", newline="\n")


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer that, like Llama's, puts ``<s>`` before each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.islice(language.texts(SEED), 5_000), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )


def pretrain(tokenizer: PreTrainedTokenizerFast, steps: int) -> LlamaForCausalLM:
    """Pretrains a tiny Llama for ``steps`` batches of fresh texts, with AdamW and a progress bar."""
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            initializer_range=0.1,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps + 1, pct_start=min(WARMUP / steps, 0.5)
    )
    lessons, corpus = language.lessons(SEED + 1), language.texts(SEED + 1)
    columns = (
        TextColumn("pretraining"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task("pretraining", total=steps, loss=float("nan"))
        for step in range(steps):
            # At first, three of four texts are lessons. Not all, because a sudden change of the texts unlearns them.
            count = BATCH * 3 // 4 if step < LESSON_STEPS else 0
            texts = [*itertools.islice(lessons, count), *itertools.islice(corpus, BATCH - count)]
            texts = [text + tokenizer.eos_token for text in texts]
            batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            # Padding on the right needs no mask: in a causal model, tokens with a loss do not attend to it.
            loss = model(input_ids=batch["input_ids"], labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            progress.update(bar, advance=1, loss=loss.item())
    return model


def build(output: Path, steps: int = STEPS) -> None:
    """Writes records, tokenizer and model into the folder ``output``, which is created if needed."""
    output.mkdir(parents=True, exist_ok=True)
    write_records(output)
    tokenizer = train_tokenizer()
    model = pretrain(tokenizer, steps)
    model.save_pretrained(output / MODEL.name)
    tokenizer.save_pretrained(output / MODEL.name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m zolit.quickstart.build", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=MODEL.parent, help="folder to write to (default: the package's)")
    parser.add_argument("--steps", type=int, default=STEPS, help="pretraining steps (default: %(default)s)")
    options = parser.parse_args(arguments)
    build(options.output, options.steps)


if __name__ == "__main__":
    main()
