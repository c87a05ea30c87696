"""Networks as measurements take them, whoever made them: `network.py` is the form, one file a kind fills it."""
