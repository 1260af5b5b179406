"""A line for each thing that is finished, where no progress bar is shown.

Bars are for terminals. A command whose output goes elsewhere, into a log file
or to a scheduler, asks for lines; used as a library, this package is silent.
"""

import contextlib
import sys

from keras_transfer import files

_asked = False
_log = None


def ask_for_lines():
    """Has `tell` say from now on what is finished."""
    global _asked
    _asked = True


@contextlib.contextmanager
def logging_to(path):
    """Has `tell` add its lines to a log, too, in the block.

    Args:
        path: `pathlib.Path` of the log.
    """
    global _log
    before, _log = _log, path
    try:
        yield
    finally:
        _log = before


def tell(line):
    """Says that something is finished, where that was asked for.

    Args:
        line: str.
    """
    if _log:
        files.add_lines(_log, [line])
    if _asked:
        write_line(line)


def write_line(line):
    """Writes a line where a bar would be, unless that is a terminal.

    Args:
        line: str.
    """
    if not sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)
