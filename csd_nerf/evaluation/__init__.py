"""How good an edit is, in figures: metrics, and the evaluation of one edited run."""
