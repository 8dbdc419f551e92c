"""Which threads work, and that none is waited for that brings nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from csd_nerf import threads


@pytest.fixture(autouse=True)
def torchs_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    threads._say_busy.cache_clear()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("cores", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [1, 9, 10, 11, 25, 200])
def test_runs_are_whole_blocks_and_all_there_is(
    monkeypatch: pytest.MonkeyPatch, cores: int, length: int
) -> None:
    monkeypatch.setattr(threads, "CORES", cores)
    parts = threads.runs(length, 10)
    assert len(parts) <= cores and all(first < last for first, last in parts)
    assert [number for part in parts for number in range(*part)] == list(range(length))
    assert all(first % 10 == 0 for first, _ in parts)


def test_parts_are_done_beside_each_other_and_a_failure_is_told() -> None:
    barrier = threading.Barrier(3, timeout=10)  # passed only if all three wait at once
    done = []

    def work(lane: int, part: tuple[int, int]) -> None:
        barrier.wait()
        done.append((lane, part))

    threads.beside_each_other(work, [(0, 1), (1, 2), (2, 3)])
    assert sorted(done) == [(0, (0, 1)), (1, (1, 2)), (2, (2, 3))]

    def fail(lane: int, part: tuple[int, int]) -> None:
        if lane == 1:
            raise ValueError("in the second")

    with pytest.raises(ValueError, match="in the second"):
        threads.beside_each_other(fail, [(0, 1), (1, 2)])


@pytest.mark.parametrize(("alone", "together", "used"), [(1.0, 0.6, 2), (1.0, 3.0, 1)])
def test_torch_works_together_only_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    alone: float,
    together: float,
    used: int,
) -> None:
    def seconds(count: int) -> float:
        torch.set_num_threads(count)  # as what it stands for does
        return alone if count == 1 else together

    monkeypatch.setattr(threads, "CORES", 2)
    monkeypatch.setattr(threads, "_seconds", seconds)
    torch.set_num_threads(1)
    for _ in range(2):
        with threads.all_for_torch():
            assert torch.get_num_threads() == used
        assert torch.get_num_threads() == 1
    assert capsys.readouterr().out.count("keep the cores busy") == (used == 1)  # once


def test_a_field_on_a_cpu_leaves_torch_one_thread() -> None:
    torch.set_num_threads(2)
    threads.one_for_torch("cuda")
    assert torch.get_num_threads() == 2
    threads.one_for_torch(torch.device("cpu"))
    assert torch.get_num_threads() == 1
