"""``python -m fastassign``: the command line."""

from __future__ import annotations

from fastassign.cli import main

if __name__ == "__main__":
    main()
