"""One edit by two processes, with gloo: what each is given, and that they do what one process does."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from nerf_runs import make_edit_config, refusal, run

from csd_nerf import ranks
from csd_nerf.nerf import cpu_fields
from csd_nerf.nerf.runs import find_run, read_checkpoint
from csd_nerf.nerf.targets import Targets

CHANGES = {
    "max_num_iterations": 4,
    "pipeline__particles": 3,  # a view for one of two, and two for the other
    "pipeline__fits_per_round": 2,
    "pipeline__datamanager__train_num_rays_per_batch": 256,
}


def in_processes(count: int, work: Any, *arguments: Any) -> None:
    """`work(*arguments)` in so many processes that were launched together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_begin, (count, port, work, arguments), nprocs=count)


def _begin(rank: int, count: int, port: int, work: Any, arguments: tuple[Any, ...]) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
    work(*arguments)


def edit(output: Path, scene_run: Path) -> None:
    """The edit, what every process knows at its end, and the gradient of a fit of the source scene."""
    pipeline = run(make_edit_config("csd-edit-tiny", output, scene_run, **CHANGES)).pipeline
    torch.save(
        {
            "pictures": pipeline.eval_pictures(),
            "targets": pipeline._edit.targets.state(),
            "weights": {name: value.clone() for name, value in pipeline.model.state_dict().items()},
            "unet_evaluations": pipeline.unet_evaluations,
            "gradient": gradient(pipeline),
        },
        output / f"rank-{ranks.number()}.pt",
    )


class DoubleTargets(Targets):
    """With rays in double precision."""

    def sample(self, rays: int, patch_size: int = 1) -> Any:
        bundle, colours = super().sample(rays, patch_size)
        double = bundle._apply_fn_to_fields(
            lambda field: field.double() if field.is_floating_point() else field
        )
        return double, colours


def gradient(pipeline: Any) -> dict[str, torch.Tensor]:
    """Of a fit of the source scene in float64, summed over the ranks."""
    model, edit = pipeline.model, pipeline._edit
    model.load_state_dict(edit.source_weights)
    model.double().train()
    cpu_fields._suits = lambda *_: False  # the kernels are in float32, as is our encoding by the hash grid
    for part in model.modules():
        part.__dict__.pop("pytorch_fwd", None)
    targets = DoubleTargets(edit.rays, 2)
    torch.manual_seed(0)
    targets.put([0, 1], torch.rand(2, 3, edit.height, edit.width))
    model.zero_grad()
    losses, _ = edit.fit.losses(model, targets)
    torch.stack(list(losses.values())).sum().backward()
    ranks.sum_gradients(model.parameters())
    values = {f"loss {name}": loss.detach() for name, loss in losses.items()}
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return values | gradients


@pytest.fixture(scope="module")
def ends(scene_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one process knows at the end of an edit, and each of two; and the folder of the latter's run."""
    alone, together = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("together")
    in_processes(1, edit, alone, scene_run)
    in_processes(2, edit, together, scene_run)
    (one,) = (torch.load(file) for file in alone.glob("rank-*.pt"))
    two = [torch.load(together / f"rank-{rank}.pt") for rank in range(2)]
    (folder,) = together.glob("*/*/edit")
    return one, two, folder


def test_two_processes_give_what_one_gives(ends: Any) -> None:
    one, (first, second), folder = ends
    assert all(torch.equal(first["weights"][name], value) for name, value in second["weights"].items())
    assert one["unet_evaluations"] == first["unet_evaluations"] > 0
    assert (one["pictures"] - first["pictures"]).abs().max() < 0.005
    assert torch.equal(one["targets"]["indices"], first["targets"]["indices"])
    apart = (one["targets"]["pictures"].int() - first["targets"]["pictures"].int()).abs()
    assert apart.max() <= 1
    assert len(list(folder.glob("nerfstudio_models/*.ckpt"))) == 1 and (folder / "turntable.mp4").exists()
    saved = read_checkpoint(find_run(folder).checkpoint)["pipeline"]
    assert all(torch.equal(first["weights"][name], saved[f"_model.{name}"]) for name in first["weights"])


def test_the_gradient_of_a_fit_is_that_of_all_rays(ends: Any) -> None:
    one, both, _ = ends
    for two in both:
        assert one["gradient"].keys() == two["gradient"].keys()
        for name, value in one["gradient"].items():
            close = {"rtol": 1e-6, "atol": 1e-9} if name.startswith("loss") else {"rtol": 1e-9, "atol": 1e-14}
            torch.testing.assert_close(two["gradient"][name], value, msg=name, **close)


def shares(output: Path) -> None:
    """What `ranks` does with rows, in one of several processes."""
    ranks.join("cpu")
    numbers = torch.arange(5.0)
    seen = []

    def doubled(rows: torch.Tensor, nothing: None) -> torch.Tensor:
        seen.append(len(rows))
        return 2 * rows

    assert torch.equal(ranks.by_share(doubled, numbers, None), 2 * numbers)
    assert torch.equal(ranks.by_share(doubled, numbers[:1], None), 2 * numbers[:1])
    assert ranks.as_first(ranks.number()) == 0
    mine = ranks.share(5)
    torch.manual_seed(1)
    with ranks.draws_of_all(5, mine):
        drawn = torch.rand(mine.stop - mine.start, 3), torch.rand((mine.stop - mine.start, 2))
    torch.manual_seed(1)
    assert all(torch.equal(of, torch.rand(5, of.shape[1])[mine]) for of in drawn)
    (output / f"{ranks.number()}").write_text(f"{seen}")


def test_rows_are_shared_and_gathered(tmp_path: Path) -> None:
    in_processes(2, shares, tmp_path)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["[2, 1]", "[3, 1]"]


def test_processes_are_launched_once_it_is_known_that_they_can_work(
    scene_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def config(**changes: Any) -> Any:
        return make_edit_config("csd-edit-tiny", tmp_path, scene_run, machine__num_devices=2, **changes)

    launched: list[list[str]] = []
    monkeypatch.setattr(
        ranks.subprocess,
        "run",
        lambda command, check: launched.append(command) or ranks.subprocess.CompletedProcess(command, 7),
    )
    rays = {"pipeline__datamanager__train_num_rays_per_batch": 1}
    assert "a fit has no rays for every process" in refusal(config(**rays), capsys)
    assert "do not know where to meet" in refusal(config(machine__num_machines=2), capsys)
    assert "--pipeline.prior-device" in refusal(config(pipeline__prior_device="cpu"), capsys)
    assert "--pipeline.route gradient" in refusal(config(pipeline__route="gradient"), capsys)
    assert not launched
    monkeypatch.setattr("sys.argv", ["ns-train", "csd-edit-tiny", "--prompt", "make it night"])
    with pytest.raises(SystemExit) as stop:
        config().set_timestamp()
    assert stop.value.code == 7
    assert "--nproc-per-node=2" in launched[0] and launched[0][-4:] == ranks.sys.argv
    there = {"machine__num_machines": 3, "machine__machine_rank": 1, "machine__dist_url": "tcp://head:29500"}
    with pytest.raises(SystemExit):
        config(**there).set_timestamp()
    assert {"--nnodes=3", "--node-rank=1", "--master-addr=head", "--master-port=29500"} <= set(launched[1])
