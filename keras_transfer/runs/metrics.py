"""metrics.csv: one row an evaluation."""

import csv
import io

from keras_transfer import files
from keras_transfer.errors import UserError


def write_rows(path, rows):
    """Writes metrics.csv from dicts that share the first one's keys.

    Args:
        path: the file.
        rows: list of dicts.

    Raises:
        UserError: if it cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, text.getvalue())


def read_rows(path):
    """Returns metrics.csv as a list of dicts of strings, [] if absent."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_table(path):
    """Returns metrics.csv as a `pandas.DataFrame`.

    Args:
        path: the file.

    Raises:
        ValueError: if it is damaged; or what pandas raises.
    """
    import pandas

    table = pandas.read_csv(path, index_col=False)
    if not len(table) or table["split"].dtype.kind in "iufb":
        raise ValueError("it has no rows of an evaluation")
    numbers = table.drop(columns="split").dtypes
    for name in ("epoch", "step", *numbers.index):
        if numbers[name].kind not in "iuf":
            raise ValueError(f"column {name} holds more than numbers")
    if numbers["epoch"].kind == "f" or table["split"].isna().any():
        raise ValueError("a row is cut short")
    return table


def check_rows(path, last, metric):
    """Checks that metrics.csv has every row up to an epoch.

    Args:
        path: the file.
        last: int, the epoch.
        metric: str, the column that ranks epochs.

    Raises:
        UserError: if a row is missing or is not what training writes.
    """
    needed = {("0", "test")} | {
        (str(epoch), split)
        for epoch in range(1, last + 1)
        for split in ("train", "test")
    }
    try:
        rows = [row for row in read_rows(path) if int(row["epoch"]) <= last]
        for row in rows:
            int(row["step"]), float(row["loss"])
            # Multi-label training has no metric of its own.
            if row["split"] == "test":
                float(row[metric])
        if {(row["epoch"], row["split"]) for row in rows} == needed:
            return
    except (ValueError, KeyError, TypeError, csv.Error):
        pass
    raise UserError(
        f"{path} is damaged: it does not have the rows of epochs 0 to {last}, "
        "which are trained. Put back a copy of it, or remove "
        f"{path.parent} to train from the start."
    )
