"""`python -m compass.rebuild --collection … --space … --embed-endpoint URL`."""

from __future__ import annotations

import importlib


def main() -> None:
    """Run the command.

    It is a client of the service, and what a command says belongs to `compass.cli`, which is above this
    package; so it is found by its name, when it is run, and nothing here depends on it.
    """
    importlib.import_module("compass.cli.rebuild_job").main(prog_name="python -m compass.rebuild")


if __name__ == "__main__":
    main()
