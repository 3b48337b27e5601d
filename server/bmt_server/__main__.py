"""`python -m bmt_server`."""

from bmt_server.cli.main import main

if __name__ == "__main__":
    main()
