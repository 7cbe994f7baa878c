"""`python -m dsocr_graph.analyze`: the analyze subcommand of the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dsocr_graph.cli import main as run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `dsocr-graph analyze` with the given arguments, or with those of the process."""
    return run_command(["analyze", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
