"""`python -m bmt_server`."""

from bmt_server.cli import main

if __name__ == "__main__":
    main()
