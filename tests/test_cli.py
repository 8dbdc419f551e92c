"""The `csd-nerf` command: what it refuses, how it exits, and that it is quick to ask."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from csd_nerf.cli import main


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """`main` is made for a process of its own and leaves its handler in place."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def exit_status(*arguments: str) -> Any:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code


def test_help_lists_the_subcommands_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from csd_nerf.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print('loaded:', {'torch', 'nerfstudio', 'diffusers', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "demo" in done.stdout
    assert "loaded: set()" in done.stdout


def test_nothing_of_ray_is_needed_or_imported() -> None:
    code = (
        "import sys\n"
        "sys.modules['ray'] = None  # whoever imports it fails, as without the extra\n"
        "from csd_nerf.cli import main\n"
        "try: main(['compare', '--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print('loaded:', [name for name in sys.modules if name.partition('.')[0] == 'ray'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--ray" in done.stdout and "loaded: ['ray']" in done.stdout


@pytest.mark.parametrize("arguments", [(), ("no-such-command",), ("demo", "--no-such-option")])
def test_what_is_no_command_is_refused(arguments: tuple[str, ...], capsys: Any) -> None:
    assert exit_status(*arguments) == 2


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--prompt", " "), ["the prompt is empty"]),
        (("--data", "nowhere"), ["no dataset at", "nowhere", "no such folder", "ns-process-data"]),
        (("--data", "."), ["without transforms.json"]),
        (("--prior", "no-such-prior"), ["no such prior", "no-such-prior"]),
        (("--prior", "somebody/some-model"), ["does not fetch", "hf download somebody/some-model"]),
        (("--prior", "."), ["missing parts", "model_index.json"]),
        (("--train-steps", "0"), ["--train-steps is too small", "at least 1"]),
        (("--edit-steps", "-3"), ["--edit-steps is too small", "-3"]),
        (("--seed", "-1"), ["--seed is too small"]),
        (("--output", "a_file"), ["a_file cannot be written", "File exists"]),
        (("--output", "a_folder"), ["a_folder is not a folder of this demo", "notes.txt"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_options_are_refused_before_any_work(
    arguments: tuple[str, ...],
    parts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a_file").touch()
    Path("a_folder").mkdir()
    Path("a_folder/notes.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    assert exit_status("demo", *arguments) == 2
    printed = capsys.readouterr().err
    for part in ("Error:", "expected:", "got:", "do this:", *parts):
        assert part in printed
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_it_stops_its_commands(sent: signal.Signals, status: int, tmp_path: Path) -> None:
    code = "import sys; from csd_nerf.cli import main; main(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "demo", "--output", "pictures of a table"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Ctrl-C must reach it even where the tests themselves run in the background, which ignores it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert "[1/4] Render the still life" in process.stdout.readline()
    process.send_signal(sent)
    # The output ends when everything that could write to it has ended.
    try:
        printed, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status
    assert "Traceback" not in errors
    assert not (tmp_path / "pictures of a table" / "scene").exists()
    if sent == signal.SIGINT:
        assert "To go on:" in printed
        assert "csd-nerf demo --output 'pictures of a table'" in printed
