"""Files are written whole or not at all, by one process at a time."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from csd_nerf.errors import InputError
from csd_nerf.files import LOCK, alone, beside, hold, write_text

HOLDS = """
import sys, time
from pathlib import Path
from csd_nerf.files import LOCK, hold
folder = Path(sys.argv[1])
hold(folder / LOCK, of=folder, hint="wait")
hold(folder / LOCK, of=folder, hint="wait")  # its own
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_is_one_processes_until_it_ends_however_it_does(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    other = subprocess.Popen([sys.executable, "-c", HOLDS, folder], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another process is working on"):
            hold(folder / LOCK, of=folder, hint="wait")
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    hold(folder / LOCK, of=folder, hint="wait")


def test_of_a_lock_for_a_while_nothing_is_left(tmp_path: Path) -> None:
    for _ in range(2):
        with alone(tmp_path / "x.lock", of=tmp_path, hint="wait"):
            assert (tmp_path / "x.lock").exists()
        assert not any(tmp_path.iterdir())


def test_where_nothing_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        hold(tmp_path / "file" / "run" / LOCK, of=tmp_path / "file" / "run", hint="wait")


@pytest.mark.parametrize("name", ["night.png", "\u0444" * 114 + ".png", "n" * 250 + ".png"])
def test_long_names_can_be_written(name: str, tmp_path: Path) -> None:
    write_text(tmp_path / name, "content")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    unfinished = beside(tmp_path / name, "unfinished")
    unfinished.touch()
    assert unfinished != tmp_path / name and unfinished == beside(tmp_path / name, "unfinished")
