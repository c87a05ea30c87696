"""`python -m train fit` and `export`: a run, from its configuration to its weights."""
