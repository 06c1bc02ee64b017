"""How few bits can a weight have? Formats, rounding, and the layers that multiply by the codes.

`formats` has no torch; `grid` rounds, `linear` multiplies. Nothing is imported here.
"""
