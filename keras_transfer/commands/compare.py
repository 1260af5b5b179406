"""Holds two studies against each other: claims, intervals, verdicts.

    bin/compare runs/study_digits runs/study_digits_again

Prints one table, in which "apart" marks intervals that do not overlap, and
writes the same with all statistics as compare.html in the working directory; a
former one is replaced.
"""

import pathlib

from keras_transfer import app, environment
from keras_transfer.errors import UserError

_OUTPUT = "compare.html"


def main(*studies):
    """Compares two studies.

    Args:
        *studies: their two directories, str.

    Raises:
        UserError: if there are not two, or they cannot be compared.
    """
    if len(studies) != 2:
        raise UserError(
            f"{app.command('compare')} takes the directories of two studies. "
            f"Received: {len(studies)}."
        )
    # Not above: it takes seconds, and --help needs none of it.
    environment.prepare_keras()
    from keras_transfer.study.report.comparison import (
        compare,
        comparison_text,
        write_comparison,
    )

    table = compare(*studies)
    names = [pathlib.Path(study).resolve().name for study in studies]
    if names[0] == names[1]:
        names = list(studies)
    print(comparison_text(table, names))
    write_comparison(pathlib.Path(_OUTPUT), table, names)
    print(f"\nThe same with all statistics: {_OUTPUT}")
