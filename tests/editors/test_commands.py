"""`csd-nerf image` and `csd-nerf panorama`: what they write, refuse, and go on with."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from csd_nerf.cli import main
from csd_nerf.editors import saving
from csd_nerf.editors.base_command import EditCommand
from csd_nerf.editors.picture_command import Image as ImageCommand
from csd_nerf.editors.picture_command import Panorama
from csd_nerf.editors.video_command import Video


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With a photo, and with the signals as before: `main` is made for a process of its own."""
    monkeypatch.chdir(tmp_path)
    rows, columns = np.mgrid[:40, :60]
    photo = Image.fromarray(
        np.stack([4 * columns, 6 * rows, 2 * rows + 2 * columns], axis=2).astype(np.uint8)
    )
    photo.save("photo.png")
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def command(*arguments: str) -> int:
    """The exit status."""
    try:
        main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def edit(*more: str, kind: str = "image", steps: int = 1, output: str = "night.png") -> int:
    return command(
        *(kind, "photo.png", "--prior", "tiny-instruct", "--steps", str(steps)),
        *("--prompt", "make it night", "-o", output, *more),
    )


def files() -> list[str]:
    return sorted(os.listdir())


def test_an_edit_leaves_picture_comparison_and_page(capsys: Any) -> None:
    assert edit() == 0
    assert files() == ["night-comparison.png", "night.html", "night.png", "photo.png"]
    assert Image.open("night.png").size == (60, 40)
    assert Image.open("night-comparison.png").size == (60, 2 * 40 + 8)
    printed = capsys.readouterr().out
    assert "[2/3] Edit: 1 steps" in printed and "night.html" in printed

    page = Path("night.html").read_text(encoding="utf8")
    assert "<q>make it night</q>" in page
    assert page.count("data:image/jpeg;base64,") == 2
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "csd-nerf image photo.png" in page and "--prior tiny-instruct" in page
    assert 'type="range"' in page and "$" not in re.sub(r"<script>.*</script>", "", page, flags=re.DOTALL)


def test_extras_can_be_left_out() -> None:
    assert edit("--no-page", "--no-comparison") == 0
    assert files() == ["night.png", "photo.png"]


def test_what_is_there_is_replaced_only_by_force(capsys: Any) -> None:
    Path("night.png").write_bytes(b"mine")
    assert edit() == 2
    assert "already there" in capsys.readouterr().err
    assert Path("night.png").read_bytes() == b"mine"
    assert edit("--force") == 0
    assert Image.open("night.png").size == (60, 40)


