"""The tables of a study's analyses, over all of its replications."""

import pathlib

import pandas

from keras_transfer.errors import UserError
from keras_transfer.manifest import Manifest
from keras_transfer.study.claims import find_table
from keras_transfer.study.plan import replication_directory


class Tables:
    """Reads them, each but once.

    Args:
        directory: path of the study.
        replications: int, how many there are.
    """

    def __init__(self, directory, replications):
        self._directory = pathlib.Path(directory)
        self._replications = replications
        self._read = {}

    def read(self, target, analysis, name):
        """Returns a table of all replications, with the column replication.

        Args:
            target: str.
            analysis: str, the analysis that makes it.
            name: str, the table's.

        Returns:
            `pandas.DataFrame`, empty if no replication has it.
        """
        key = (target, analysis, name)
        if key not in self._read:
            found = [
                self._of_one(number, *key).assign(replication=number)
                for number in range(self._replications)
            ]
            self._read[key] = pandas.concat(
                [table for table in found if len(table)]
                or [pandas.DataFrame()],
                ignore_index=True,
            )
        return self._read[key]

    def _of_one(self, number, target, analysis, name):
        place = self._directory / replication_directory(number)
        path = find_table(place / "analyses" / target, name, analysis)
        try:
            return Manifest(path.parent).read_table(path.name)
        except UserError:
            return pandas.DataFrame()
