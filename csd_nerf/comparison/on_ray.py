"""The edits of a comparison as tasks of a Ray cluster, or of the cores and GPUs of one machine.

A task is a whole job: its commands one after another, in the comparison's folder, which all machines share.
Workers send letters to a mailbox beside the command, which alone writes the record of times and the report.
A task whose worker or machine died is given out again, and goes on where its files end, as the same command
given again would. Ray is imported here alone.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from csd_nerf.comparison.live import LiveTable
from csd_nerf.comparison.running_jobs import run_stages
from csd_nerf.demo.child import end_commands_with_this_process
from csd_nerf.demo.demo_settings import Progress, StageRecord
from csd_nerf.demo.stages import Stage
from csd_nerf.errors import InputError, check, check_at_least

RETRIES = 3
"""So often a job is begun again whose worker or machine died."""
SECONDS_BETWEEN_LETTERS = 0.5
SECONDS_BETWEEN_LOOKS = 0.5
GIB = 2**30


@dataclass(frozen=True)
class Needs:
    """What Ray sets aside for a job while it runs.

    Attributes:
        gpus: a fraction lets several jobs share one; None is 1 where the cluster has any, else 0.
        cpus: cores; torch gets as many threads.
        memory: GiB.
    """

    gpus: float | None
    cpus: int
    memory: float

    def check(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            InputError: naming the option.
        """
        gpus = self.gpus
        check_at_least("cpus_per_edit", self.cpus, 1)
        expected = "0, a fraction of 1, or a whole number"
        fits = gpus is None or (gpus >= 0 and (gpus < 1 or gpus == int(gpus)))
        check(fits, "--gpus-per-edit cannot be used", expected=expected, got=gpus, hint="try 1, or 0.5")
        memory = self.memory
        expected, hint = "GiB, above 0", "try 4"
        check(memory > 0, "--memory-per-edit cannot be used", expected=expected, got=memory, hint=hint)


def check_ray(address: Sequence[str]) -> None:
    """See that Ray is there, and that one cluster is named at most.

    Raises:
        InputError: it is not.
    """
    check(
        len(address) <= 1,
        "--ray has several addresses",
        expected="that of one cluster, or none",
        got=" ".join(address),
        hint="leave out all but one; --ray alone finds the cluster of this machine",
    )
    if find_spec("ray") is None:
        raise InputError(
            "Ray is not installed",
            expected="the package ray, for --ray",
            got="no such package",
            hint="`pip install 'csd-nerf[cluster]'` on every machine, or leave out --ray",
        )


class Cluster:
    """A connection to Ray, ended on leaving it, and with it what still runs.

    Args:
        address: of the cluster; None finds the one of this machine, or begins one of its cores and GPUs.
        needs: of every job.

    Raises:
        InputError: there is no such cluster, or none of its machines has room for a job.
    """

    def __init__(self, address: str | None, needs: Needs) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                "there is no Ray cluster" + (f" at {address}" if address else ""),
                expected="one that was begun by `ray start --head`, or `ray up`",
                got=str(error).splitlines()[0],
                hint="pass --ray without an address to use the cores and GPUs of this machine",
            ) from error
        gpus = needs.gpus
        if gpus is None:
            gpus = 1 if ray.cluster_resources().get("GPU") else 0
        self._ray = ray
        self._check_room({"CPU": needs.cpus, "GPU": gpus, "memory": needs.memory * GIB}, needs.memory)
        self._work = ray.remote(_work).options(
            num_cpus=needs.cpus, num_gpus=gpus, memory=int(needs.memory * GIB), max_retries=RETRIES
        )
        # Beside this process, whose end it may share: a mailbox elsewhere would be lost with its machine.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox: Any = ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()

    def _check_room(self, needed: Mapping[str, float], gib: float) -> None:
        """Refuse what no machine of the cluster has: Ray would wait for one without a word."""
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if any(all(have.get(name, 0) >= least for name, least in needed.items()) for have in machines):
            return
        self._ray.shutdown()
        most = max(machines, key=lambda have: (have.get("GPU", 0), have.get("memory", 0)))
        raise InputError(
            "no machine of the cluster has room for an edit",
            expected=f"{needed['CPU']} cores, {needed['GPU']} GPUs and {gib} GiB on one of them",
            got=f"at most {most.get('CPU', 0):g} cores, {most.get('GPU', 0):g} GPUs and "
            f"{most.get('memory', 0) / GIB:.1f} GiB",
            hint="turn down --memory-per-edit, --gpus-per-edit or --cpus-per-edit",
        )

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def carry_out(
        self,
        jobs: Mapping[Any, tuple[Stage, ...]],
        progress: Progress,
        table: LiveTable,
        done: Callable[[Any, str | None], object],
    ) -> None:
        """Run jobs, as many at a time as there is room for.

        Args:
            jobs: the stages of each that are left to do, by its number; None is the scene.
            progress: record of all stages, kept here.
            table: that shows them.
            done: called for each that has ended with its number and, if it failed, why.
        """
        stages = {stage.key: stage for left in jobs.values() for stage in left}
        waiting = {
            self._work.remote(number, tuple(map(_placed, left)), self._mailbox): number
            for number, left in jobs.items()
        }
        while waiting:
            ended, _ = self._ray.wait(list(waiting), num_returns=1, timeout=SECONDS_BETWEEN_LOOKS)
            for letter in self._ray.get(self._mailbox.take.remote()):
                if letter.job in waiting.values():  # a late one knows less than the outcome
                    _read(letter, stages[letter.key], progress, table)
            for task in ended:
                outcome = self._outcome(task)
                progress.records.update(outcome.records)
                progress.save()
                done(waiting.pop(task), outcome.reason)

    def _outcome(self, task: Any) -> Outcome:
        try:
            outcome: Outcome = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = f"Its worker died {RETRIES + 1} times, or could not begin."
            return Outcome("\n".join([reason, *lines[-5:]]))
        return outcome


