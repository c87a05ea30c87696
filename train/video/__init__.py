"""`python -m train video`: how often a network changes its mind from frame to frame."""
