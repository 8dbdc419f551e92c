"""How good an edit is, in figures: measures on pictures, depths and cameras, which know nothing of NeRFs."""
