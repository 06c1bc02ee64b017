"""What can a server behind a URL take: one run, a sweep of rates, the highest rate within an SLO?

`plan` turns options into a workload, `point` sends it, `search` looks for the rate, `report` says
what came of it. The client is `inferlab.client`; the verb is `inferlab load`.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""
