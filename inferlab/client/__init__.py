"""How is a server loaded honestly: requests sent when due, every token stamped when it arrives?

`drive.drive` sends a workload to an OpenAI-compatible URL, open or closed loop, and returns a trace
with a verdict on the client itself (`honesty`). `mock` starts a server with known delays and
faults, and `calibrate` holds the client's times against that server's own log.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""
