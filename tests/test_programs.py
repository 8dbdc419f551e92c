"""Programs end in words, on any console."""

from __future__ import annotations

import subprocess
import sys

BEGIN = "from csd_nerf.programs import begin_program\nbegin_program()\nbegin_program()\n"
FAULT = "InputError('the photo \u0444.jpg [bold] is gone', expected='it', got='none', hint='look')"


def ended(code: str, encoding: str = "utf-8") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", BEGIN + code],
        env={"PYTHONIOENCODING": encoding, "PATH": ""},
        capture_output=True,
    )


def test_an_input_error_that_nothing_catches_is_a_message() -> None:
    done = ended(f"from csd_nerf.errors import InputError\nraise {FAULT}")
    assert done.returncode == 2
    printed = done.stderr.decode()
    assert printed.startswith("Error: the photo \u0444.jpg [bold] is gone") and "Traceback" not in printed


def test_other_errors_are_shown_as_ever() -> None:
    done = ended("1 / 0")
    assert done.returncode == 1 and b"ZeroDivisionError" in done.stderr and b"Traceback" in done.stderr


def test_a_console_that_lacks_the_letters() -> None:
    done = ended(f"from csd_nerf.errors import InputError\nprint('\u0444')\nraise {FAULT}", encoding="cp1252")
    assert done.returncode == 2 and done.stdout.strip() == b"?"
    assert done.stderr.startswith(b"Error: the photo ?.jpg")
