"""Stage 2: the tokenizer and the text encoder, pretrained to tell the instructions apart, then frozen."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.progress import save_whole
from training.wordings import EDITS, unknown_sentences, vocabulary_corpus, with_extra_words, wordings

MAX_TOKENS = 32
MERGES = 900
STEPS, BATCH, LEARNING_RATE = 400, 64, 1e-3
UNKNOWN, EMPTY = "unknown", "empty"
_START, _END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Learn byte-pair merges (Sennrich et al. 2016) from the wordings, save a CLIP tokenizer, return it."""
    letters = _byte_letters()
    words: Counter[tuple[str, ...]] = Counter()
    for text in vocabulary_corpus():
        for word in text.replace(",", " ,").split():
            symbols = [letters[byte] for byte in word.encode()]
            words[(*symbols[:-1], symbols[-1] + "</w>")] += 1
    merges = _learn_merges(words)
    alphabet = [*letters.values(), *(letter + "</w>" for letter in letters.values())]
    tokens = list(dict.fromkeys([*alphabet, *("".join(pair) for pair in merges), _START, _END]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The untrained text encoder: 2 layers, 96 wide."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            projection_dim=96,
            num_hidden_layers=2,
            num_attention_heads=3,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Texts to token ids (n, MAX_TOKENS), padded and cut as diffusers' pipelines do."""
    padded = tokenizer(
        texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    return padded.input_ids


def train_text(work: Path, seed: int) -> None:
    """Train the text encoder to tell the instructions apart; write `work/tokenizer` and `work/text.pt`."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    tokenizer = write_tokenizer(work / "tokenizer")
    encoder = new_text_encoder(tokenizer).train()
    tokens = tokens_by_edit(lambda texts: tokenize(tokenizer, texts), generator)

    def summary(hidden: Tensor, rows: Tensor) -> Tensor:
        return _summary(hidden, rows, tokenizer.eos_token_id)

    tell_apart("text", encoder, summary, tokens, generator)
    save_whole({"encoder": encoder.state_dict()}, work / "text.pt")


def tokens_by_edit(tokenized: Callable[[list[str]], Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Token ids (n, L) of what may be said for each edit, for none that is known, and of nothing."""
    ids = {}
    for edit in EDITS:
        varied = [text for _ in range(4) for text in with_extra_words(wordings(edit), generator)]
        ids[edit] = tokenized(wordings(edit) * 2 + varied)
    ids[UNKNOWN] = tokenized(unknown_sentences(2000, generator))
    ids[EMPTY] = tokenized([""])  # a class of its own: guidance needs it far from every instruction
    return ids


def tell_apart(
    name: str,
    encoder: nn.Module,
    summary: Callable[[Tensor, Tensor], Tensor],
    tokens: dict[str, Tensor],
    generator: torch.Generator,
) -> None:
    """Train an encoder, in place, to say of which class a text is.

    Args:
        name: of the stage.
        encoder: token ids (n, L) to hidden states (n, L, 96).
        summary: (hidden states, token ids) to (n, 96), which must tell the class.
        tokens: ids (n, L) by class.
    """
    classes = list(tokens)
    classifier = nn.Linear(96, len(classes))
    parameters = [*encoder.parameters(), *classifier.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
    for step in range(STEPS):
        labels = torch.randint(len(classes), (BATCH,), generator=generator)
        rows = torch.stack([_any_row(tokens[classes[label]], generator) for label in labels.tolist()])
        hidden = encoder(rows).last_hidden_state
        loss = F.cross_entropy(classifier(summary(hidden, rows)), labels)
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / STEPS)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if (step + 1) % 50 == 0:
            print(f"{name} step {step + 1}: loss {loss.item():.4f}", flush=True)


def load_text(work: Path) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """The tokenizer and the frozen text encoder that `train_text` left."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer", model_max_length=MAX_TOKENS)
    encoder = new_text_encoder(tokenizer)
    encoder.load_state_dict(torch.load(work / "text.pt", weights_only=True)["encoder"])
    return tokenizer, encoder.eval().requires_grad_(False)


def _summary(hidden: Tensor, ids: Tensor, end: int) -> Tensor:
    """Mean of the hidden states (n, L, d) from the end token on: the padding repeats it, and is seen too."""
    after = (ids == end).float().unsqueeze(-1)
    return (hidden * after).sum(1) / after.sum(1)


def _any_row(rows: Tensor, generator: torch.Generator) -> Tensor:
    return rows[torch.randint(len(rows), (), generator=generator)]


def _learn_merges(words: Counter[tuple[str, ...]]) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    while len(merges) < MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, count in words.items():
            for pair in zip(symbols, symbols[1:], strict=False):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))  # ties by text: the same on every machine
        merges.append(best)
        merged: Counter[tuple[str, ...]] = Counter()
        for symbols, count in words.items():
            merged[_merge(symbols, best)] += count
        words = merged
    return merges


def _merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for symbol in symbols:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)


def _byte_letters() -> dict[int, str]:
    """The printable character that stands for each byte in byte-level BPE, as in GPT-2 and CLIP."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    letters = {byte: chr(byte) for byte in printable}
    hidden = [byte for byte in range(256) if byte not in letters]
    return letters | {byte: chr(256 + index) for index, byte in enumerate(hidden)}
