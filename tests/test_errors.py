"""What a user is told who gave something that cannot be used."""

from __future__ import annotations

import pytest
import tinycudann_double

from csd_nerf.errors import InputError, check, check_at_least, is_out_of_memory, memory_explained, option


def test_of_an_option_it_is_said_that_it_cannot_be_used() -> None:
    check(True, option("max_minutes"), expected="a number above 0", got=3)
    with pytest.raises(InputError) as refused:
        check(False, option("max_minutes"), expected="a number above 0", got=-1.5)
    assert str(refused.value).splitlines() == [
        "--max-minutes cannot be used",
        "  expected: a number above 0",
        "  got:      -1.5",
        "  do this:  change it, or leave it out",
    ]


def test_a_problem_is_left_as_it_was_worded() -> None:
    with pytest.raises(InputError) as refused:
        check(False, "there are two", expected="one", got="both", hint="leave out one of them")
    assert refused.value.problem == "there are two" and refused.value.hint == "leave out one of them"


@pytest.mark.parametrize("value", (0, float("nan")))
def test_a_number_below_the_least_is_refused_and_none_is_not(value: float) -> None:
    check_at_least("size", None, 1)
    check_at_least("size", 1, 1)
    with pytest.raises(InputError, match=r"--size is too small\n +expected: at least 1"):
        check_at_least("size", value, 1)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 20.00 GiB",
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory",
        tinycudann_double.OUT_OF_MEMORY,
        "gpu_memory.h:582 cuMemCreate(...) failed with error CUDA_ERROR_OUT_OF_MEMORY",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_memory_that_ran_out_is_known_by_all_its_names(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text)) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED"))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("out of memory\nat line 3")])
def test_memory_that_ran_out_is_a_message(error: Exception) -> None:
    with pytest.raises(InputError, match="memory ran out") as refused, memory_explained(expected="", hint=""):
        raise error
    assert refused.value.got == ("MemoryError" if isinstance(error, MemoryError) else "out of memory")
