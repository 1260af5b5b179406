"""Tables of comma-separated text that list images."""

import csv
import os

from keras_transfer.errors import UserError


def read_rows(path, columns, advice):
    """Yields the rows of a table as dicts of text, each with its line.

    Args:
        path: the table, with a first line that names its columns.
        columns: the names of those that are needed; there may be others.
        advice: sentence that ends each message: where to have the table from,
            or how it should look.

    Yields:
        (line number, {column: text}); blank lines are left out.

    Raises:
        UserError: if the table is not there, or of another form.
    """
    if not os.path.isfile(path):
        raise UserError(f"There is no table {path}. {advice}")
    try:
        # Spreadsheets put a byte order mark in front.
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            _check_columns(rows.fieldnames or (), columns, path, advice)
            for row in rows:
                _check_row(row, columns, path, rows.line_num, advice)
                yield rows.line_num, row
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}. {advice}"
        ) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not a table of comma-separated text. Received: "
            f"{error}. {advice}"
        ) from error


def _check_columns(given, columns, path, advice):
    received = ", ".join(given)[:500]
    missing = set(columns) - set(given)
    if missing:
        raise UserError(
            f"{path} lacks columns: {', '.join(sorted(missing))}. Received: "
            f"{received}. {advice}"
        )
    if any(given.count(name) > 1 for name in columns):
        raise UserError(
            f"{path} has two columns of one name. Received: {received}. "
            f"{advice}"
        )


def _check_row(row, columns, path, line, advice):
    # What is too many or lacking stands under, or is, None.
    if None in row or None in row.values():
        raise UserError(
            f"{path} has a row of more or fewer cells than columns, line "
            f"{line}. Received: {row[columns[0]]!r:.200}. {advice}"
        )