@pytest.mark.parametrize("taken", ["night.html", "night-comparison.png"])
def test_extras_do_not_replace_what_is_there_either(taken: str, capsys: Any) -> None:
    Path(taken).write_bytes(b"mine")
    assert edit() == 2
    assert taken in capsys.readouterr().err
    assert Path(taken).read_bytes() == b"mine" and "night.png" not in files()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("image", "none.png", "--prompt", "a", "-o", "out.png"), ["there is no picture none.png"]),
        (("image", "text.png", "--prompt", "a", "-o", "out.png"), ["cannot be read as a picture"]),
        (("image", "cut.png", "--prompt", "a", "-o", "out.png"), ["cannot be read as a picture", "damaged"]),
        (("image", "photo.png", "-o", "out.png"), ["prompt is empty"]),
        (("image", "photo.png", "--prompt", "a", "-o", "out.xyz"), ["out.xyz", "no format"]),
        (("image", "photo.png", "--prompt", "a", "-o", "no/out.png"), ["the folder no is not there"]),
        (("image", "photo.png", "--prompt", "a", "-o", "photo.png"), ["would replace the source"]),
        (("image", "photo.png", "--prompt", "a", "-o", "./photo.png", "--force"), ["replace the source"]),
        (
            ("image", "photo.png", "--prompt", "a", "-o", "out.png", "--preview-every", "-1"),
            ["preview-every"],
        ),
        (("image", "photo.png", "--prompt", "a", "-o", "out.png", "--steps", "0"), ["--steps"]),
        (("image", "photo.png", "--prompt", "a", "-o", "out.png", "--prior", "nothing"), ["no such prior"]),
        (
            (
                "image",
                "photo.png",
                "--prompt",
                "a",
                "-o",
                "out.png",
                "--method",
                "dds",
                "--source-prompt",
                "b",
            ),
            ["cannot ask a model that takes instructions"],
        ),
        (("image", "photo.png", "--prompt", "a", "-o", "out.png", "--method", "dds"), ["--source-prompt"]),
        (("panorama", "photo.png", "-o", "out.png"), ["prompt is empty"]),
        (("panorama", "photo.png", "--prompt", "a", "-o", "out.png"), ["smaller than a window", "60 x 40"]),
        (
            ("panorama", "photo.png", "--prompt", "a", "b", "--bands", "1", "-o", "out.png"),
            ["2 prompts and 1 bands"],
        ),
        (
            ("panorama", "photo.png", "--prompt", "a", "b", "--bands", "0.1", "0.2", "-o", "out.png"),
            ["uncovered"],
        ),
        (
            ("panorama", "photo.png", "--prompt", "a", "--masks", "white.png", "-o", "out.png"),
            ["mask 1 is not of the picture's size", "20 x 20"],
        ),
        (
            ("panorama", "photo.png", "--prompt", "a", "--masks", "black.png", "-o", "out.png"),
            ["uncovered", "100.0 %"],
        ),
        (("panorama", "photo.png", "--prompt", "a", "--masks", "none.png", "-o", "out.png"), ["none.png"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_refused_before_any_work(
    arguments: tuple[str, ...], parts: list[str], tmp_path: Path, capsys: Any
) -> None:
    Path("text.png").write_text("not a picture")
    whole = Path("photo.png").read_bytes()
    Path("cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("L", (20, 20), 255).save("white.png")
    Image.new("L", (60, 40), 0).save("black.png")
    before = files()
    usual = () if "--prior" in arguments else ("--prior", "tiny-instruct")
    assert command(*arguments, *usual) == 2
    printed = capsys.readouterr()
    for part in ("Error:", "expected:", "got:", "do this:", *parts):
        assert part in printed.err
    assert "Encode" not in printed.out
    assert files() == before


def test_a_folder_that_cannot_be_written_to_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert edit() == 2
    assert "Permission denied" in capsys.readouterr().err


def test_a_full_disk_leaves_what_was_there(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The picture is half written when the disk fills up: the earlier one stays, and so does the edit."""
    Path("night.png").write_bytes(b"mine")

    def fill_up(self: Any, path: Any, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("PIL.Image.Image.save", fill_up)
        assert edit("--force", "--no-page", "--no-comparison") == 2
    assert "No space left" in capsys.readouterr().err
    assert Path("night.png").read_bytes() == b"mine"
    assert files() == [".night.png.unfinished", "night.png", "photo.png"]
    assert edit("--force", "--no-page", "--no-comparison") == 0
    assert "[2/3] Edit: 1 steps, from step 1" in capsys.readouterr().out
    assert files() == ["night.png", "photo.png"]


def interrupt_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the command be interrupted as by Ctrl-C, right after it has saved a step."""
    save = saving.Unfinished.save

    def save_and_stop(self: Any, identity: Any, done: int, latents: Any) -> None:
        save(self, identity, done, latents)
        if done == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(saving, "SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(saving.Unfinished, "save", save_and_stop)


def test_an_interrupted_edit_goes_on_exactly(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with monkeypatch.context() as patched:
        interrupt_after(2, patched)
        assert edit(steps=3) == 130
    printed = capsys.readouterr().out
    assert "Stopped after 2 steps" in printed and ".night.png.unfinished" in printed
    assert files() == [".night.png.unfinished", "photo.png"]
    assert edit(steps=3) == 0
    assert "from step 2" in capsys.readouterr().out
    assert ".night.png.unfinished" not in files()
    assert edit(steps=3, output="whole.png") == 0
    assert Path("night.png").read_bytes() == Path("whole.png").read_bytes()


def test_another_unfinished_edit_is_not_gone_on_with(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with monkeypatch.context() as patched:
        interrupt_after(1, patched)
        assert edit(steps=2) == 130
    assert edit("--seed", "3", steps=2) == 2
    printed = capsys.readouterr().err
    assert "another unfinished edit" in printed and "seed 0" in printed and "seed 3" in printed
    assert edit("--seed", "3", "--force", steps=2) == 0


def test_a_damaged_unfinished_edit_is_refused(capsys: Any) -> None:
    Path(".night.png.unfinished").write_bytes(b"\0" * 20)
    assert edit() == 2
    assert "cannot be read" in capsys.readouterr().err


def test_running_out_of_memory_names_what_to_turn_down(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def run_out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    monkeypatch.setattr("csd_nerf.distillation.objective.Objective.gradient", run_out)
    assert edit() == 2
    printed = capsys.readouterr().err
    assert "memory ran out" in printed and "--unet-batch-size" in printed


def test_previews_come_every_so_many_steps_and_go_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    step = saving.FileObserver.step

    def watched(self: Any, steps: int, *arguments: Any) -> None:
        step(self, steps, *arguments)
        if Path("night-preview.jpg").exists():
            seen.append(steps)
            assert Image.open("night-preview.jpg").size == (60, 40)
            Path("night-preview.jpg").unlink()

    monkeypatch.setattr(saving.FileObserver, "step", watched)
    assert edit("--preview-every", "2", steps=5) == 0
    assert seen == [2, 4]
    assert "night-preview.jpg" not in files()


def test_alpha_and_colour_profile_are_kept() -> None:
    photo = Image.open("photo.png")
    photo.putalpha(Image.linear_gradient("L").resize((60, 40)))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo.save("photo.png", icc_profile=profile)
    assert edit("--no-page", "--no-comparison") == 0
    edited = Image.open("night.png")
    assert edited.mode == "RGBA" and edited.info["icc_profile"] == profile
    assert edited.getchannel("A").tobytes() == photo.getchannel("A").tobytes()


def test_a_panorama_takes_several_prompts_and_masks() -> None:
    photo = Image.open("photo.png").resize((200, 100))
    photo.save("photo.png")
    mask = np.zeros((100, 200), np.uint8)
    mask[:, :90] = 255
    Image.fromarray(mask).save("left.png")
    Image.fromarray(255 - mask).save("right.png")
    done = command(
        *("panorama", "photo.png", "-o", "out.jpg", "--prior", "tiny-instruct", "--steps", "1"),
        *("--prompt", "make it night", "make it winter", "--masks", "left.png", "right.png", "--wrap"),
    )
    assert done == 0
    assert Image.open("out.jpg").size == (200, 100)
    assert "<q>make it night</q> <q>make it winter</q>" in Path("out.html").read_text(encoding="utf8")


def test_a_recipe_gives_options_that_the_command_line_does_not() -> None:
    Path("tiny.yaml").write_text(
        "prior: tiny-instruct\nsteps: 1\npage: false\ncomparison: false\nseed: 4\nfor:\n"
        "  image: {prompt: make it night}\n  panorama: {prompt: [make it night, make it winter]}\n"
    )
    assert command("image", "photo.png", "-o", "a.png", "--recipe", "tiny.yaml") == 0
    assert edit("--seed", "4", output="b.png") == 0
    assert edit("--seed", "5", output="c.png") == 0
    assert command("image", "photo.png", "-o", "d.png", "--recipe", "tiny.yaml", "--seed", "5") == 0
    a, b, c, d = (Path(f"{name}.png").read_bytes() for name in "abcd")
    assert a == b and c == d and a != c
    assert "a.html" not in files()

    # Also where what the command line says is the default. The page's command makes the same again.
    assert command("image", "photo.png", "-o", "e.png", "--recipe", "tiny.yaml", "--seed", "0", "--page") == 0
    assert edit(output="f.png") == 0
    assert Path("e.png").read_bytes() == Path("f.png").read_bytes() != a
    page = Path("e.html").read_text(encoding="utf8")
    assert "--no-comparison" in page and "--steps 1" in page and "--recipe" not in page


@pytest.mark.parametrize("kind", [ImageCommand, Panorama, Video])
def test_options_given_at_their_default_win_over_a_recipe(kind: type[EditCommand]) -> None:
    Path("mine.yaml").write_text(
        "method: dds\ncomparison: false\nforce: true\nparticles: 4\noutput: other.png\nrecipe: tiny\n"
    )
    options = kind(input=Path("photo.png"), output=Path("night.png"), recipe="mine.yaml")
    bare = options.with_recipe([])
    assert (bare.method, bare.comparison, bare.force, bare.particles) == ("dds", False, True, 4)  # type: ignore[attr-defined]
    assert bare.output == Path("night.png") and bare.recipe is None
    given = options.with_recipe(["--method=csd-edit", "--comparison", "--no-force", "--particles", "16"])
    assert given == kind(input=options.input, output=options.output)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("stepz: 3", "sets an option that is not there"),
        ("steps: many", "does not take"),
        ("[", "cannot be read"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_refused(text: str, part: str, capsys: Any) -> None:
    Path("bad.yaml").write_text(text)
    assert edit("--recipe", "bad.yaml") == 2
    assert part in capsys.readouterr().err
