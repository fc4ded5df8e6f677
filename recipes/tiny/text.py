"""Texts, tokenizer and windows that the embedded model is trained and measured on."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast as FastTokenizer

DOCUMENT_END = "<|endoftext|>"
# llama.cpp's converter asks a GLM tokenizer for these; no text holds them.
GLM_TOKENS = ("[gMASK]", "<|user|>", "<|observation|>")
VOCABULARY = 4096


def read_documents(path: Path, limit: int = -1) -> list[str]:
    """Documents of a .jsonl file, or of a .txt.xz file (its first ``limit`` characters), parted by U+001E."""
    if path.suffix == ".jsonl":
        return [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]
    with lzma.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return file.read(limit).split("\n\x1e\n")  # decompresses no more than it returns


def train_tokenizer(documents: list[str]) -> FastTokenizer:
    """A byte-level BPE of 4096 entries: <|endoftext|> is id 0, and GLM's special tokens are the last ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(GLM_TOKENS),
        special_tokens=[DOCUMENT_END],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in GLM_TOKENS])
    ends = dict.fromkeys(("bos_token", "eos_token", "pad_token"), DOCUMENT_END)
    return FastTokenizer(tokenizer_object=tokenizer, **ends)


def encoded_documents(tokenizer: Any, documents: list[str]) -> Iterator[list[int]]:
    """The ids of every document, after an <|endoftext|>."""
    for first in range(0, len(documents), 32):  # an encoding takes many times the memory of its ids
        for encoding in tokenizer.backend_tokenizer.encode_batch(documents[first : first + 32]):
            yield [tokenizer.eos_token_id, *encoding.ids]


def encode(tokenizer: Any, documents: list[str]) -> Tensor:
    """All documents as one stream of ids [N], each after an <|endoftext|>."""
    return torch.cat([torch.tensor(ids, dtype=torch.int32) for ids in encoded_documents(tokenizer, documents)])


def windows_at(tokens: Tensor, starts: Tensor, window: int) -> Tensor:
    """The windows [len(starts), window + 1] of a stream; the last token is only ever a target."""
    return tokens[starts.to(tokens.device)[:, None] + torch.arange(window + 1, device=tokens.device)].long()


def even_windows(tokens: Tensor, window: int, count: int) -> Tensor:
    """``count`` windows, or as many as there are, spread evenly over a stream [count, window + 1]."""
    available = (len(tokens) - 1) // window
    chosen = torch.linspace(0, available - 1, min(count, available)).long()
    return windows_at(tokens, chosen * window, window)


def orders(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The numbers below ``count`` [count] in an order of chance, another at each pass."""
    while True:
        yield torch.randperm(count, generator=generator)


def shuffled_starts(tokens: int, window: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Where the training windows of a pass begin; each pass over the text shifts and shuffles them anew."""
    while True:
        shift = int(torch.randint(window, (), generator=generator))
        grid = torch.arange(shift, tokens - window, window)
        yield grid[torch.randperm(len(grid), generator=generator)]
