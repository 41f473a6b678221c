"""qnode: the open node software of a quantum key distribution link."""

__version__ = "0.2.0"
