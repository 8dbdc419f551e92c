"""Edit captured 3-D scenes by text with Collaborative Score Distillation (Kim et al. 2023, 2307.04787)."""

__version__ = "0.1.0"
