"""The version, from which the wheel's metadata, the command line and every saved file take it."""

__version__ = "0.1.0"