def _read(letter: Letter, stage: Stage, progress: Progress, table: LiveTable) -> None:
    if letter.record is not None:
        progress.records[letter.key] = letter.record
        progress.save()
    elif letter.begins:
        table.begin(letter.job, stage, int(letter.steps))
    else:
        table.update(letter.job, stage, letter.steps)


def _placed(stage: Stage) -> Stage:
    """A stage for processes that run in another folder."""
    return dataclasses.replace(stage, folder=stage.folder.resolve())


@dataclass(frozen=True)
class Letter:
    """What a worker says of a stage.

    Attributes:
        job: its number; None is the scene.
        key: of the stage.
        steps: that are done.
        begins: whether its command is starting up.
        record: of its time, in a letter that says nothing else.
    """

    job: int | None
    key: str
    steps: float = 0
    begins: bool = False
    record: StageRecord | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
        reason: why it failed; None of one that did not.
        records: of the times of the stages that its last worker did.
    """

    reason: str | None = None
    records: dict[str, StageRecord] = field(default_factory=dict)


class _Mailbox:
    """Letters, in their order, until they are taken."""

    def __init__(self) -> None:
        self._letters: list[Letter] = []

    def put(self, letter: Letter) -> None:
        self._letters.append(letter)

    def take(self) -> list[Letter]:
        letters, self._letters = self._letters, []
        return letters


class _Correspondent(Progress):
    """Shows stages and keeps their record by letters; on a worker."""

    def __init__(self, job: int | None, folder: Path, mailbox: Any) -> None:
        super().__init__(folder)
        self._job, self._mailbox = job, mailbox
        self._stage = ""
        self._newest = 0.0

    def begin(self, stage: Stage, start: int) -> None:
        self._stage = stage.key
        self._send(Letter(self._job, stage.key, start, begins=True))

    def update(self, stage: Stage, steps: float) -> None:
        if time.monotonic() - self._newest > SECONDS_BETWEEN_LETTERS:
            self._newest = time.monotonic()
            self._send(Letter(self._job, stage.key, steps))
            self._send(Letter(self._job, stage.key, record=dataclasses.replace(self[stage.key])))

    def save(self) -> None:
        """Nothing: times are sent with the steps, and come with the outcome of the job."""

    def close(self) -> StageRecord:
        """The time of the newest stage, which is sent as well, should this worker die before the job is done.

        Nobody waits for the letter: Ray would lend the core of who waits to another job.
        """
        record = dataclasses.replace(self[self._stage])
        self._send(Letter(self._job, self._stage, record=record))
        return record

    def _send(self, letter: Letter) -> None:
        self._mailbox.put.remote(letter)


def _work(job: int | None, stages: Sequence[Stage], mailbox: Any) -> Outcome:
    """Do what is left of a job, in a worker."""
    end_commands_with_this_process()
    folder = stages[0].folder
    if not (folder / "settings.json").exists():
        return Outcome(
            f"{folder} is not there on {socket.gethostname()}: --output, --data and --load-dir must be in a "
            "folder that all machines share, by the same name."
        )
    records: dict[str, StageRecord] = {}
    for stage in stages:
        if stage.finished():  # before the worker died that began the job
            continue
        correspondent = _Correspondent(job, folder, mailbox)
        reason = run_stages([stage], correspondent, correspondent)
        records[stage.key] = correspondent.close()
        if reason is not None:
            return Outcome(reason, records)
    return Outcome(records=records)
