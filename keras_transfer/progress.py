"""A line for each thing that is finished, where no progress bar is shown.

Bars are for terminals. A command whose output goes elsewhere, into a log file
or to a scheduler, asks for lines; used as a library, this package is silent.
"""

import sys

_asked = False


def ask_for_lines():
    """Has `tell` say from now on what is finished."""
    global _asked
    _asked = True


def tell(line):
    """Says that something is finished, if a command has asked for it.

    Args:
        line: str.
    """
    if _asked:
        write_line(line)


def write_line(line):
    """Writes a line where a bar would be, unless that is a terminal.

    Args:
        line: str.
    """
    if not sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)
