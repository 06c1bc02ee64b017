"""The command line: one module a verb, registered in `inferlab.cli.app`."""
