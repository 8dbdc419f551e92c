"""Jobs on Ray, of commands that take a moment: what becomes of them when a worker dies or a command fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
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
    while step == 2 and not pathlib.Path("a-worker-is-dead").exists():
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
    """Kills the worker of the job that is the first to have made a step."""

    def __init__(self, folder: Path) -> None:
        super().__init__([], [], Console(quiet=True))
        self.begun: list[tuple[int | None, int]] = []
        self._sign = folder / "a-worker-is-dead"

    def begin(self, job: int | None, stage: Stage, start: int) -> None:
        self.begun.append((job, start))

    def update(self, job: int | None, stage: Stage, steps: float) -> None:
        if not self._sign.exists():
            processes = psutil.Process().children(recursive=True)
            (command,) = [process for process in processes if f"{stage.key}.txt" in process.cmdline()]
            worker = command.parent()
            assert worker is not None and worker.name().startswith("ray::")
            worker.kill()
            psutil.wait_procs([worker, command], timeout=60)
            self._sign.touch()


def test_a_job_whose_worker_died_goes_on_and_one_that_fails_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="needs csd-nerf[cluster]")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # workers are to know this file
    settings: Any = None  # of a demo, which this is not
    (tmp_path / "settings.json").touch()
    jobs = {
        0: (Counting(tmp_path, settings, "first"), Counting(tmp_path, settings, "second", 2)),
        1: (Counting(tmp_path, settings, "third", 6), Counting(tmp_path, settings, "fourth", 2)),
    }
    outcomes: dict[int, str | None] = {}
    table, progress = KillsOne(tmp_path), Progress(tmp_path)
    with Cluster(None, Needs(gpus=0, cpus=1, memory=0.1)) as cluster:
        cluster.carry_out(jobs, progress, table, outcomes.__setitem__)

    assert outcomes[0] is None and all(stage.finished() for stage in jobs[0])
    reason = str(outcomes[1])
    assert "there is no number after 5" in reason and str(tmp_path / "logs" / "third.log") in reason
    assert not (tmp_path / "fourth.txt").exists()
    records = Progress(tmp_path).records
    assert records.keys() == {"first", "second", "third"} and all(
        time.seconds > 0 for time in records.values()
    )
    assert sorted(start for _, start in table.begun) == [0, 0, 0, 2], "one went on from where its files ended"


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
    (tmp_path / "a-worker-is-dead").touch()
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
