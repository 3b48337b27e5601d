"""`python -m bmt_trainer`: `bmt-train`, for launchers that want a module."""

from bmt_trainer.cli.main import main

if __name__ == "__main__":
    main()
