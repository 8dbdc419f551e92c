"""What a page quotes is text: prompts, paths, the names of methods in runs of others."""

from __future__ import annotations

import html.parser
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from csd_nerf.comparison.compare_settings import Budget, Instruction
from csd_nerf.comparison.jobs import Job, Measurement
from csd_nerf.comparison.plots import legend, plot
from csd_nerf.comparison.report import write_report
from csd_nerf.comparison.results import Row
from csd_nerf.demo.demo_settings import FULL, DemoSettings
from csd_nerf.editors.edit_page import write_page
from csd_nerf.pages import command_block, picture, wrapped

ODD = (
    "<script>alert(1)</script>",
    '" onmouseover="alert(1)" x="',
    "' onerror='alert(1)",
    "</pre></code></title><img src=x onerror=alert(1)>",
    'it\'s $(touch executed) `touch executed` "$HOME" ${title} $$ \\',
    "two\nlines --and --options",
)


class Reader(html.parser.HTMLParser):
    """What a browser would see: elements with their attributes' names, the text, and the commands."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, *(name for name, _ in attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


def edit_page(folder: Path, said: str) -> Reader:
    write_page(
        folder / "page.html",
        prompts=[said, said],
        intro=f"{said}.png was edited.",
        before=picture("data:,", "before", said),
        after=picture("data:,", "after", said),
        command=["csd-nerf", "image", f"{said}.png", "--prompt", said],
        settings={"prior": said, said: 1},
        seconds={said: 1.0},
    )
    return Reader((folder / "page.html").read_text(encoding="utf8"))


def report(folder: Path, said: str) -> Reader:
    """Of an edit that failed, and of one elsewhere whose run names its method so."""
    figures = {"change": {"after": 1.0, "before": None, "better": "higher", "unit": said, "network": said}}
    evaluation = {
        "figures": figures,
        "cost": {"seconds": 1.0, "unet_evaluations": 2, "device": said},
        "unavailable": {"clip": {"reason": said, "hint": said}},
        "prior": said,
        "source": said,
        "views": {
            "photos": [0],
            "width": 1,
            "height": 1,
            "short_baseline_degrees": [],
            "long_baseline_degrees": [],
        },
    }
    budget = Budget(10, "evaluations")
    rows = [
        Row(said, "csd-edit", 0, budget, "failed", said, "", None),
        Row(said, said, None, None, "measured", "", "given", evaluation),
    ]
    (folder / "pictures/source").mkdir(parents=True, exist_ok=True)
    (folder / "given").mkdir(exist_ok=True)
    for name in ("before-1.jpg", "turntable.mp4"):
        (folder / "pictures/source" / name).touch()
    for name in ("after-1.jpg", "turntable.mp4"):
        (folder / "given" / name).touch()
    scene = DemoSettings(data=None, prompt=said, prior="", train_steps=1, edit_steps=0, seed=0, sizes=FULL)
    stage = Measurement(
        folder,
        scene,
        key="one",
        pictures="given",
        arguments=("--run", said),
        frames=0,
        shared=("--text", said),
    )
    job = Job(Instruction(said), said, 0, (stage,), ((None, stage),))
    write_report(
        folder / "report.html", rows, [], [job], shlex.join(["csd-nerf", "compare", "--prompts", said])
    )
    return Reader((folder / "report.html").read_text(encoding="utf8"))


@pytest.mark.parametrize("said", ODD)
@pytest.mark.parametrize("page", [edit_page, report])
def test_nothing_that_is_quoted_is_markup(
    page: Callable[[Path, str], Reader], said: str, tmp_path: Path
) -> None:
    odd, plain = page(tmp_path, said), page(tmp_path, "make it night")
    assert odd.elements == plain.elements
    assert said in odd.text


@pytest.mark.parametrize("said", ODD)
def test_a_command_on_a_page_is_the_command(said: str) -> None:
    words = [f"{said}.png", "--prompt", said, "--output", f"/{said}/x"]
    block = Reader(command_block("Copy it", wrapped(["printf", r"%s\0", *words])))
    command = block.text.removeprefix("Copy itCopy")
    printed = subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True).stdout
    assert printed.split("\0")[:-1] == words


@pytest.mark.parametrize("said", ODD)
def test_a_plot_quotes_names(said: str) -> None:
    def drawn(name: str) -> Reader:
        points = {name: [[(0.0, 1.0), (1.0, 2.0)]]}
        colours = {name: "#123"}
        return Reader(plot(points, x=name, y=name, colours=colours) + legend(colours))

    assert drawn(said).elements == drawn("csd-edit").elements
    assert said in drawn(said).text


@pytest.mark.parametrize(("page", "file"), [(edit_page, "page.html"), (report, "report.html")])
def test_what_scrolls_is_reached_by_keyboard_and_what_is_shown_has_a_name(
    page: Callable[[Path, str], Reader], file: str, tmp_path: Path
) -> None:
    class Attributes(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            values = dict(attributes)
            if tag == "pre" or values.get("class") == "wide":
                assert values["tabindex"] == "0" and values["aria-label"]
            if tag == "img":
                assert values["alt"]
            assert tag != "a"  # the page may be sent alone

    page(tmp_path, "make it night")
    text = (tmp_path / file).read_text(encoding="utf8")
    Attributes().feed(text)
    assert "<pre" in text and "<img" in text and "<th></th>" not in text
