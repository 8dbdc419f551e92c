"""The methods this package registers with nerfstudio.

Every `ns-*` command imports this module: neither diffusers nor transformers may be imported from it.
"""

import copy
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.data.datamanagers.parallel_datamanager import ParallelDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification
from numpy.core.multiarray import scalar  # type: ignore[attr-defined]

from csd_nerf.distillation.presets import preset
from csd_nerf.nerf.base_pipeline import BaseEditPipelineConfig
from csd_nerf.nerf.datamanager import EditDataManagerConfig, SceneDataManagerConfig
from csd_nerf.nerf.dataset_pipeline import CsdDatasetPipelineConfig, SampledDatasetPipelineConfig
from csd_nerf.nerf.generate import GeneratePipelineConfig
from csd_nerf.nerf.generate_trainer import GenerateTrainerConfig
from csd_nerf.nerf.generated_model import GeneratedModelConfig
from csd_nerf.nerf.model import CsdNerfactoModelConfig
from csd_nerf.nerf.pipeline import EditPipelineConfig
from csd_nerf.nerf.registry import METHODS
from csd_nerf.nerf.scene_trainer import SceneTrainerConfig
from csd_nerf.nerf.trainer import EditTrainerConfig
from csd_nerf.recipes import apply_recipe

# nerfstudio checkpoints hold numpy scalars (its schedulers' learning rates); torch 2.6 and later load
# only listed types. These three are data, not code.
torch.serialization.add_safe_globals([scalar, np.dtype, type(np.dtype(np.float64))])


def _adam(lr: float, lr_final: float | None = None, max_steps: int = 200_000) -> dict[str, Any]:
    decay = ExponentialDecaySchedulerConfig(lr_final=lr_final, max_steps=max_steps) if lr_final else None
    return {"optimizer": AdamOptimizerConfig(lr=lr, eps=1e-15), "scheduler": decay}


INSTRUCT_PIX2PIX = "timbrooks/instruct-pix2pix"
STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"

_TINY_MODEL = CsdNerfactoModelConfig(
    num_levels=6,
    log2_hashmap_size=15,
    max_res=256,
    hidden_dim=32,
    hidden_dim_color=32,
    num_proposal_iterations=1,
    num_proposal_samples_per_ray=(24,),
    num_nerf_samples_per_ray=12,
    proposal_net_args_list=[
        {"hidden_dim": 16, "log2_hashmap_size": 15, "num_levels": 5, "max_res": 128, "use_linear": False}
    ],
    average_init_density=0.01,
    eval_num_rays_per_chunk=1 << 13,
    implementation="torch",
    camera_optimizer=CameraOptimizerConfig(mode="off"),
)
"""A field and a sampling that two CPU cores carry."""

csd_nerfacto = MethodSpecification(
    config=SceneTrainerConfig(
        method_name="csd-nerfacto",
        steps_per_eval_batch=500,
        steps_per_save=2000,
        max_num_iterations=30000,
        mixed_precision=True,
        pipeline=VanillaPipelineConfig(
            datamanager=ParallelDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(),
                train_num_rays_per_batch=4096,
                eval_num_rays_per_batch=4096,
            ),
            model=CsdNerfactoModelConfig(
                eval_num_rays_per_chunk=1 << 15,
                average_init_density=0.01,
                camera_optimizer=CameraOptimizerConfig(mode="SO3xR3"),
            ),
        ),
        optimizers={
            "proposal_networks": _adam(1e-2, 1e-4),
            "fields": _adam(1e-2, 1e-4),
            "camera_opt": _adam(1e-3, 1e-4, 5000),
        },
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15),
        vis="viewer",
    ),
    description="Nerfacto for a scene to be edited: builds offline, no per-photo appearance codes.",
)

csd_nerfacto_tiny = MethodSpecification(
    config=SceneTrainerConfig(
        method_name="csd-nerfacto-tiny",
        steps_per_eval_batch=0,
        steps_per_eval_image=0,
        steps_per_eval_all_images=0,
        steps_per_save=500,
        max_num_iterations=2000,
        machine=MachineConfig(device_type="cpu"),
        pipeline=VanillaPipelineConfig(
            datamanager=SceneDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(),
                photo_size=128,
                train_num_rays_per_batch=2048,
                eval_num_rays_per_batch=2048,
            ),
            model=copy.deepcopy(_TINY_MODEL),
        ),
        optimizers={
            "proposal_networks": _adam(1e-2, 1e-3, 2000),
            "fields": _adam(1e-2, 1e-3, 2000),
        },
        viewer=ViewerConfig(num_rays_per_chunk=1 << 13),
        vis="viewer",
    ),
    description="The same in minutes on two CPU cores: 128-pixel photos and a small field.",
)


