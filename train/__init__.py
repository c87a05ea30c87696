"""The trainer and evaluator of aa_flax, run from a checkout as `python -m train COMMAND ...`."""
