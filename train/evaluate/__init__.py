"""`python -m train evaluate`: accuracy and shift consistency over a stream of photos, each counted once."""
