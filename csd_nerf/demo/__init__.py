"""`csd-nerf demo`: from nothing to an edited scene and a page that shows it."""
