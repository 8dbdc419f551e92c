"""The demo end to end at its smallest, and its parts: commands, resuming, failures, the page."""

from __future__ import annotations

import base64
import html
import html.parser
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from csd_nerf.demo.child import CommandFailed, failure_lines, run_command, step_of
from csd_nerf.demo.demo_command import Demo, defaults
from csd_nerf.demo.demo_page import _after_of_sheet, write_page
from csd_nerf.demo.demo_settings import FULL, DemoSettings, Progress, Sizes, command_line, open_folder
from csd_nerf.demo.stages import EDIT_RUN, PICTURES, SCENE_RUN, stages_of
from csd_nerf.errors import InputError
from csd_nerf.files import LOCK
from csd_nerf.nerf.methods import METHODS
from csd_nerf.nerf.sheets import save_png, sheet
from csd_nerf.pages import wrapped
from csd_nerf.scenes.dataset import write_dataset

MINIATURE = Sizes(
    views=10,
    size=32,
    picture_size=32,
    turntable_size=16,
    turntable_frames=2,
    train_arguments=("--pipeline.datamanager.train-num-rays-per-batch", "256"),
    edit_arguments=(
        *("--pipeline.render-size", "32", "--pipeline.picture-size", "32"),
        *("--pipeline.steps-per-picture", "2", "--pipeline.fits-per-round", "2"),
        *("--pipeline.datamanager.train-num-rays-per-batch", "256"),
    ),
)


def settings(**changes: Any) -> DemoSettings:
    values = {
        "data": None,
        "prompt": "make it autumn",
        "prior": "tiny-instruct",
        "train_steps": 900,
        "edit_steps": 90,
        "seed": 0,
        "sizes": FULL,
    }
    return DemoSettings(**{**values, **changes})


# -------------------------------------------------------------------- end to end


def demo(output: Path, **changes: Any) -> Demo:
    return Demo(output, prompt="make it night", train_steps=20, edit_steps=4, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the smallest demo leaves."""
    output = tmp_path_factory.mktemp("demo") / "miniature"
    demo(output).run(MINIATURE)
    return output


class Links(html.parser.HTMLParser):
    """Everything that a page refers to, and its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attributes if name in ("src", "href", "poster", "srcset", "data")
        ]


def test_it_leaves_a_page_that_needs_nothing_else(folder: Path) -> None:
    page = (folder / "index.html").read_text(encoding="utf8")
    links = Links(page)
    files = {address for address in links.addresses if not address.startswith("data:")}
    assert not files  # the page may be sent alone
    assert "http:" not in page and "https:" not in page and "url(" not in page and "@import" not in page
    assert "default-src 'none'" in page


def test_the_page_has_what_it_promises(folder: Path) -> None:
    page = (folder / "index.html").read_text(encoding="utf8")
    links = Links(page)
    assert "<q>make it night</q>" in page
    assert links.tags.count("video") == 1 and "data:video/mp4;base64," in page
    assert page.count('type="range"') == 1
    assert page.count('<button type="button" aria-pressed=') == 1  # one view of ten is held out
    for caption in ("before", "2 steps", "4 steps"):
        assert f"<figcaption>{caption}</figcaption>" in page
    assert "Against the exact edit" in page and "ns-viewer --load-config" in page
    for row in ("Render the still life (10 pictures)", "Train the scene (20 steps)", "In all"):
        assert row in page
    for package in ("csd-nerf", "nerfstudio", "torch", "diffusers", "transformers", "Python"):
        assert f"<th>{package}</th>" in page
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page


ODD_PROMPTS = (
    'make it "night" <now> & $here\n',
    "it's `touch executed`; $(touch executed) && touch executed #",
    "night\ntouch executed\n'\ntouch executed\n'",
    "<script>alert('night')</script> </pre></code> <!-- \\",
)


@pytest.mark.parametrize("prompt", ODD_PROMPTS)
def test_a_prompt_is_text_wherever_it_stands(prompt: str, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "it's a $(touch executed) copy"
    shutil.copytree(folder, copy)
    tags = []
    for said in (prompt, "make it night"):
        odd = settings(prompt=said, sizes=MINIATURE)
        stages = stages_of(copy, odd)
        write_page(copy, odd, stages, Progress(copy), command_line(copy, odd.as_json(), defaults()))
        page = (copy / "index.html").read_text(encoding="utf8")
        assert html.escape(said) in page
        tags.append(Links(page).tags)
        commands = run_with_stubs(copy / "commands.sh", tmp_path)
        assert commands == [stage.command() for stage in stages]
    assert tags[0] == tags[1]
    assert not [*tmp_path.rglob("executed")]


def run_with_stubs(script: Path, folder: Path) -> list[list[str]]:
    """The commands of a demo's script, which are noted and not run."""
    stubs, said = folder / "stubs", folder / "said"
    stubs.mkdir(exist_ok=True)
    said.unlink(missing_ok=True)
    for name in ("python", "ns-train", "csd-nerf"):
        stub = stubs / name
        stub.write_text(f'#!/bin/sh\nprintf "%s\\0" {name} "$@" >> {said}\nprintf "\\1" >> {said}\n')
        stub.chmod(0o755)
    path = f"{stubs}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", script], check=True, cwd=folder, env={**os.environ, "PATH": path})
    return [words.split("\0")[:-1] for words in said.read_text().split("\1")[:-1]]


