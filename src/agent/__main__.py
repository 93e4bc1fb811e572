"""`python -m agent`."""

import logging
import sys

import structlog

from agent.cli import main

if __name__ == "__main__":
    # For commands that print what they found; those that serve configure logs of their own.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    raise SystemExit(main())
