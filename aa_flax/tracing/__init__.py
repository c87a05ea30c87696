"""What a network does with an input, read from its traced program."""
