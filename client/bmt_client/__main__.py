"""`python -m bmt_client`: the same as `bmt-client`."""

from bmt_client.cli import main

main()
