"""`csd-nerf probe`: what an instruction changes that it did not name, over a set of pictures."""
