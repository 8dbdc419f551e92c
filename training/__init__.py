"""How the bundled priors were made: `python -m training.tiny_instruct --help`."""
