"""Attributes scored by CLIP, on a small one with random weights: by the formula, and in a probe's page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_clip import save_small_clip
from torch import Tensor

from csd_nerf.errors import InputError
from csd_nerf.evaluation.clip import ClipModel
from csd_nerf.probing.clip_attributes import (
    Seen,
    as_pairs,
    attribute_drifts,
    in_lines,
    load_attribute_clip,
    scores,
)
from csd_nerf.probing.drift import chances

DAY, YOUNG = ("a photo by day", "a photo at night"), ("a young person", "an old person")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    return load_attribute_clip(str(save_small_clip(tmp_path_factory.mktemp("clip") / "small")), "cpu")


def pictures(seed: int, count: int = 9) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def cosines(clip: ClipModel, shown: Tensor, text: str) -> Tensor:
    """By the whole model of transformers, in double precision."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
    with torch.no_grad():
        whole = clip.model(
            input_ids=clip.tokenizer(text, return_tensors="pt")["input_ids"],
            pixel_values=(shown - mean) / deviation,
        )
    image, words = whole.image_embeds.double(), whole.text_embeds.double()[0]
    return (image @ words) / (image.norm(dim=1) * words.norm())


def test_a_score_is_the_difference_of_two_cosines(clip: ClipModel) -> None:
    shown = pictures(0)
    by_hand = cosines(clip, shown, DAY[0]) - cosines(clip, shown, DAY[1])
    assert by_hand.abs().min() > 1e-5
    torch.testing.assert_close(scores(clip, shown, *DAY).double(), by_hand, rtol=0, atol=1e-6)


def test_a_drift_is_the_mean_change_of_the_score_with_its_spread(clip: ClipModel) -> None:
    before, after = pictures(0), (0.6 * pictures(0) + 0.3 * pictures(1)).clamp(0, 1)
    drifts = {
        (drift.text, drift.opposite): drift for drift in attribute_drifts(clip, before, after, (DAY, YOUNG))
    }
    changes = torch.stack(
        [scores(clip, after, *pair) - scores(clip, before, *pair) for pair in (DAY, YOUNG)], 1
    )
    for column, pair in enumerate((DAY, YOUNG)):
        drift, change = drifts[pair], changes[:, column]
        assert drift.mean == pytest.approx(change.mean().item(), abs=1e-6)
        assert drift.deviation == pytest.approx(change.std().item(), abs=1e-6)
        assert drift.before == pytest.approx(scores(clip, before, *pair).mean().item(), abs=1e-6)
        assert drift.after - drift.before == pytest.approx(drift.mean, abs=1e-6)
        assert drift.p == pytest.approx(chances(changes)[column].item())


def test_what_all_pictures_do_alike_is_regular_and_what_they_do_by_chance_is_not(clip: ClipModel) -> None:
    before = pictures(0)
    (same,) = attribute_drifts(clip, before, before * torch.tensor([0.2, 0.5, 1.0]).reshape(3, 1, 1), (DAY,))
    assert same.regular and in_lines(Seen("it", [same])) == [f"CLIP sees the pictures move {same.in_words()}"]
    towards = DAY[0] if same.mean > 0 else DAY[1]
    assert same.in_words().endswith(f'towards "{towards}"')
    (other,) = attribute_drifts(clip, before, pictures(1), (DAY,))
    assert not other.regular and "beyond chance" in in_lines(Seen("it", [other]))[0]


@pytest.mark.parametrize("given", ["a cat", "a cat |", "a cat | a cat", "a | b | c"])
def test_an_attribute_is_two_texts(given: str) -> None:
    with pytest.raises(InputError, match="--attribute"):
        as_pairs((given,))


def test_a_clip_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no CLIP that can be had"):
        load_attribute_clip(str(tmp_path), "cpu")
