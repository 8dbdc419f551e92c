"""A sweep on Ray of which a worker and a machine are killed: is the report that of the sweep without Ray?

    python benchmarks/sweep_on_ray.py --output FOLDER --scenes SCENE_RUN SCENE_RUN

Every scene is edited by 3 instructions and 2 methods, by `csd-nerf compare`: one edit after another, and on a
cluster of two machines of one core each, which are two `ray start` on this one. On the first scene the worker
of an edit is killed (SIGKILL) once the edit has made a checkpoint; on the second, a machine and all that runs
on it. Results and reports should be the same but for times and peak memory. What was done is not done again.
Leaves `sweep.json` in `--output`.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import tyro

PROGRAMS = Path(sys.executable).parent
METHODS = ("csd-edit", "in2n-baseline")
OF_THE_MOMENT = ("seconds", "peak_memory_mib")
TIMES = re.compile(r"<tr><th>(?:time|peak memory \[MiB\])</th>.*?</tr>")
ADDRESS = Path("/tmp/ray/ray_current_cluster")
"""Of this machine's cluster. A head that is killed leaves it, and who asks for any cluster waits for that."""
AGENTS = ("dashboard-agent-grpc", "dashboard-agent-listen", "runtime-env-agent", "metrics-export")
Process: TypeAlias = "subprocess.Popen[bytes]"


@dataclass
class Options:
    """What to edit, and how much."""

    output: Path
    """Folder for both sweeps."""
    scenes: tuple[Path, Path]
    """Run folders of trained scenes."""
    prompts: tuple[str, ...] = ("make it night", "make it winter", "make it autumn")
    """Instructions."""
    evaluations: int = 240
    """Of the U-Net, for each edit."""


def main(options: Options) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # as Ray has it for tasks of one core
    options.output.mkdir(parents=True, exist_ok=True)
    for scene in options.scenes:
        wait_for(begun(options, "alone", scene))
    outcome = []
    with machines() as (address, places):
        for scene, kill in zip(options.scenes, (kill_a_worker, kill_a_machine), strict=True):
            name = name_of(scene)
            command = begun(options, "on_ray", scene, "--ray", address, "--memory-per-edit", "1")
            killed = kill(options.output / "on_ray" / name, command, places)
            at_a_time = most_at_a_time(command, places)
            wait_for(command)
            found = difference(options.output / "alone" / name, options.output / "on_ray" / name)
            outcome.append({"killed": killed, "most_commands_at_a_time": at_a_time, **found})
            print(json.dumps(outcome[-1], indent=1), flush=True)
            (options.output / "sweep.json").write_text(json.dumps(outcome, indent=1) + "\n")


def wait_for(command: Process) -> None:
    if command.wait():
        raise SystemExit(f"{command.args} ended with status {command.returncode}")


def begun(options: Options, kind: str, scene: Path, *more: str) -> Process:
    """A sweep of a scene, under way. In the folder of its kind, so that the words of both are the same."""
    folder = options.output / kind
    folder.mkdir(exist_ok=True)
    words = ["compare", "--output", name_of(scene), "--load-dir", str(scene.resolve())]
    words += ["--prompts", *options.prompts, "--methods", *METHODS, "--seeds", "0"]
    words += ["--evaluations", str(options.evaluations), "--recipe", "tiny"]
    words += ["--views", "3", "--turntable-frames", "4", *more]
    return subprocess.Popen([PROGRAMS / "csd-nerf", *words], cwd=folder)


def name_of(scene: Path) -> str:
    """As its experiment is called: run folders are experiment/method/timestamp."""
    return scene.resolve().parents[1].name


@contextmanager
def machines() -> Iterator[tuple[str, list[Process]]]:
    """Two, of one core each, the head's first: the address of their cluster, and they."""
    import ray

    os.environ["PYTHONUNBUFFERED"] = "1"
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else a head has it if there is a token, and others do not
    host = ray.util.get_node_ip_address()
    port = free_port()
    address, head = f"{host}:{port}", ["--head", "--port", str(port)]
    started: list[Process] = []
    try:
        for place in ([*head, "--include-dashboard", "false"], ["--address", address]):
            words = [PROGRAMS / "ray", "start", *place, "--num-cpus", "1", "--num-gpus", "0"]
            words += ["--memory", str(2**32), "--object-store-memory", str(10**8), "--block"]
            for port_of in AGENTS:  # else Ray waits for them, half a minute at most
                words += [f"--{port_of}-port", str(free_port())]
            started.append(subprocess.Popen(words, start_new_session=True, stdout=subprocess.PIPE))
            wait_until_it_runs(started[-1])
        yield address, started
    finally:
        for machine in reversed(started):
            end(machine)
        ADDRESS.unlink(missing_ok=True)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def wait_until_it_runs(machine: Process) -> None:
    assert machine.stdout is not None
    if not any(b"Ray runtime started" in line for line in machine.stdout):
        raise SystemExit(f"{machine.args} ended with status {machine.wait()}")


