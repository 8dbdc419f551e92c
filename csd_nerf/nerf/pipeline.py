"""Where the config.yml of edits that were made before the loop looks for their classes."""

from csd_nerf.nerf.edit_pipeline import EditPipeline, EditPipelineConfig

__all__ = ["EditPipeline", "EditPipelineConfig"]
