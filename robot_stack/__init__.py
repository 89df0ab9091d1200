"""robot-stack: the language that control server, policies and collection tools share."""

__version__ = "0.1.0"
