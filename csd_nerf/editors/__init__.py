"""Editing pictures, panoramas and clips by text: the same priors and objectives as for scenes, on 2-D canvases.

Windows of a picture or frames of a clip are the particles of Collaborative Score Distillation. Neither nerfstudio
nor, before an edit begins, diffusers is imported.
"""
