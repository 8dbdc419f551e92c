"""A session in nerfstudio's viewer, with a real browser and a real `ns-train csd-edit-tiny`."""

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

from csd_nerf.nerf.closing_words import viewer_command
from csd_nerf.nerf.config_loader import read_config

playwright = pytest.importorskip("playwright.sync_api", reason="there is no Playwright to drive a browser")
SECONDS = 1000
PICTURES = os.environ.get("CSD_NERF_VIEWER_PICTURES")
"""A folder for screenshots, to look at."""


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
        for _ in range(600):  # until the command has loaded what it needs
            try:
                self.page.goto(f"http://localhost:{port}")
                break
            except playwright.Error:
                self.page.wait_for_timeout(500)
        self.page.set_default_timeout(300 * SECONDS)  # beside other programs, too

    def button(self, label: str) -> Any:
        return self.page.get_by_role("button", name=label, exact=True)

    def field(self, label: str) -> Any:
        """The input that stands behind its label."""
        return self.page.locator(f"xpath=//*[normalize-space(text())='{label}']/following::input[1]")

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
            self.page.wait_for_timeout(2 * SECONDS)
            self.page.screenshot(path=Path(PICTURES) / f"{name}.png")


SKETCH = "turn it into a pencil sketch"


def test_an_editing_session(browser: Any, scene_run: Path, tmp_path: Path) -> None:
    """Try four, take the second, edit, compare, undo, a second edit on top, one in a box, strength, stop and
    keep: every control by its label, in two tabs, of which one is closed in the middle."""
    options = [
        "csd-edit-tiny", "--load-dir", str(scene_run), "--output-dir", str(tmp_path), "--timestamp", "edit",
        "--prompt", "make it night", "--max-num-iterations", "12", "--start-paused", "True",
        "--pipeline.render-size", "32", "--pipeline.picture-size", "32", "--pipeline.turntable-frames", "2",
        "--pipeline.fits-per-round", "4",
    ]  # fmt: skip
    first, second, third = (
        tmp_path / "still_life" / "csd-edit-tiny" / name for name in ("edit", "edit+2", "edit+3")
    )
    with command("train", *options, log=tmp_path / "log") as port:
        session = Session(browser, port)
        session.button("Start").wait_for()
        session.wait_for("[Ss]tep 0 of 12")
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
        for word in ("-", "-12"):
            session.type("Text guidance", word)
            session.page.wait_for_timeout(SECONDS)
            assert 0 <= config_of(first).pipeline.objective.text_guidance <= 15
        session.type("Text guidance", "3")
        wait_until(lambda: config_of(first).pipeline.objective.text_guidance == 3.0)

        session.open("Region")
        session.button("Box from crop").click()
        session.wait_for("There is no crop to take the box from")
        session.type("Box size", "0")
        session.wait_for("The box has no volume")
        session.type("Box center", "50")
        session.button("Edit in a box only").click()
        session.wait_for("Nothing of the scene lies in the box")
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
        session.wait_for("[Ss]tep 12 of 12$")
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
        session.wait_for("[Ss]tep 12 of 12$")

        session.button("Edit on top").click()
        session.wait_for("[Ss]tep 0 of 12$")
        session.apply("make it winter")
        session.button("Start").click()
        session.wait_for("[Ss]tep 12 of 12$")
        session.open("History")
        session.wait_for(re.escape(viewer_command(first)))
        session.wait_for("this edit")
        session.keep_picture("on-top")
        assert config_of(first).pipeline.prompt == SKETCH

        session.button("Undo").click()
        session.wait_for("this is the source")
        session.open("Region")
        for place in (1, 2, 3):
            session.type("Box size", "20", place)
        session.button("Edit in a box only").click()
        session.wait_for("The edit shows in this box")
        session.type("Box rotation", "0.5")
        wait_until(lambda: "0.5" in session.page.get_by_text("The edit shows in this box").inner_text())
        session.keep_picture("box")
        session.button("Start").click()
        session.wait_for("[Ss]tep 12 of 12$")

        session.type("Strength", "0.5")
        wait_until(lambda: config_of(third).pipeline.strength == 0.5)
        session.keep_picture("half-the-edit")
        session.type("Strength", "1")
        wait_until(lambda: config_of(third).pipeline.strength == 1.0)

        session.type("Steps", "500")
        session.button("More steps").click()
        session.wait_for("of 512")
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
    assert region.source == "box" and region.box_size == (20.0, 20.0, 20.0) and region.box_rotation[0] == 0.5
    assert (third / "pictures" / "region.png").exists() and not (second / "pictures" / "region.png").exists()
    (checkpoint,) = (third / "nerfstudio_models").glob("*.ckpt")
    assert 12 <= int(checkpoint.stem.removeprefix("step-")) < 511


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def config_of(folder: Path) -> Any:
    return read_config(folder / "config.yml")
