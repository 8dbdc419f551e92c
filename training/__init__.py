"""How the bundled priors were made: `python -m training --help`."""
