"""metrics.csv: one row an evaluation."""

import csv
import io

from keras_transfer import reading
from keras_transfer.errors import UserError


def to_text(rows):
    """Returns metrics.csv of dicts that share the first one's keys.

    Args:
        rows: list of dicts.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_rows(text, path):
    """Returns metrics.csv as a list of dicts of strings.

    Args:
        text: str, its content.
        path: the file, to name it.

    Raises:
        UserError: if it is damaged.
    """
    with reading.damaged(path):
        rows = list(csv.DictReader(io.StringIO(text)))
        for row in rows:
            int(row["epoch"])
            row["split"].strip()
        return rows


def as_table(content, path):
    """Returns metrics.csv as a `pandas.DataFrame`.

    Args:
        content: bytes.
        path: the file, to name it.

    Raises:
        UserError: if it is damaged.
    """
    table = reading.as_table(content, path, index_col=False)
    with reading.damaged(path):
        _check_table(table)
    return table


def _check_table(table):
    if not len(table) or table["split"].dtype.kind in "iufb":
        raise ValueError("it has no rows of an evaluation")
    numbers = table.drop(columns="split").dtypes
    for name in ("epoch", "step", *numbers.index):
        if numbers[name].kind not in "iuf":
            raise ValueError(f"column {name} holds more than numbers")
    if numbers["epoch"].kind == "f" or table["split"].isna().any():
        raise ValueError("a row is cut short")


def check_rows(rows, path, last, metric):
    """Checks that metrics.csv has every row up to an epoch.

    Args:
        rows: list of dicts, what `read_rows` returned.
        path: the file, to name it.
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
        rows = [row for row in rows if int(row["epoch"]) <= last]
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
