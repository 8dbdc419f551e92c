"""The examples of docs/editors.md run as they are written."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image

from csd_nerf.distillation import presets
from csd_nerf.media import read_clip, write_clip

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "editors.md"
EXAMPLES = re.findall(
    r"^```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf8"), re.DOTALL | re.MULTILINE
)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the examples read, small, and one step for edits that leave the number to the prior."""
    monkeypatch.chdir(tmp_path)

    def one_step(name: str, prior: str) -> presets.LatentEditConfig:
        config = latent_edit(name, prior)
        config.descent.steps = 1
        return config

    latent_edit = presets.latent_edit
    monkeypatch.setattr(presets, "latent_edit", one_step)
    Image.linear_gradient("L").resize((60, 40)).save("photo.jpg")
    write_clip(torch.rand(3, 3, 32, 48), Path("wolf.mp4"), frame_rate=Fraction(10))


def run(name: str) -> dict[str, object]:
    """Run the one example that calls a function, and return what it leaves."""
    (example,) = (text for text in EXAMPLES if f"{name}(" in text)
    names: dict[str, object] = {}
    exec(compile(example, str(DOCUMENT), "exec"), names)
    return names


def test_a_picture() -> None:
    run("edit_image")
    assert Image.open("night.png").size == (60, 40)


def test_a_panorama() -> None:
    left = run("edit_panorama")
    for name in ("seasons", "left_half", "sphere"):
        edited = left[name]
        assert isinstance(edited, torch.Tensor) and edited.shape == (3, 128, 512), name


def test_a_clip() -> None:
    run("edit_video")
    winter = read_clip(Path("winter.mp4"))
    assert len(winter) == 3 and (winter.height, winter.width) == (32, 48)
