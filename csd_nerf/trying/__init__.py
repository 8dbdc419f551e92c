"""`csd-nerf try`: edits of a few views in seconds, to choose one from before the scene is edited."""
