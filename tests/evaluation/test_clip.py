"""CLIP's formulas by hand, on a small CLIP with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_clip import save_small_clip
from torch import Tensor

from csd_nerf.evaluation.clip import (
    ClipModel,
    direction_consistency,
    directional_similarity,
    load_clip,
    text_similarity,
)
from csd_nerf.evaluation.weights import Unavailable


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    folder = save_small_clip(tmp_path_factory.mktemp("clip") / "small")
    return load_clip(str(folder), device="cpu", download=False)


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.rand(3, 3, 48, 64, generator=generator)


def test_embeddings_are_those_of_the_whole_model(clip: ClipModel, images: Tensor) -> None:
    resized = torch.nn.functional.interpolate(images, (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
    tokens = clip.tokenizer("a bear at night", return_tensors="pt")
    with torch.no_grad():
        whole = clip.model(input_ids=tokens["input_ids"], pixel_values=(resized - mean) / deviation)
    torch.testing.assert_close(clip.images(images), whole.image_embeds)
    torch.testing.assert_close(clip.text("a bear at night"), whole.text_embeds[0])
    # transformers' own similarity, without its temperature
    logits = whole.logits_per_image[:, 0] / clip.model.logit_scale.exp()
    torch.testing.assert_close(text_similarity(clip.images(images), clip.text("a bear at night")), logits)


def test_a_long_text_is_cut_off(clip: ClipModel) -> None:
    assert clip.text("a bear in the snow " * 20).norm() == pytest.approx(1)


def test_directional_similarity_by_hand(clip: ClipModel, images: Tensor) -> None:
    before, after = clip.images(images), clip.images(1 - images)
    source, target = clip.text("a bear"), clip.text("a bear at night")
    by_hand = []
    for view in range(3):
        change, wanted = after[view] - before[view], target - source
        by_hand.append(float(change @ wanted / (change.norm() * wanted.norm())))
    assert directional_similarity(before, after, source, target).tolist() == pytest.approx(by_hand, rel=1e-4)
    opposite = directional_similarity(after, before, source, target)
    torch.testing.assert_close(opposite, -directional_similarity(before, after, source, target))


def test_direction_consistency_by_hand(clip: ClipModel, images: Tensor) -> None:
    before, after = clip.images(images), clip.images(1 - images)
    neighbours, edited_neighbours = before.roll(1, 0), clip.images(images.roll(1, 0).flip(-1))
    by_hand = []
    for view in range(3):
        one, other = after[view] - before[view], edited_neighbours[view] - neighbours[view]
        by_hand.append(float(one @ other / (one.norm() * other.norm())))
    found = direction_consistency(before, after, neighbours, edited_neighbours)
    assert found.tolist() == pytest.approx(by_hand, rel=1e-4)
    torch.testing.assert_close(direction_consistency(before, after, before, after), torch.ones(3))


def test_the_description_names_model_and_input(clip: ClipModel) -> None:
    assert clip.description == f"{clip.name}, 32 px"


def test_absent_weights_are_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="hf download nobody/no-such-clip"):
        load_clip("nobody/no-such-clip", device="cpu", download=False)
    with pytest.raises(Unavailable):
        load_clip(str(tmp_path), device="cpu", download=False)
