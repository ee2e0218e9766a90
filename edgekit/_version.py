"""The version, in one place: the build reads it, and so does the program."""

__version__ = "0.1.0.dev0"
