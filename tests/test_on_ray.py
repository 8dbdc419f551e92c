"""Jobs on Ray, of commands that take a moment: when a worker or a machine dies, or a command fails."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from rich.console import Console

from csd_nerf.comparison.live import LiveTable
from csd_nerf.comparison.on_ray import Cluster, Letter, Needs, _work
from csd_nerf.demo import child
from csd_nerf.demo.demo_settings import Progress
from csd_nerf.demo.stages import Stage

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "clusters.md").read_text(encoding="utf8")
COUNT = """
import pathlib, sys, time
file, last = pathlib.Path(sys.argv[1]), int(sys.argv[2])
for step in range(int(file.read_text()) if file.exists() else 0, last):
    while step == 2 and not pathlib.Path("something-is-dead").exists():
        time.sleep(0.01)
    file.write_text(str(step + 1))
    print(f"{step} ({step / last:.2%})", flush=True)
sys.exit("Error: there is no number after 5" if last > 5 else 0)
"""


@dataclass(frozen=True)
class Counting(Stage):
    """Counts in a file, and goes on from the number in it."""

    key: str = ""
    total: int = 5

    title = "count"

    def command(self) -> list[str]:
        return ["python", "-c", COUNT, f"{self.key}.txt", str(self.total)]

    def finished(self) -> bool:
        return self._reached() == self.total

    def next_command(self) -> tuple[list[str], int]:
        return self.command(), self._reached()

    def _reached(self) -> int:
        file = self.folder / f"{self.key}.txt"
        return int(file.read_text()) if file.exists() else 0


class KillsOne(LiveTable):
    """Kills what runs a command that has made a step, once.

    Args:
        folder: of the jobs.
        kill: kills what runs a command, or leaves it alone; returns whether it did.
    """

    def __init__(self, folder: Path, kill: Callable[[psutil.Process], bool]) -> None:
        super().__init__([], [], Console(quiet=True))
        self.begun: list[tuple[int | None, int]] = []
        self._kill, self._sign = kill, folder / "something-is-dead"

    def begin(self, job: int | None, stage: Stage, start: int) -> None:
        self.begun.append((job, start))

    def update(self, job: int | None, stage: Stage, steps: float) -> None:
        if not self._sign.exists():
            processes = psutil.Process().children(recursive=True)
            (command,) = [process for process in processes if f"{stage.key}.txt" in process.cmdline()]
            if self._kill(command):
                psutil.wait_procs([command], timeout=60)
                self._sign.touch()


@pytest.fixture(scope="module")
def machines() -> Iterator[Any]:
    """A cluster of one machine of one core, to which others can be added; all of them are this one."""
    pytest.importorskip("ray", reason="needs csd-nerf[cluster]")
    from ray.cluster_utils import Cluster as Machines

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray-") as folder:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # workers are to know this file
        patch.setenv("RAY_TMPDIR", folder)  # where this machine's cluster is looked for
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else some ask for a token that others do not send
        started = Machines()
        try:
            started.add_node(num_cpus=1, include_dashboard=False, **ports())
            yield started
        finally:
            started.shutdown()


def ports() -> dict[str, int]:
    """Of a machine's agents. Ray would else wait for them to find some, and give up where all is slow."""
    names = ("metrics_agent", "dashboard_agent_listen", "runtime_env_agent", "metrics_export")
    with ExitStack() as stack:
        free = [stack.enter_context(socket.create_server(("", 0))) for _ in names]
        return {f"{name}_port": port.getsockname()[1] for name, port in zip(names, free, strict=True)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of jobs."""
    (tmp_path / "settings.json").touch()
    return tmp_path


def test_a_job_whose_worker_died_goes_on_and_one_that_fails_is_not_tried_again(
    machines: Any, folder: Path
) -> None:
    def kill_the_worker(command: psutil.Process) -> bool:
        worker = command.parent()
        assert worker is not None and worker.name().startswith("ray::")
        worker.kill()
        return True

    settings: Any = None  # of a demo, which this is not
    jobs = {
        0: (Counting(folder, settings, "first"), Counting(folder, settings, "second", 2)),
        1: (Counting(folder, settings, "third", 6), Counting(folder, settings, "fourth", 2)),
    }
    outcomes: dict[int, str | None] = {}
    table, progress = KillsOne(folder, kill_the_worker), Progress(folder)
    with Cluster(None, Needs(gpus=0, cpus=1, memory=0.1)) as cluster:
        cluster.carry_out(jobs, progress, table, outcomes.__setitem__)

    assert outcomes[0] is None and all(stage.finished() for stage in jobs[0])
    reason = str(outcomes[1])
    assert "there is no number after 5" in reason and str(folder / "logs" / "third.log") in reason
    assert not (folder / "fourth.txt").exists()
    records = Progress(folder).records
    assert records.keys() == {"first", "second", "third"} and all(
        time.seconds > 0 for time in records.values()
    )
    assert sorted(start for _, start in table.begun) == [0, 0, 0, 2], "one went on from where its files ended"


def test_a_job_whose_machine_died_goes_on_at_another(machines: Any, folder: Path) -> None:
    other = machines.add_node(num_cpus=1, **ports())
    (raylet,) = other.all_processes["raylet"]  # whose children are the workers of that machine

    def kill_the_other(command: psutil.Process) -> bool:
        if raylet.process.pid not in [process.pid for process in command.parents()]:
            return False
        machines.remove_node(other, allow_graceful=False)
        return True

    settings: Any = None
    jobs = {number: (Counting(folder, settings, name),) for number, name in enumerate(("first", "second"))}
    outcomes: dict[int, str | None] = {}
    table, progress = KillsOne(folder, kill_the_other), Progress(folder)
    with Cluster(machines.address, Needs(gpus=0, cpus=1, memory=0.1)) as cluster:
        cluster.carry_out(jobs, progress, table, outcomes.__setitem__)

    assert outcomes == {0: None, 1: None} and all(stage.finished() for (stage,) in jobs.values())
    job, start = table.begun[-1]
    assert start == 2, "it went on from where its files ended"
    assert sorted(table.begun) == sorted([(0, 0), (1, 0), (job, 2)])


def test_a_worker_waits_for_nobody_and_leaves_its_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray lends the cores of a worker that waits for an answer to other jobs."""
    monkeypatch.setitem(sys.modules, "ray", None)  # of which it would ask for the answer
    monkeypatch.setattr(child, "_begin", None)
    settings: Any = None
    job = tuple(Counting(tmp_path, settings, name, 2) for name in ("first", "second"))
    letters: list[Letter] = []
    mailbox = SimpleNamespace(put=SimpleNamespace(remote=letters.append))
    assert f"{tmp_path} is not there" in str(_work(0, job, mailbox).reason)
    (tmp_path / "settings.json").touch()
    (tmp_path / "first.txt").write_text("2")

    outcome = _work(0, job, mailbox)
    assert outcome.reason is None and all(stage.finished() for stage in job)
    assert outcome.records.keys() == {"second"} and outcome.records["second"].seconds > 0
    assert letters[0] == Letter(0, "second", begins=True)
    assert letters[-1].record == outcome.records["second"]

    fails = Counting(tmp_path, settings, "third", 6)
    (tmp_path / "something-is-dead").touch()
    outcome = _work(1, (fails, Counting(tmp_path, settings, "fourth")), mailbox)
    assert "there is no number after 5" in str(outcome.reason) and outcome.records.keys() == {"third"}


def test_the_cluster_of_the_documentation_is_one_that_ray_takes() -> None:
    pytest.importorskip("ray", reason="needs csd-nerf[cluster]")
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    config = yaml.safe_load(text)
    validate_config(prepare_config(config))
    with pytest.raises(ValidationError, match="worker_commands"):
        validate_config(prepare_config({**config, "worker_commands": []}))


def test_the_scripts_of_the_documentation_are_bash() -> None:
    scripts = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(scripts) == 3
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