def test_it_leaves_pictures_commands_and_logs(folder: Path) -> None:
    drawn = {picture.name for picture in (folder / PICTURES).iterdir()}
    assert {"before-1.png", "after-1.png", "before-after.png", "truth-1.png", "turntable.mp4"} <= drawn
    assert Image.open(folder / PICTURES / "after-1.png").size == (32, 32)
    script = (folder / "commands.sh").read_text(encoding="utf8")
    subprocess.run(["sh", "-n", folder / "commands.sh"], check=True)
    logs = {log.stem: log.read_text(encoding="utf8") for log in (folder / "logs").iterdir()}
    assert set(logs) == {"scene", "train", "edit", "pictures"}
    for stage in stages_of(folder, demo(folder).check(MINIATURE)):
        # What the script says is what was run.
        assert wrapped(stage.command()) in script
        assert logs[stage.key].startswith(f"$ {shlex.join(stage.command())}\n")
    assert "Training Finished" in logs["edit"] and "\x1b" not in "".join(logs.values())
    assert [file.name for file in folder.iterdir() if file.name.startswith(".")] == [LOCK]


def test_a_rerun_does_nothing_twice(folder: Path, capsys: Any) -> None:
    before = (folder / "progress.json").read_text()
    (folder / "index.html").unlink()
    demo(folder).run(MINIATURE)
    assert capsys.readouterr().out.count("done before") == 4
    assert (folder / "progress.json").read_text() == before
    assert (folder / "index.html").exists()


def test_a_rerun_with_other_settings_is_refused(folder: Path) -> None:
    with pytest.raises(InputError) as refusal:
        demo(folder, seed=3).run(MINIATURE)
    assert "--seed 0" in refusal.value.expected and "--seed 3" in refusal.value.got
    assert "--prompt" not in refusal.value.expected
    assert "--prompt 'make it night'" in refusal.value.hint and "--train-steps 20" in refusal.value.hint


def test_the_edit_has_the_steps_of_its_method() -> None:
    edit = METHODS["csd-edit-tiny"]
    assert defaults()["edit_steps"] == edit.max_num_iterations == 10 * edit.pipeline.fits_per_round


# -------------------------------------------------------------------- a stage that fails


def test_a_failing_stage_is_reported_with_its_log(tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "demo"
    open_folder(output, demo(output).check(MINIATURE), defaults())
    (output / "scene").mkdir()  # half a dataset, which the stage will not overwrite
    with pytest.raises(SystemExit) as stop:
        demo(output).run(MINIATURE)
    assert stop.value.code == 2
    printed = capsys.readouterr().out
    assert "Failed: scene (exit status 2)" in printed
    assert "is there already" in printed
    assert str(output / "logs" / "scene.log") in printed and "csd-nerf demo --output" in printed
    assert json.loads((output / "progress.json").read_text())["scene"]["runs"] == 1


def python(code: str) -> list[str]:
    return ["python", "-c", code]


def test_a_failed_command_gives_the_reason_and_keeps_everything_in_the_log(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "print('\\r\\x1b[12A\\x1b[1K\\r20 (66.67%)    597.6 ms    5 s, 976 ms')\n"
        "print('Error: no such thing\\n  expected: one', file=sys.stderr)\n"
        "print('  got:      none\\n  do this:  make one', file=sys.stderr)\n"
        "print('Trainer.train_iteration: 0.58')\n"
        "sys.exit(2)"
    )
    lines: list[str] = []
    log = tmp_path / "logs" / "it.log"
    with pytest.raises(CommandFailed) as failure:
        run_command(python(code), folder=tmp_path, log=log, watch=lines.append)
    assert failure.value.status == 2 and failure.value.log == log
    assert [line.split()[0] for line in failure.value.lines] == ["Error:", "expected:", "got:", "do"]
    assert 20 in map(step_of, lines)
    logged = log.read_text()
    assert logged.startswith("$ python -c ") and "train_iteration" in logged and "\x1b" not in logged


def test_without_a_message_the_last_lines_that_mean_something_are_the_reason() -> None:
    traceback = ["Traceback (most recent call last):", '  File "a.py", line 3, in f', "ValueError: it broke"]
    noise = ["", "╭────╮", "│ Config File │ x │", "100 (6.67%)  206.6 ms", "Printing profiling stats, ..."]
    assert failure_lines([*noise, *traceback, *noise, "Trainer.train_iteration: 0.58"]) == traceback


def test_an_interruption_ends_the_command(tmp_path: Path) -> None:
    seen: list[int] = []

    def interrupt(line: str) -> None:
        seen.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_command(
            python("import os, time; print(os.getpid()); time.sleep(60)"),
            folder=tmp_path,
            log=tmp_path / "log",
            watch=interrupt,
        )
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)


