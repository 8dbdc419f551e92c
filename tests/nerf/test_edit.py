"""The edit end to end, on a procedural scene with the bundled prior."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from memory import peak_bytes
from nerf_runs import make_config, run, run_until_killed
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from csd_nerf.distillation.objective import NonFiniteResidual
from csd_nerf.nerf.methods import METHODS
from csd_nerf.nerf.runs import find_run

Make = Any
USUAL_STEPS = METHODS["csd-edit-tiny"].max_num_iterations


@pytest.fixture(scope="module")
def edited(scene_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The trainer of an edit of 20 steps, done."""
    config = make_config(
        "csd-edit-tiny",
        tmp_path_factory.mktemp("edited"),
        None,
        load_dir=scene_run,
        prompt="make it night",
        max_num_iterations=20,
        timestamp="edit",
        steps_per_save=7,
        pipeline__render_size=32,
        pipeline__picture_size=32,
        pipeline__picture_views=2,
        pipeline__steps_per_picture=10,
        pipeline__fits_per_round=5,
        pipeline__turntable_frames=3,
    )
    return run(config)


def test_night_falls(edited: Any) -> None:
    before, after = edited.pipeline._edit.before, edited.pipeline.eval_pictures()
    assert after.mean() < before.mean() - 0.1
    assert after[:, 2].mean() > after[:, 0].mean()  # and it is blue


def test_an_edit_leaves_pictures_a_turntable_and_a_checkpoint(edited: Any) -> None:
    folder = edited.base_dir
    names = {path.name for path in (folder / "pictures").iterdir()}
    assert names == {"step-000010.png", "step-000020.png", "before.png", "after.png"}
    assert Image.open(folder / "pictures" / "step-000020.png").size == (32, 2 * 32 + 4)  # one evaluation view
    assert (folder / "turntable.mp4").stat().st_size > 500
    (events,) = folder.glob("events.out.tfevents*")
    reader = EventAccumulator(str(events), size_guidance={"images": 0}).Reload()
    assert [picture.step for picture in reader.Images("Before (top) and after")] == [10, 20]
    assert [path.name for path in (folder / "nerfstudio_models").iterdir()] == ["step-000000019.ckpt"]


def test_the_checkpoint_holds_the_scene_and_nothing_of_the_prior(edited: Any, scene_run: Path) -> None:
    scene = torch.load(find_run(scene_run).checkpoint)["pipeline"]
    edit = torch.load(find_run(edited.base_dir).checkpoint)["pipeline"]
    assert edit.keys() - {"_extra_state"} == scene.keys()


def test_memory_of_a_published_step_does_not_grow_with_its_views(edit_config: Make) -> None:
    """Beyond the views themselves and their rays: 32 x 32 pixels of one view pass 36 samples a ray."""

    def peak(particles: int) -> int:
        config = edit_config(
            pipeline__route="gradient",
            pipeline__particles=particles,
            pipeline__unet_batch_size=5,
            pipeline__vae_batch_size=1,
            max_num_iterations=1,
            pipeline__turntable_frames=0,
            timestamp=f"particles-{particles}",
        )
        pipeline = run(config).pipeline

        def step() -> None:
            sum(pipeline.get_train_loss_dict(0)[1].values()).backward()

        step()  # source latents and gradients stay
        return peak_bytes(step)

    few, many = peak(2), peak(8)
    assert (many - few) / (6 * 32 * 32) < 500
    assert few / (2 * 32 * 32) > 5000  # what one chunk of rays takes is far more


