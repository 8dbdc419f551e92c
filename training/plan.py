"""The stages that make the bundled priors, one after the other.

A module of its own, not `__main__`: worker processes must be able to import `follow`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.assembly import assembled, assembled_clips, assembled_flow, best_vae
from training.decoder import train_decoder
from training.depth import NAME as DEPTH
from training.depth import train_depth, write_views
from training.export import export_control_net, export_pipeline
from training.flow import FLOW, train_flow
from training.latents import NAME as LATENTS
from training.latents import write_latents
from training.motion import NAME as MOTION
from training.motion import train_motion
from training.moving import film_frames, write_moving
from training.parallel import Worker
from training.photos import cached_training_photos
from training.progress import Budget, Job
from training.refined_decoder import NAME as REFINED
from training.refined_decoder import refine_decoder
from training.takeover import take_over
from training.text import train_text
from training.unet import INSTRUCT, TEXT_TO_IMAGE, WIDE_INSTRUCT, UnetRecipe, train_unet
from training.vae import load_vae, train_vae
from training.wide_vae import LATENTS as WIDE_LATENTS
from training.wide_vae import NAME as WIDE
from training.wide_vae import load_wide_vae, train_wide_vae
from training.words import train_words

STEPS = {
    "vae": 2172, "decoder": 1800, "instruct": 14000, REFINED: 700, "text-to-image": 5000, "depth": 1500,
    WIDE: 3400, WIDE_INSTRUCT.name: 9500, FLOW.name: 4000, MOTION: 3000,
}  # fmt: skip
"""Of the stages that train for long."""

STAGES = (
    "vae", "decoder", "text", LATENTS, "instruct", REFINED, "text-to-image", "views", "depth",
    WIDE, WIDE_LATENTS, WIDE_INSTRUCT.name, "words", FLOW.name, "moving", MOTION, "export",
)  # fmt: skip

PRIORS: dict[str, UnetRecipe] = {"tiny_instruct": WIDE_INSTRUCT, "tiny_sd": TEXT_TO_IMAGE}
"""Folder of each prior, and the denoiser in it."""

CONTROL_NET = "tiny_depth"
"""Folder of the depth ControlNet."""

CLIP_PRIOR = "tiny_video"
"""Folder of the prior for clips."""

FLOW_PRIOR = "tiny_flow"
"""Folder of the prior of flow matching."""


@dataclass(frozen=True)
class Plan:
    """What every worker needs to know."""

    shared: Path
    work: Path
    out: Path
    budgets: dict[str, Budget]
    seed: int
    stages: tuple[str, ...]
    taken_over: Path | None = None
    """Folder of a finished prior whose autoencoder and text encoder are not trained anew."""

    def job(self, stage: str, worker: Worker) -> Job:
        """The training of one of the stages that have a budget."""
        return Job(worker, self.work, self.budgets[stage], self.seed)


def follow(worker: Worker, plan: Plan) -> None:
    """Do the stages that are not done yet."""
    if plan.taken_over is not None and worker.leads:
        take_over(plan.taken_over, plan.work)
    worker.wait()
    if {"vae", "decoder", LATENTS, REFINED, WIDE, WIDE_LATENTS, "moving"} & set(plan.stages):
        if worker.leads:
            cached_training_photos(plan.shared, plan.work / "photos.pt")
        worker.wait()
        photos = cached_training_photos(plan.shared, plan.work / "photos.pt")
    alexnet = plan.shared / "weights/lpips/alexnet_features.safetensors"
    if "vae" in plan.stages and not (plan.work / "vae.pt").exists():
        train_vae(plan.job("vae", worker), photos, alexnet)
    if "decoder" in plan.stages and not (plan.work / "decoder.pt").exists():
        train_decoder(plan.job("decoder", worker), photos, alexnet)
    if "text" in plan.stages and worker.leads and not (plan.work / "text.pt").exists():
        train_text(plan.work, plan.seed)
    worker.wait()
    if LATENTS in plan.stages:
        write_latents(worker, photos, load_vae(plan.work, worker.device), plan.work, plan.seed)
    for recipe in (INSTRUCT, TEXT_TO_IMAGE):
        _follow_unet(worker, plan, recipe)
    if REFINED in plan.stages and not (plan.work / f"{REFINED}.pt").exists():
        refine_decoder(plan.job(REFINED, worker), photos, alexnet)
    if "views" in plan.stages:
        write_views(worker, plan.work, plan.seed)
    if "depth" in plan.stages:
        snapshot = plan.work / "snapshots" / CONTROL_NET
        train_depth(plan.job(DEPTH, worker), lambda: export_control_net(plan.work, snapshot))
    if WIDE in plan.stages and not (plan.work / f"{WIDE}.pt").exists():
        train_wide_vae(plan.job(WIDE, worker), best_vae(plan.work), photos, alexnet)
    if WIDE_LATENTS in plan.stages:
        wide_vae = load_wide_vae(plan.work, worker.device)
        write_latents(worker, photos, wide_vae, plan.work, plan.seed, WIDE_LATENTS)
    _follow_unet(worker, plan, WIDE_INSTRUCT)
    if "words" in plan.stages and worker.leads and not (plan.work / "words.pt").exists():
        train_words(plan.work, plan.seed)
    worker.wait()
    if FLOW.name in plan.stages:
        flow_snapshot = plan.work / "snapshots" / FLOW_PRIOR
        train_flow(
            plan.job(FLOW.name, worker),
            lambda: export_pipeline(assembled_flow(plan.work), plan.work, flow_snapshot),
        )
    if "moving" in plan.stages:
        write_moving(worker, photos, film_frames(plan.shared), plan.work, plan.seed)
    if MOTION in plan.stages:
        clip_snapshot = plan.work / "snapshots" / CLIP_PRIOR
        train_motion(
            plan.job(MOTION, worker),
            lambda: export_pipeline(assembled_clips(plan.work), plan.work, clip_snapshot),
        )
    if "export" in plan.stages and worker.leads:
        for folder, recipe in PRIORS.items():
            if (plan.work / f"{recipe.name}.pt").exists():
                export_pipeline(assembled(recipe, plan.work), plan.work, plan.out / folder)
        if (plan.work / f"{DEPTH}.pt").exists():
            export_control_net(plan.work, plan.out / CONTROL_NET)
        if (plan.work / f"{MOTION}.pt").exists():
            export_pipeline(assembled_clips(plan.work), plan.work, plan.out / CLIP_PRIOR)
        if (plan.work / f"{FLOW.name}.pt").exists():
            export_pipeline(assembled_flow(plan.work), plan.work, plan.out / FLOW_PRIOR)


def _follow_unet(worker: Worker, plan: Plan, recipe: UnetRecipe) -> None:
    if recipe.name not in plan.stages:
        return

    def snapshot() -> None:
        export_pipeline(assembled(recipe, plan.work), plan.work, plan.work / "snapshots" / recipe.name)

    train_unet(recipe, plan.job(recipe.name, worker), snapshot)
