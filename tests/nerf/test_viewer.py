"""Sessions in nerfstudio's viewer, with a real browser: a real `ns-train csd-edit-tiny`, and `ns-viewer`.

They are about a small scene, in a few small steps. To look at them, on a scene of yours and at full length:

    CSD_NERF_VIEWER_SCENE=RUN CSD_NERF_VIEWER_PICTURES=FOLDER pytest -n 0 tests/nerf/test_viewer.py
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from nerf_runs import make_edit_config, run

from csd_nerf.nerf.closing_words import viewer_command
from csd_nerf.nerf.config_loader import read_config
from csd_nerf.nerf.methods import METHODS

playwright = pytest.importorskip("playwright.sync_api", reason="there is no Playwright to drive a browser")
SECONDS = 1000
PATIENCE = 300
"""Seconds for anything that is waited for, beside other programs too."""
SCENE = os.environ.get("CSD_NERF_VIEWER_SCENE")
"""The run folder of a trained scene."""
PICTURES = os.environ.get("CSD_NERF_VIEWER_PICTURES")
"""A folder for screenshots, to look at."""
STEPS = METHODS["csd-edit-tiny"].max_num_iterations if SCENE else 12
SMALL = [
    "--pipeline.render-size", "32", "--pipeline.picture-size", "32", "--pipeline.turntable-frames", "2",
    "--pipeline.fits-per-round", "4",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--use-gl=swiftshader"]
            )
        except playwright.Error as error:
            pytest.skip(f"there is no Chromium: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def scene(request: pytest.FixtureRequest) -> Path:
    return Path(SCENE) if SCENE else request.getfixturevalue("scene_run")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def command(module: str, *options: str, log: Path) -> Iterator[int]:
    """A nerfstudio command with a viewer, for a while; gives its port."""
    port = free_port()
    words = [sys.executable, "-m", f"nerfstudio.scripts.{module}", *options]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*words, "--viewer.websocket-port", str(port)], stdout=file, stderr=subprocess.STDOUT
        )
        try:
            yield port
            assert process.poll() is None, log.read_text()
        finally:
            process.kill()
            process.wait()


class Session:
    """A tab on a viewer."""

    def __init__(self, browser: Any, port: int) -> None:
        self.page = browser.new_page(viewport={"width": 1200, "height": 1100})
        for _ in range(2 * PATIENCE):  # until the command has loaded what it needs
            try:
                self.page.goto(f"http://localhost:{port}")
                break
            except playwright.Error:
                self.page.wait_for_timeout(500)
        self.page.set_default_timeout(PATIENCE * SECONDS)

    def button(self, label: str) -> Any:
        return self.page.get_by_role("button", name=label, exact=True)

    def field(self, label: str) -> Any:
        """The input that stands behind its label."""
        return self.page.locator(f"xpath=//*[normalize-space(text())='{label}']/following::input[1]")

    def inputs(self, label: str) -> list[str]:
        """What the inputs behind all labels of these words hold."""
        fields = self.page.locator(f"xpath=//*[normalize-space(text())='{label}']/following::input[1]")
        return fields.evaluate_all("fields => fields.map(field => field.value)")

    def apply(self, prompt: str) -> None:
        self.field("Prompt").fill(prompt)
        self.button("Apply").click()

    def open(self, folder: str) -> None:
        """Open or close a folder of controls."""
        self.page.get_by_text(folder, exact=True).click()

    def type(self, label: str, words: str, place: int = 1) -> None:
        """Into the input of this number behind a label, and leave it."""
        field = self.page.locator(
            f"xpath=(//*[normalize-space(text())='{label}']/following::input[not(@type='hidden')])[{place}]"
        )
        field.fill(words)
        field.press("Tab")

    def wait_for(self, text: str) -> None:
        self.page.get_by_text(re.compile(text)).first.wait_for()

    def picture(self) -> Any:
        """The middle of the scene as it is shown."""
        return self.page.screenshot(clip={"x": 400, "y": 300, "width": 400, "height": 700})

    def wait_for_another(self, picture: Any) -> None:
        """Until the scene is drawn anew, and another."""
        wait_until(lambda: self.picture() != picture)

    def keep_picture(self, name: str) -> None:
        if PICTURES:
            self.page.wait_for_timeout(8 * SECONDS)  # first it is drawn coarsely
            self.page.screenshot(path=Path(PICTURES) / f"{name}.png")


CONTROLS = (
    "Apply", "Try", "Start", "Stop and keep", "More steps", "Undo", "Redo", "Edit on top",
    "Edit in a box only", "Box from crop",
)  # fmt: skip
"""The buttons of an edit that can still be worked on."""
SKETCH = "turn it into a pencil sketch"
CROP_CENTER, CROP_SCALE = (-0.1, 0.1, -0.2), (0.8, 0.9, 0.8)


def test_an_editing_session(browser: Any, scene: Path, tmp_path: Path) -> None:
    """Try four, take the second, edit, compare, undo, a second edit on top, one in a box, strength, stop and
    keep: every control by its label, in two tabs, of which one is closed in the middle."""
    options = [
        "csd-edit-tiny", "--load-dir", str(scene), "--output-dir", str(tmp_path), "--timestamp", "edit",
        "--experiment-name", "session", "--prompt", "make it night", "--max-num-iterations", str(STEPS),
        "--start-paused", "True", *([] if SCENE else SMALL),
    ]  # fmt: skip
    first, second, third = (
        tmp_path / "session" / "csd-edit-tiny" / name for name in ("edit", "edit+2", "edit+3")
    )
    at_the_start, at_the_end = f"[Ss]tep 0 of {STEPS}$", f"[Ss]tep {STEPS} of {STEPS}$"
    with command("train", *options, log=tmp_path / "log") as port:
        session = Session(browser, port)
        session.button("Start").wait_for()
        session.wait_for(at_the_start)
        session.keep_picture("at-first")
        assert session.page.get_by_text("Custom Elements").count() == 0
        for label in ("Stop and keep", "Redo"):
            assert not session.button(label).is_visible()
        for label in ("Undo", "Edit on top"):
            assert session.button(label).is_disabled()

        session.apply("   ")
        session.wait_for("The prompt is blank")
        session.field("Prompt").fill(SKETCH)
        assert config_of(first).pipeline.prompt == "make it night"  # letters are no prompt yet
        session.button("Apply").click()
        session.wait_for("from the next round on")
        assert config_of(first).pipeline.prompt == SKETCH
        session.apply("polar bear")
        session.wait_for("may not know 'polar bear'")
        session.apply(SKETCH)
        for name, value, most in (("text_guidance", 3.0, 15), ("image_guidance", 1.2, 5)):
            label = name.replace("_", " ").capitalize()
            for word in ("-", "-12", "99"):
                session.type(label, word)
                session.page.wait_for_timeout(SECONDS)
                assert 0 <= getattr(config_of(first).pipeline.objective, name) <= most
            session.type(label, str(value))
            wait_until(lambda: getattr(config_of(first).pipeline.objective, name) == value)  # noqa: B023

        session.open("Region")
        session.button("Box from crop").click()
        session.wait_for("There is no crop to take the box from")
        session.type("Box size", "0")
        session.wait_for("The box has no volume")
        session.type("Box center", "50")
        session.button("Edit in a box only").click()
        session.wait_for("Nothing of the scene lies in the box")
        session.page.get_by_text("The box has no volume").wait_for(state="hidden", timeout=10 * SECONDS)
        session.type("Box center", "0")
        session.open("Region")

        session.button("Try").click()
        session.wait_for("before any edit of the scene")
        assert all(session.button(f"Take {number}").is_visible() for number in (1, 2, 3, 4))
        assert session.page.get_by_role("img", name="Candidate 2").is_visible()
        session.keep_picture("tried")

        other = Session(browser, port)
        other.button("Take 2").click()
        other.wait_for("Candidate 2 is the edit")
        session.button("Start").click()
        session.page.close()
        other.button("Stop and keep").wait_for()
        assert other.button("Try").is_disabled() and not other.button("Start").is_visible()
        session = other
        session.wait_for("All steps are done")
        session.wait_for(at_the_end)
        assert config_of(first).machine.seed == 1 and not session.button("Take 2").is_visible()
        assert (first / "pictures" / "after.png").exists()
        edited = session.picture()
        session.field("Before and after").click()
        session.wait_for_another(edited)
        session.keep_picture("before-and-after")

        compared = session.picture()
        session.button("Undo").click()
        session.wait_for("this is the source")
        session.wait_for_another(compared)
        session.keep_picture("undone")
        session.button("Redo").click()
        session.wait_for(at_the_end)

        session.button("Edit on top").click()
        session.wait_for(at_the_start)
        session.apply("make it winter")
        session.button("Start").click()
        session.wait_for(at_the_end)
        width = session.button("Apply").bounding_box()["width"]
        session.open("History")
        session.wait_for("this edit")
        assert session.inputs("Look") == [viewer_command(scene), viewer_command(first)]
        assert session.button("Apply").bounding_box()["width"] == width
        session.keep_picture("on-top")
        assert config_of(first).pipeline.prompt == SKETCH

        session.button("Undo").click()
        session.wait_for("this is the source")
        session.open("Region")
        session.field("Crop Viewport").click()
        for place, (middle, length) in enumerate(zip(CROP_CENTER, CROP_SCALE, strict=True), start=1):
            session.type("Crop center", str(middle), place)
            session.type("Crop scale", str(length), place)
        session.keep_picture("crop")
        session.button("Box from crop").click()
        session.wait_for("size 0.8 0.9 0.8")
        session.field("Crop Viewport").click()
        session.button("Edit in a box only").click()
        session.wait_for("The edit shows in this box")
        session.type("Box rotation", "0.5")
        wait_until(lambda: "0.5" in session.page.get_by_text("The edit shows in this box").inner_text())
        session.keep_picture("box")
        session.button("Start").click()
        session.wait_for(at_the_end)

        session.type("Strength", "0.5")
        wait_until(lambda: config_of(third).pipeline.strength == 0.5)
        session.keep_picture("half-the-edit")
        session.type("Strength", "1")
        wait_until(lambda: config_of(third).pipeline.strength == 1.0)

        session.type("Steps", "500")
        session.button("More steps").click()
        session.wait_for(f"of {STEPS + 500}")
        session.button("Stop and keep").click()
        session.wait_for("Stopped after")
        session.keep_picture("stopped")
        session.button("Start").wait_for()
        session.page.close()
    prompts = [config_of(folder).pipeline.prompt for folder in (first, second, third)]
    assert prompts == [SKETCH, "make it winter", "make it winter"]
    for folder in (second, third):
        assert config_of(folder).pipeline.source_checkpoint.parent.parent == first
        assert (folder / "pictures" / "after.png").exists()
    region = config_of(third).pipeline.region
    assert region.source == "box" and region.box_rotation[0] == 0.5
    assert region.box_center == CROP_CENTER and region.box_size == CROP_SCALE
    assert (third / "pictures" / "region.png").exists() and not (second / "pictures" / "region.png").exists()
    (checkpoint,) = (third / "nerfstudio_models").glob("*.ckpt")
    assert STEPS <= int(checkpoint.stem.removeprefix("step-")) < STEPS + 499


def test_a_finished_edit_in_ns_viewer(browser: Any, scene: Path, tmp_path: Path) -> None:
    """What it was and what it is beside each other; nothing that cannot act."""
    folder = run(make_edit_config("csd-edit-tiny", tmp_path, scene)).base_dir
    options = ("--load-config", str(folder / "config.yml"))
    with command("viewer.run_viewer", *options, log=tmp_path / "log") as port:
        session = Session(browser, port)
        session.wait_for("make it night")
        for label in CONTROLS:
            assert session.button(label).count() == 0, label
        for label in ("Prompt", "Text guidance", "Image guidance", "Steps", "Strength", "Region"):
            assert session.page.get_by_text(label, exact=True).count() == 0, label
        session.open("History")
        session.wait_for("this edit")
        assert session.inputs("Look") == [viewer_command(scene)]
        session.page.wait_for_timeout(3 * SECONDS)
        edited = session.picture()
        session.field("Before and after").click()
        session.wait_for_another(edited)
        wait_until(lambda: session.inputs("Output render split") == ["rgb_before"])
        session.keep_picture("ns-viewer")
        compared = session.picture()
        session.field("Before and after").click()
        session.wait_for_another(compared)
        session.page.close()


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def config_of(folder: Path) -> Any:
    return read_config(folder / "config.yml")
