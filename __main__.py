"""Where the program starts, also as ``python -m indexcache``: an interrupt ends it without a traceback."""

import signal


def main() -> None:
    """Runs the command line and exits."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Its imports take a moment. From then on the command line answers signals itself.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli import main as run

    run()


if __name__ == "__main__":
    main()
