"""How does our engine answer over HTTP, in the form that the field's clients speak?

Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from inferlab.server.app import create_app
from inferlab.server.run import ServeOptions, serve
from inferlab.server.worker import EngineWorker

__all__ = ["EngineWorker", "ServeOptions", "create_app", "serve"]
