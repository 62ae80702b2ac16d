"""The error that bad data raises."""


class DataError(ValueError):
    """Data is missing, malformed or does not fit the settings; the message names the place and the fix."""
