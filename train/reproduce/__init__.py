"""`python -m train reproduce`: the published tables, measured again, as a report."""
