"""Translators: small networks that make one edit, or one of a few, of any picture in milliseconds.

They are distilled from a diffusion model by the objectives that edit single pictures (Hertz et al.,
2304.07090, in its second half by Delta Denoising Score), and need none once they are trained.
"""