# -------------------------------------------------------------------- going on


def save_checkpoint(run: Path, step: int, *, whole: bool = True) -> None:
    file = run / "nerfstudio_models" / f"step-{step:09d}.ckpt"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"step": step}, file)
    if not whole:
        file.write_bytes(file.read_bytes()[:-30])
    assert zipfile.is_zipfile(file) == whole


def value_of(option: str, command: list[str]) -> str:
    return command[command.index(option) + 1]


def test_stages_are_done_when_what_they_write_last_is_there(tmp_path: Path) -> None:
    render, _, _, draw = stages_of(tmp_path, settings())
    for stage, file in ((render, "scene/transforms.json"), (draw, "pictures/turntable.mp4")):
        assert not stage.finished() and stage.next_command() == (stage.command(), 0)
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
        assert stage.finished()


def test_an_interrupted_training_goes_on_from_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    train = stages_of(tmp_path, settings())[1]
    assert train.next_command() == (train.command(), 0)
    assert value_of("--max-num-iterations", train.command()) == "900"
    save_checkpoint(tmp_path / SCENE_RUN, 200)
    save_checkpoint(tmp_path / SCENE_RUN, 400, whole=False)
    command, start = train.next_command()
    assert start == 201 and not train.finished()
    assert value_of("--load-checkpoint", command) == f"{SCENE_RUN}/nerfstudio_models/step-000000200.ckpt"
    assert value_of("--max-num-iterations", command) == str(900 - 201)
    assert command[8:] == train.command()[6:]  # the same folder, seed and so on
    save_checkpoint(tmp_path / SCENE_RUN, 899)
    assert train.finished()


def test_an_interrupted_edit_goes_on_with_its_own_settings(tmp_path: Path) -> None:
    edit = stages_of(tmp_path, settings())[2]
    assert value_of("--load-dir", edit.command()) == SCENE_RUN
    save_checkpoint(tmp_path / EDIT_RUN, 25)
    command, start = edit.next_command()
    assert start == 26 and not edit.finished()
    assert value_of("--load-dir", command) == EDIT_RUN and "--prompt" not in command
    assert value_of("--max-num-iterations", command) == "90"
    save_checkpoint(tmp_path / EDIT_RUN, 89)
    assert edit.finished()


def test_steps_are_read_from_nerfstudio_s_table() -> None:
    assert step_of("100 (6.67%)         206.6 ms       4 m, 49 s") == 100
    assert step_of("Loading weights: 36 (100%)") is None and step_of("Step (% Done)") is None


def test_a_capture_without_enough_views_is_refused_at_once(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "small", views=4, size=8)
    with pytest.raises(InputError, match=r"too few frames[\s\S]*at least 8[\s\S]*4"):
        demo(tmp_path / "out", data=data).check(MINIATURE)


def test_a_scene_of_one_s_own_is_not_rendered() -> None:
    stages = stages_of(Path("demo"), settings(data="/captures/bear"))
    assert [stage.key for stage in stages] == ["train", "edit", "pictures"]
    assert value_of("--data", stages[0].command()) == "/captures/bear"
    assert "--known-edits" not in stages[-1].command()


# -------------------------------------------------------------------- the folder


def test_a_folder_is_for_one_set_of_settings(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "demo"
    open_folder(folder, settings(), defaults())
    open_folder(folder, settings(), defaults())
    with pytest.raises(InputError, match=r"--edit-steps 90[\s\S]*--edit-steps 50[\s\S]*or go on with it"):
        open_folder(folder, settings(edit_steps=50), defaults())
    with pytest.raises(InputError, match="other settings") as refusal:
        open_folder(folder, settings(sizes=MINIATURE), defaults())
    assert "go on" not in refusal.value.hint  # no options lead there


def test_settings_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(InputError, match="settings.json cannot be read"):
        open_folder(tmp_path, settings(), defaults())
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(InputError, match="settings.json cannot be read"):
        open_folder(tmp_path, settings(), defaults())


# -------------------------------------------------------------------- the page's parts


def test_the_course_shows_the_edited_view_of_every_sheet(tmp_path: Path) -> None:
    before, after = torch.zeros(2, 3, 12, 20), torch.stack([torch.full((3, 12, 20), x) for x in (0.6, 1.0)])
    save_png(sheet([before[:1]]), tmp_path / PICTURES / "before-1.png")
    save_png(sheet([before, after]), tmp_path / "sheet.png")
    picture = Image.open(io.BytesIO(base64.b64decode(_after_of_sheet(tmp_path / "sheet.png", tmp_path)[22:])))
    assert picture.size == (20, 12) and picture.getextrema() == ((153, 153),) * 3


def test_commands_are_wrapped_for_the_shell() -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; print(sys.argv[1:])",
        "--a",
        "it's $HOME",
        "--b-long" * 9,
        "c",
    ]
    text = wrapped(command)
    assert re.search(r" \\\n  --", text)
    said = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(command[3:])
