"""The second text side of a flow: T5's words, as a tokenizer and an encoder of our own, then frozen.

CLIP says what a whole prompt means, T5 what each of its words does. There is no mask: what pads a prompt is
seen too, so that prompts are kept as short as they are.
"""

from __future__ import annotations

import string
from pathlib import Path

import torch
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from training.progress import save_whole
from training.text import tell_apart, tokens_by_edit
from training.wordings import vocabulary_corpus

MAX_WORDS = 16
WIDTH = 96
_SPACE = "\u2581"


def new_words_tokenizer() -> T5TokenizerFast:
    """Whole words where they are known, with a capital or without, and letters where not."""
    words = dict.fromkeys(word for text in vocabulary_corpus() for word in text.replace(",", " ").split())
    known = [spelling for word in words for spelling in dict.fromkeys((word, word.capitalize()))]
    letters = [letter for letter in string.printable if not letter.isspace()]
    pieces = [(_SPACE + word, -1.0) for word in known if len(word) > 1]
    pieces += [(piece, -3.0) for piece in (_SPACE, *letters, *(_SPACE + letter for letter in letters))]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -99.0)]
    return T5TokenizerFast(vocab=special + pieces, extra_ids=0, model_max_length=MAX_WORDS)


def new_words_encoder(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    """The untrained encoder: 2 layers, 96 wide."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=3,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def tokenize_words(tokenizer: T5TokenizerFast, texts: list[str]) -> Tensor:
    """Texts to token ids (n, MAX_WORDS), padded and cut as diffusers' pipelines do."""
    padded = tokenizer(
        texts, padding="max_length", max_length=MAX_WORDS, truncation=True, return_tensors="pt"
    )
    return padded.input_ids


def train_words(work: Path, seed: int) -> None:
    """Train the encoder to tell the instructions apart; write `work/words.pt`."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    tokenizer = new_words_tokenizer()
    encoder = new_words_encoder(tokenizer).train()
    tokens = tokens_by_edit(lambda texts: tokenize_words(tokenizer, texts), generator)
    tell_apart("words", encoder, lambda hidden, rows: hidden.mean(1), tokens, generator)
    _make_capitals_alike(tokenizer, encoder)
    save_whole({"encoder": encoder.state_dict()}, work / "words.pt")


def load_words(work: Path) -> tuple[T5TokenizerFast, T5EncoderModel]:
    """The tokenizer and the frozen encoder that `train_words` left."""
    tokenizer = new_words_tokenizer()
    encoder = new_words_encoder(tokenizer)
    encoder.load_state_dict(torch.load(work / "words.pt", weights_only=True)["encoder"])
    return tokenizer, encoder.eval().requires_grad_(False)


@torch.no_grad()
def _make_capitals_alike(tokenizer: T5TokenizerFast, encoder: T5EncoderModel) -> None:
    """Give what begins with a capital the embedding of what does not; the training's texts have none."""
    vocabulary = tokenizer.get_vocab()
    rows = encoder.get_input_embeddings().weight
    for piece, row in vocabulary.items():
        small = piece.lower()
        if small != piece and small in vocabulary:
            rows[row] = rows[vocabulary[small]]
