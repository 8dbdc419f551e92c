"""Where output goes: checked before the work, and written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from csd_nerf.errors import InputError

LONGEST_NAME = 255
"""Bytes of a file's name, on most file systems."""

LOCK = ".lock"
"""In a folder that one process works on at a time."""

_held: dict[Path, FileLock] = {}
"""Locks of this process, which go with it, however it ends."""


def check_output(path: Path, suffixes: Collection[str], *, force: bool) -> None:
    """See that a file can be written, before the work that makes it.

    Args:
        path: where it is to be.
        suffixes: endings whose format can be written, lower case, such as ".png".
        force: it may replace a file that is there.

    Raises:
        InputError: another ending; a folder, or without `force` a file, of that name; its folder missing or
            not writable.
    """
    if path.suffix.lower() not in suffixes:
        raise InputError(
            f"the ending of {path.name} names no format that can be written",
            expected=", ".join(suffixes),
            got=path.suffix or "no ending",
            hint="choose another name for the output",
        )
    if path.is_dir():
        raise InputError(
            f"{path} is a folder",
            expected="a name for a file",
            got="a folder of that name",
            hint="choose another name for the output",
        )
    check_free(path, force=force)
    check_folder_writable(path.parent)


def check_free(path: Path, *, force: bool) -> None:
    """See that nothing is there that must not be replaced.

    Raises:
        InputError: something of that name, and no `force`.
    """
    if path.exists() and not force:
        raise InputError(
            f"{path} is already there",
            expected="a name that is free",
            got="an existing file" if path.is_file() else "an existing folder",
            hint="choose another name, or replace it with --force",
        )


def check_folder_writable(folder: Path) -> None:
    """See that files can be made in a folder.

    Raises:
        InputError: it is missing or not writable.
    """
    if not folder.is_dir():
        raise InputError(
            f"the folder {folder} is not there",
            expected="an existing folder to write to",
            got="a file of that name" if folder.exists() else "no such folder",
            hint=f"make it (`mkdir -p {shlex.quote(str(folder))}`) or choose another",
        )
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise write_failed(folder, error) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file under another name and give it its own only when it is whole.

    Yields:
        Where to write: in the same folder, with another name, whose ending may not be the path's. Whatever
        goes wrong, what was at `path` stays as it was and the partial file (or folder) is removed.

    Raises:
        InputError: the file system refuses, as it does when the disk is full.

    Example:
        >>> with whole_file(Path("night.jpg")) as partial:     # doctest: +SKIP
        ...     picture.save(partial, "JPEG")
    """
    # Of a process of one machine, so that several can write the same file in a folder that machines share.
    partial = beside(path, f"{socket.gethostname()}-{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except InputError:
        raise
    except OSError as error:
        raise write_failed(path, error) from error
    finally:
        remove(partial)


def beside(path: Path, ending: str) -> Path:
    """A hidden file in the same folder that belongs to another.

    Its name has the other's in it, or of a name that is too long for that a digest.

    Example:
        >>> beside(Path("out/night.png"), "unfinished")
        PosixPath('out/.night.png.unfinished')
    """
    name = f".{path.name}.{ending}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}.{ending}"
    return path.with_name(name)


def hold(lock: Path, *, of: Path, hint: str) -> None:
    """Keep a folder, or a file that is to be made, to this process until it ends.

    The system lets go of the lock when the process is no more, killed or not: none is left behind. It counts
    on one machine, and on several where their file system has locks.

    Args:
        lock: the file that is locked, which is made with its folder if it is not there.
        of: what is kept.
        hint: what to do when another process has it.

    Raises:
        InputError: another process has it; or its place is not writable.
    """
    if lock.resolve() in _held:
        return
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock, timeout=0)
        held.acquire()
    except Timeout as error:
        raise InputError(
            f"another process is working on {of}",
            expected="one at a time",
            got="a lock that is held",
            hint=hint,
        ) from error
    except OSError as error:
        raise write_failed(of, error) from error
    _held[lock.resolve()] = held


@contextmanager
def alone(lock: Path, *, of: Path, hint: str) -> Iterator[None]:
    """As `hold`, within the block only; of the lock nothing is left."""
    hold(lock, of=of, hint=hint)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        _held.pop(lock.resolve()).release()


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all.

    Raises:
        InputError: the file system refuses.
    """
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf8")


def remove(path: Path) -> None:
    """Remove a file or a folder with all in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_failed(path: Path, error: Exception) -> InputError:
    """What is said when something could not be written."""
    return InputError(
        f"{path} cannot be written",
        expected="a place with room, where this user may write",
        got=getattr(error, "strerror", None) or str(error).partition("\n")[0],
        hint="free some space or choose another place",
    )
