"""The package that the labs and chapters of "Inference, Measured" share."""

__version__ = "0.1.0"
