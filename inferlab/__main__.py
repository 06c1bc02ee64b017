"""`python -m inferlab` is the command line."""

from inferlab.cli.app import main

if __name__ == "__main__":
    main()
