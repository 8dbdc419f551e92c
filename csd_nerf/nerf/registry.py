"""The methods' configurations, where their trainers can read them: `csd_nerf.nerf.methods` fills this in."""

from nerfstudio.engine.trainer import TrainerConfig

METHODS: dict[str, TrainerConfig] = {}
"""Each method's configuration before a command line changes it, by the method's name."""