def _edit(name: str, description: str, steps: int, pipeline: BaseEditPipelineConfig) -> MethodSpecification:
    """An editing method for a GPU of 24 GB."""
    config = EditTrainerConfig(
        method_name=name,
        steps_per_eval_batch=0,
        steps_per_eval_image=0,
        steps_per_eval_all_images=0,
        steps_per_save=steps // 10,
        max_num_iterations=steps,
        mixed_precision=True,
        pipeline=pipeline,
        optimizers={"proposal_networks": _adam(1e-2), "fields": _adam(1e-2)},
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15),
        vis="viewer+tensorboard",
    )
    return MethodSpecification(config=config, description=description)


def _model() -> CsdNerfactoModelConfig:
    return CsdNerfactoModelConfig(
        eval_num_rays_per_chunk=1 << 15,
        average_init_density=0.01,
        camera_optimizer=CameraOptimizerConfig(mode="SO3xR3"),
    )


def _distillation(name: str, method: str, prior: str, description: str) -> MethodSpecification:
    """An edit straight into the field, with the settings that a method was published with, and a prior."""
    pipeline = EditPipelineConfig(
        datamanager=EditDataManagerConfig(dataparser=NerfstudioDataParserConfig()),
        model=_model(),
        prior=prior,
        objective=preset(method),
    )
    return _edit(name, description, 1000, pipeline)


csd_edit = _distillation(
    "csd-edit",
    "csd-edit",
    INSTRUCT_PIX2PIX,
    "Edit a trained scene by a text instruction with CSD-Edit (InstructPix2Pix, 24 GB GPU).",
)

dds_edit = _distillation(
    "dds-edit",
    "dds",
    STABLE_DIFFUSION,
    "Edit by two descriptions, source and target, with Delta Denoising Score (Stable Diffusion).",
)

cds_edit = _distillation(
    "cds-edit",
    "cds",
    STABLE_DIFFUSION,
    "Like dds-edit, and hold on to the source's layout with Contrastive Denoising Score.",
)

pds_edit = _distillation(
    "pds-edit",
    "pds",
    STABLE_DIFFUSION,
    "Like dds-edit, and pull back to the source with Posterior Distillation Sampling.",
)

sds_edit = _distillation(
    "sds-edit",
    "sds",
    STABLE_DIFFUSION,
    "Edit by a description of the target with Score Distillation Sampling, the oldest; a baseline.",
)

csd_edit_dataset = _edit(
    "csd-edit-dataset",
    "CSD-Edit on 16 training pictures at a time, on which the scene trains on, as in the CSD paper.",
    30_000,
    CsdDatasetPipelineConfig(
        datamanager=EditDataManagerConfig(
            dataparser=NerfstudioDataParserConfig(), train_num_rays_per_batch=4096
        ),
        model=_model(),
        prior=INSTRUCT_PIX2PIX,
        steps_per_picture=2000,
    ),
)

in2n_baseline = _edit(
    "in2n-baseline",
    "Instruct-NeRF2NeRF, to compare with: training pictures edited one by one, each by itself.",
    15_000,
    SampledDatasetPipelineConfig(
        datamanager=EditDataManagerConfig(
            dataparser=NerfstudioDataParserConfig(), train_num_rays_per_batch=16384, patch_size=32
        ),
        model=_model(),
        prior=INSTRUCT_PIX2PIX,
        steps_per_picture=1000,
    ),
)


def _csd_edit_tiny() -> MethodSpecification:
    config = copy.deepcopy(csd_edit.config)
    apply_recipe(config, csd_edit.config, "csd-edit", "tiny")
    config.method_name = "csd-edit-tiny"
    config.pipeline.model = copy.deepcopy(_TINY_MODEL)
    return MethodSpecification(
        config=config,
        description="csd-edit with the recipe tiny: two CPU cores, bundled prior, 64-pixel views.",
    )


csd_edit_tiny = _csd_edit_tiny()

csd_generate = MethodSpecification(
    config=GenerateTrainerConfig(
        method_name="csd-generate",
        steps_per_eval_batch=0,
        steps_per_eval_image=0,
        steps_per_eval_all_images=0,
        steps_per_save=500,
        max_num_iterations=10_000,
        mixed_precision=True,
        pipeline=GeneratePipelineConfig(
            model=GeneratedModelConfig(eval_num_rays_per_chunk=1 << 15, average_init_density=0.01),
            prior=STABLE_DIFFUSION,
            steps_per_picture=500,
            picture_size=256,
        ),
        optimizers={
            "proposal_networks": _adam(1e-2),
            "fields": _adam(1e-2),
            "background": _adam(1e-3),  # slower than the object, which would else dissolve into it
        },
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15),
        vis="viewer+tensorboard",
    ),
    description="Text-to-3D from nothing, without data, with CSD (Stable Diffusion, 24 GB GPU).",
)

METHODS |= {
    str(method.config.method_name): copy.deepcopy(method.config)
    for method in (
        csd_nerfacto,
        csd_nerfacto_tiny,
        csd_edit,
        csd_edit_tiny,
        dds_edit,
        cds_edit,
        pds_edit,
        sds_edit,
        csd_edit_dataset,
        in2n_baseline,
        csd_generate,
    )
}