def end(machine: Process) -> None:
    """Kill a machine, and all that runs on it, at once."""
    if machine.poll() is None:
        for process in [*psutil.Process(machine.pid).children(recursive=True), psutil.Process(machine.pid)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        machine.wait()


def kill_a_worker(folder: Path, command: Process, places: Sequence[Process]) -> str:
    """Kill the first worker whose edit has made a checkpoint; the edit."""
    edit, name = wait_for_an_edit(folder, command, places)
    worker = edit.parent()
    assert worker is not None and worker.name().startswith("ray::")
    worker.kill()
    return f"the worker of {name}"


def kill_a_machine(folder: Path, command: Process, places: Sequence[Process]) -> str:
    """Kill the second machine when an edit on it has made a checkpoint; the edit."""
    _, name = wait_for_an_edit(folder, command, places[1:])
    end(places[1])
    return f"the machine of {name}"


def wait_for_an_edit(folder: Path, command: Process, places: Sequence[Process]) -> tuple[psutil.Process, str]:
    """An edit that is under way and has made a checkpoint, and the name of its run.

    Args:
        folder: of the sweep.
        command: that runs it.
        places: on one of which the edit is to be.
    """
    while command.poll() is None:
        time.sleep(0.2)
        for process, words in commands_under_way(places):
            if "--experiment-name" in words:
                method = next(word for word in words if word in METHODS)
                run = Path("runs", words[words.index("--experiment-name") + 1], method, "seed-0")
                if list((folder / run / "nerfstudio_models").glob("*.ckpt")):
                    return process, str(run)
    raise SystemExit(f"{folder} ended before anything could be killed")


def most_at_a_time(command: Process, places: Sequence[Process]) -> int:
    """How many commands of edits were under way at once, at most, until the sweep ended."""
    most = 0
    while command.poll() is None:
        time.sleep(0.2)
        most = max(most, len(list(commands_under_way(places))))
    return most


def commands_under_way(places: Sequence[Process]) -> Iterator[tuple[psutil.Process, list[str]]]:
    """What the workers of some machines run, and its words."""
    for place in places:
        if place.poll() is None:
            for worker in psutil.Process(place.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if worker.name().startswith("ray::_work"):
                        yield from ((command, command.cmdline()) for command in worker.children())


def difference(alone: Path, on_ray: Path) -> dict[str, Any]:
    """What differs between the two sweeps of a scene."""
    one, other = (json.loads((folder / "results.json").read_text()) for folder in (alone, on_ray))
    figures = list(zip(numbers_of(one), numbers_of(other), strict=True))
    return {
        "scene": alone.name,
        "measured": sum(row["status"] == "measured" for row in other["rows"]),
        "edits": len(one["rows"]),
        "figures": len(figures),
        "figures_that_differ": sum(a != b for a, b in figures),
        "largest_relative_difference": max(abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in figures),
        "results_are_the_same": without_times(one) == without_times(other),
        "reports_are_the_same": page_without_times(alone) == page_without_times(on_ray),
    }


def without_times(results: Any) -> Any:
    """Results without what depends on who else was at work."""
    if isinstance(results, dict):
        return {name: without_times(value) for name, value in results.items() if name not in OF_THE_MOMENT}
    return [without_times(value) for value in results] if isinstance(results, list) else results


def numbers_of(results: Any) -> list[float]:
    """All numbers of some results, in their order, without those that depend on who else was at work."""
    rest = without_times(results)
    if isinstance(rest, dict | list):
        values = rest.values() if isinstance(rest, dict) else rest
        return [number for value in values for number in numbers_of(value)]
    return [float(rest)] if isinstance(rest, int | float) else []


def page_without_times(folder: Path) -> str:
    """The report, with its pictures and videos."""
    return TIMES.sub("", (folder / "report.html").read_text())


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
