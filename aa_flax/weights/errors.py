"""The one error that weight files raise."""


class CheckpointError(ValueError):
    """A weight file is not what it should be; the message names the file and what to do."""
