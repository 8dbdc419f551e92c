"""Methods of editing compared on one scene at equal cost."""
