"""Scenes whose edited truth is known: exact image operators and a procedural still life."""