def test_edited_scenes_open_without_a_diffusion_model(edited: Any, edit_config: Make) -> None:
    """In a process that has registered the methods, by which none is imported either."""
    few = {"pipeline__particles": 3, "pipeline__descent__steps": 2}
    on_photos = run(edit_config("csd-edit-dataset", recipe="tiny", max_num_iterations=2, **few))
    script = (
        "import sys, csd_nerf.nerf.methods\n"
        "assert not {'diffusers', 'transformers'} & set(sys.modules)\n"
        "from pathlib import Path; from nerfstudio.utils.eval_utils import eval_setup\n"
        f"_, pipeline, _, step = eval_setup(Path({str(edited.base_dir / 'config.yml')!r}))\n"
        "assert step == 19\n"
        "metrics = pipeline.get_average_eval_image_metrics()\n"
        "assert metrics['psnr'] > 3 and 'lpips' not in metrics\n"
        f"_, pipeline, _, step = eval_setup(Path({str(on_photos.base_dir / 'config.yml')!r}))\n"
        "assert step == 1 and pipeline.get_average_eval_image_metrics()['psnr'] > 3\n"
        "assert not {'diffusers', 'csd_nerf.priors.instruct_pix2pix'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_loaders_of_ns_render_and_ns_eval_serve_an_edited_scene(edited: Any) -> None:
    """`ns-render spiral` takes a camera of the one, `ns-eval` goes through the other."""
    manager = edited.pipeline.datamanager
    camera, batch = next(iter(manager.eval_dataloader))
    assert camera.shape == (1,) and batch["image"].shape[-1] == 3
    assert len(list(manager.fixed_indices_eval_dataloader)) == len(manager.eval_dataset)


def test_the_viewer_finds_the_controls(edited: Any) -> None:
    """With the function that nerfstudio's viewer looks for them with; nothing else of ours is shown."""
    from nerfstudio.viewer.utils import parse_object
    from nerfstudio.viewer.viewer_elements import ViewerControl, ViewerElement

    found = parse_object(edited.pipeline, ViewerControl, "Custom Elements")
    assert [control for _, control in found] == [edited.pipeline.controls]
    assert not parse_object(edited.pipeline, ViewerElement, "Custom Elements")


def test_a_killed_edit_resumes_to_the_same_scene(edited: Any, edit_config: Make) -> None:
    """The edit above, stopped at a random step and continued from the newest of its checkpoints."""
    settings = {
        "max_num_iterations": 20,
        "steps_per_save": 7,
        "pipeline__turntable_frames": 0,
        "pipeline__fits_per_round": 5,
    }
    last_step = random.SystemRandom().randint(8, 19)
    folder = run_until_killed(edit_config(**settings), last_step)
    saved = 14 if last_step > 14 else 7
    assert find_run(folder).checkpoint.name == f"step-{saved:09d}.ckpt"

    # The method's own number of steps counts as not given, and the edit's 20 stay.
    again = {"load_dir": folder, "prompt": None, "timestamp": "resumed", "max_num_iterations": USUAL_STEPS}
    resumed = run(edit_config(**again))
    assert resumed.config.max_num_iterations == 20 and resumed._start_step == saved + 1
    assert resumed.pipeline.prompt.value == "make it night"
    torch.testing.assert_close(
        resumed.pipeline.eval_pictures(), edited.pipeline.eval_pictures(), atol=2e-3, rtol=0
    )
    torch.testing.assert_close(resumed.pipeline._edit.before, edited.pipeline._edit.before)


def test_an_edit_killed_after_its_last_step_still_gets_its_pictures(edit_config: Make) -> None:
    folder = run(edit_config(max_num_iterations=2)).base_dir
    (folder / "turntable.mp4").unlink()
    (folder / "pictures" / "after.png").unlink()
    (checkpoint,) = (folder / "nerfstudio_models").iterdir()
    trainer = run(edit_config(load_dir=folder, prompt=None, max_num_iterations=USUAL_STEPS))
    assert trainer.base_dir == folder
    assert (folder / "turntable.mp4").exists() and (folder / "pictures" / "after.png").exists()
    assert list((folder / "nerfstudio_models").iterdir()) == [checkpoint]


def test_what_is_changed_while_it_runs_acts_and_is_saved(edit_config: Make) -> None:
    trainer = run(edit_config(max_num_iterations=2))
    pipeline = trainer.pipeline
    pipeline.prompt.value, pipeline.text_guidance.value = "turn it into a pencil sketch", 3.0
    asked = []
    edit = pipeline._edit.edit
    pipeline._edit.edit = lambda views: asked.append(views) or edit(views)
    pipeline.get_train_loss_dict(pipeline.config.fits_per_round)  # the next round
    assert asked[0].guidance.text == 3.0 and asked[0].prompt == "turn it into a pencil sketch"
    assert "turn it into a pencil sketch" in pipeline._edit.prior._embeddings

    saved = pipeline.get_extra_state()
    pipeline.prompt.value = "make it night"
    pipeline.config.objective.text_guidance = 5.0  # as if given anew on the command line
    pipeline.text_guidance.value = 5.0
    pipeline.set_extra_state(saved)
    assert pipeline.prompt.value == "turn it into a pencil sketch"
    assert pipeline.text_guidance.value == 5.0

    assert not torch.equal(pipeline.eval_pictures(), pipeline._edit.before)
    pipeline.reset_to_source()
    torch.testing.assert_close(pipeline.eval_pictures(), pipeline._edit.before)
    assert not any(optimizer.state for optimizer in trainer.optimizers.optimizers.values())


def test_a_residual_that_is_not_finite_skips_its_step(edit_config: Make, monkeypatch: Any) -> None:
    from csd_nerf.distillation.objective import Objective

    gradient_of = Objective.gradient

    def broken_at_step_one(self: Any, *args: Any, step: int, **kwargs: Any) -> Any:
        if step == 1:
            raise NonFiniteResidual("not finite")
        return gradient_of(self, *args, step=step, **kwargs)

    monkeypatch.setattr(Objective, "gradient", broken_at_step_one)
    trainer = run(edit_config(max_num_iterations=3, pipeline__route="gradient"))
    state = next(iter(trainer.optimizers.optimizers["fields"].state.values()))
    assert int(state["step"]) == 2


def test_a_gradient_that_is_not_finite_never_reaches_the_field(edit_config: Make, monkeypatch: Any) -> None:
    from csd_nerf.priors.instruct_pix2pix import InstructPix2Pix

    encode = InstructPix2Pix.encode

    def overflowing(self: Any, images: torch.Tensor) -> torch.Tensor:
        latents = encode(self, images)
        if images.requires_grad:
            latents.register_hook(lambda gradient: gradient * float("nan"))
        return latents

    trainer = run(edit_config(max_num_iterations=1, pipeline__route="gradient"))
    monkeypatch.setattr(InstructPix2Pix, "encode", overflowing)
    trainer.train_iteration(1)
    assert all(parameter.isfinite().all() for parameter in trainer.pipeline.model.parameters())


def test_many_of_them_in_a_row_stop_the_edit_with_a_checkpoint(
    edit_config: Make, monkeypatch: Any, capsys: Any
) -> None:
    from csd_nerf.distillation.objective import Objective

    gradient_of = Objective.gradient

    def broken_from_step_two(self: Any, *args: Any, step: int, **kwargs: Any) -> Any:
        if step >= 2:
            raise NonFiniteResidual("not finite")
        return gradient_of(self, *args, step=step, **kwargs)

    monkeypatch.setattr(Objective, "gradient", broken_from_step_two)
    config = edit_config(max_num_iterations=20, pipeline__route="gradient")
    with pytest.raises(SystemExit) as stop:
        run(config)
    assert stop.value.code == 1
    assert "--load-dir" in capsys.readouterr().out
    assert find_run(config.get_base_dir()).checkpoint.name.startswith("step-")


def test_running_out_of_memory_names_the_settings_to_turn_down(
    edit_config: Make, monkeypatch: Any, capsys: Any
) -> None:
    from csd_nerf.distillation.objective import Objective

    def exhausted(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr(Objective, "gradient", exhausted)
    with pytest.raises(SystemExit):
        run(edit_config())
    printed = capsys.readouterr().err
    assert (
        "memory ran out" in printed
        and "--pipeline.unet-batch-size, --pipeline.datamanager.train-num-rays" in printed
    )


def test_stock_nerfacto_scenes_are_accepted(dataset: Path, tmp_path: Path, edit_config: Make) -> None:
    """Appearance codes, pose corrections and LPIPS weights in the checkpoint do not get in the way."""
    from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
    from nerfstudio.models.nerfacto import NerfactoModelConfig

    from csd_nerf.nerf.methods import METHODS
    from csd_nerf.nerf.runs import adopt

    stock = adopt(NerfactoModelConfig(), NerfactoModelConfig(), METHODS["csd-nerfacto-tiny"].pipeline.model)
    stock.use_appearance_embedding, stock.camera_optimizer = True, CameraOptimizerConfig(mode="SO3xR3")
    with pytest.MonkeyPatch.context() as patch:
        # Stock nerfacto downloads AlexNet here; a module with weights of that name takes its place.
        patch.setattr(
            "torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", lambda **_: torch.nn.Linear(2, 2)
        )
        trainer = run(
            make_config(
                "csd-nerfacto-tiny", tmp_path, dataset, max_num_iterations=10, timestamp="stock",
                pipeline__model=stock, optimizers={
                    **METHODS["csd-nerfacto-tiny"].optimizers,
                    "camera_opt": METHODS["csd-nerfacto"].optimizers["camera_opt"],
                },
            )
        )  # fmt: skip
    saved = torch.load(find_run(trainer.base_dir).checkpoint)["pipeline"]
    assert any(name.startswith("_model.lpips.") for name in saved)
    edited = run(edit_config(load_dir=trainer.base_dir, max_num_iterations=2))
    assert edited.pipeline.model.field.embedding_appearance is not None
    assert not torch.equal(edited.pipeline.eval_pictures(), edited.pipeline._edit.before)
