"""The exact operators: hand-computed pixels, what each edit must do to a picture, and the hue measure."""

from __future__ import annotations

import pytest
import torch

from csd_nerf.errors import InputError
from csd_nerf.scenes.operators import (
    OPERATORS,
    PAINTING_INSTRUCTION,
    TINT_HUES,
    TINT_INSTRUCTION,
    TINTS,
    hue_and_chroma,
    sketch,
    tint,
)

EVERY_EDIT = {name: operator.apply for name, operator in OPERATORS.items()} | TINTS


def flat(red: float, green: float, blue: float, size: int = 8) -> torch.Tensor:
    return torch.tensor((red, green, blue)).reshape(3, 1, 1).expand(3, size, size).clone()


def middle(image: torch.Tensor) -> tuple[float, ...]:
    return tuple(image[:, image.shape[1] // 2, image.shape[2] // 2].tolist())


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", EVERY_EDIT)
def test_shape_range_and_determinism(name: str, pictures: torch.Tensor) -> None:
    edited = EVERY_EDIT[name](pictures)
    assert edited.shape == pictures.shape and edited.dtype == pictures.dtype
    assert edited.min() >= 0 and edited.max() <= 1
    assert torch.equal(edited, EVERY_EDIT[name](pictures))


@pytest.mark.parametrize("name", EVERY_EDIT)
def test_a_batch_is_edited_as_its_pictures_one_by_one(name: str, pictures: torch.Tensor) -> None:
    together = EVERY_EDIT[name](pictures.unsqueeze(0))[0]
    alone = torch.stack([EVERY_EDIT[name](picture) for picture in pictures])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("name", EVERY_EDIT)
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_black_and_white_pictures_stay_finite(name: str, level: float) -> None:
    assert EVERY_EDIT[name](torch.full((3, 16, 16), level)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "pixel", "wanted"),
    [
        # Luma of (.8, .4, .2) is .4968. Worked out by hand from the operators' definitions.
        ("identity", (0.8, 0.4, 0.2), (0.8, 0.4, 0.2)),
        ("sepia", (0.8, 0.4, 0.2), (0.6071, 0.4696, 0.2834)),
        ("night", (0.8, 0.4, 0.2), (0.1610, 0.1368, 0.2235)),
        ("winter", (0.8, 0.4, 0.2), (0.7721, 0.7856, 0.8298)),
        ("autumn", (0.8, 0.4, 0.2), (0.9560, 0.3800, 0.1160)),
        ("autumn", (0.2, 0.6, 0.1), (0.8209, 0.3799, 0.0635)),
    ],
)
def test_pixels_worked_out_by_hand(name: str, pixel: tuple[float, ...], wanted: tuple[float, ...]) -> None:
    assert middle(OPERATORS[name].apply(flat(*pixel))) == pytest.approx(wanted, abs=5e-4)


def test_sketch_draws_dark_lines_at_edges_on_light_paper() -> None:
    picture = flat(0.6, 0.6, 0.6, size=41)
    picture[:, :, 20:] = 0.3
    drawn = sketch(picture)
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
    row = drawn[0, 20]
    assert row[2].item() == pytest.approx(0.75 + 0.25 * 0.6, abs=1e-3)
    assert row[38].item() == pytest.approx(0.75 + 0.25 * 0.3, abs=1e-3)
    assert row[20] < 0.55 * row[38]


@pytest.mark.parametrize("hue_name", TINT_HUES)
def test_tint_has_its_hue_whatever_the_picture(hue_name: str, pictures: torch.Tensor) -> None:
    hue, chroma = hue_and_chroma(tint(pictures, hue_name))
    distance = (hue - TINT_HUES[hue_name] + 180) % 360 - 180
    assert distance.abs().max() < 0.5
    assert chroma.min() > 0.5


def test_tint_hues_are_well_separated() -> None:
    hues = sorted(TINT_HUES.values())
    assert min(b - a for a, b in zip(hues, [*hues[1:], hues[0] + 360], strict=True)) == 90


def test_unknown_hue_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="'mauve'"):
        tint(flat(0.5, 0.5, 0.5), "mauve")


def test_hue_is_weighted_by_chroma_and_wraps() -> None:
    picture = flat(0.5, 0.5, 0.5)  # grey has no say
    picture[:, 0, 0] = torch.tensor((1.0, 0.0, 0.1))
    picture[:, 0, 1] = torch.tensor((1.0, 0.1, 0.0))
    hue, chroma = hue_and_chroma(picture)
    assert (hue.item() + 180) % 360 == pytest.approx(180, abs=0.1)
    assert chroma.item() == pytest.approx(2 / 64, rel=0.1)
    assert hue_and_chroma(flat(0, 0, 1))[0].item() == pytest.approx(240)


def test_instructions_are_distinct() -> None:
    instructions = [operator.instruction for operator in OPERATORS.values()]
    instructions += [PAINTING_INSTRUCTION, TINT_INSTRUCTION]
    assert len(set(instructions)) == len(instructions)
