"""The tool that makes the bundled prior, on two pictures and a few steps."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training import text, unet  # noqa: E402
from training.latents import read_latents, write_latents  # noqa: E402
from training.parallel import Worker  # noqa: E402
from training.photos import HELD_OUT_OBJECTS, HELD_OUT_SCENES, Photo, object_of, training_photos  # noqa: E402
from training.progress import Budget, Progress, learning_rate  # noqa: E402
from training.vae import RAW_DEVIATION, Crops, new_vae, normalise_latents  # noqa: E402
from training.wordings import EDITS, wordings  # noqa: E402

WORKER = Worker(rank=0, count=1, device=torch.device("cpu"))


class Killed(Exception):
    pass


def some_photos() -> list[Photo]:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (2, 2, 3, 100, 120), generator=generator, dtype=torch.uint8)
    return [Photo("plain", pictures[0, 0]), Photo("with painting", *pictures[1])]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the first three stages done, by an untrained autoencoder."""
    work = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    torch.save({"vae": new_vae().state_dict()}, work / "vae.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "STEPS", 10)
        text.train_text(work, seed=0)
    write_latents(WORKER, some_photos(), work, seed=0)
    return work


def train(stages: Path, work: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int | None) -> None:
    """Four tiny steps of the denoiser that check-point after each."""
    for name in ("text.pt", "tokenizer", "latents-0-of-1.pt"):
        if not (work / name).exists():
            (work / name).symlink_to(stages / name)
    monkeypatch.setattr(unet, "BATCH", 2)
    monkeypatch.setattr(unet, "SNAPSHOT_SECONDS", 0)
    monkeypatch.setattr("training.progress.SAVE_SECONDS", 0)
    calls = 0

    def snapshot() -> None:
        nonlocal calls
        calls += 1
        if calls == killed_after:
            raise Killed

    unet.train_unet(WORKER, work, Budget(steps=4), 0, snapshot)


def test_a_killed_training_ends_where_an_unbroken_one_does(
    stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    unbroken.mkdir()
    broken.mkdir()
    train(stages, unbroken, monkeypatch, killed_after=None)
    with pytest.raises(Killed):
        train(stages, broken, monkeypatch, killed_after=2)
    train(stages, broken, monkeypatch, killed_after=None)
    for wanted, got in zip(
        unet.load_unet(unbroken).parameters(), unet.load_unet(broken).parameters(), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_latents_pair_every_edit_and_the_painting_with_the_same_photo(stages: Path) -> None:
    variants = read_latents(stages, count=1)
    edited = [variant for variant in variants if "night" in variant.targets]
    painted = [variant for variant in variants if "painted" in variant.targets]
    assert len(edited) == 2 * 3 and len(painted) == 8
    assert all(torch.equal(variant.targets["identity"], variant.source) for variant in edited)
    assert all(variant.targets["painted"].shape == variant.source.shape for variant in painted)


def test_folding_the_deviation_changes_latents_and_not_pictures() -> None:
    torch.manual_seed(0)
    vae = new_vae().requires_grad_(False)
    images = Crops(some_photos()).draw(16, torch.Generator().manual_seed(0))
    before = vae.decode(vae.encode(images * 2 - 1).latent_dist.mode()).sample
    normalise_latents(vae, images)
    latents = vae.encode(images * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.full((4,), RAW_DEVIATION))
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(vae.decode(latents).sample, before, atol=1e-4, rtol=1e-4)


def test_wordings_are_several_and_never_shared_by_two_edits() -> None:
    everything = [wording for edit in EDITS for wording in wordings(edit)]
    assert len(set(everything)) == len(everything)
    assert all(len(wordings(edit)) >= 10 for edit in EDITS)


def test_the_rate_warms_up_and_decays() -> None:
    rates = [learning_rate(step / 1000, step, peak=1.0) for step in range(1000)]
    assert rates[0] < 0.02 and max(rates) > 0.95 and rates[-1] < 0.03
    assert Progress(Budget(steps=4), WORKER).fraction() == 0


def test_nothing_held_out_is_trained_on(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.photos.STILL_LIFE_VIEWS", 1)
    names = [photo.name for photo in training_photos(shared)]
    assert len(names) > 250
    assert not {object_of(name) for name in names} & set(HELD_OUT_OBJECTS)
    assert not [name for name in names if name.startswith(HELD_OUT_SCENES) and "-" in name]
