"""Edits that followed one another: from the captured scene to a run, with a page that shows them."""
