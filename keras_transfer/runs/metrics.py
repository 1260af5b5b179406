"""metrics.csv: one row an evaluation.

"chooses" is 1 in the rows of the split by whose metric the best epoch is
chosen: validation where there is such a split, else test.
"""

import csv
import io
import math

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


def choosing_split(splits):
    """Returns which of the splits that are evaluated chooses the best epoch."""
    return "validation" if "validation" in splits else "test"


def rows_of(epoch, step, summaries):
    """Returns the rows of one epoch as dicts.

    Args:
        epoch: int, epochs finished.
        step: int, optimizer steps taken.
        summaries: {split: {column: value}}, loss and metrics.
    """
    choosing = choosing_split(summaries)
    return [
        {
            "epoch": epoch,
            "step": step,
            "split": split,
            "chooses": int(split == choosing),
        }
        | {name: _text(value) for name, value in summary.items()}
        for split, summary in summaries.items()
    ]


def choosing_value(summaries, metric):
    """Returns what `choosing_values` will read of an epoch.

    Args:
        summaries: as `rows_of` takes them.
        metric: str, the column.
    """
    return float(_text(summaries[choosing_split(summaries)][metric]))


def _text(value):
    return f"{value:.9g}"


def choosing_values(rows, metric):
    """Returns {epoch: value} of the metric by which the best is chosen.

    Args:
        rows: list of dicts, what `read_rows` returned.
        metric: str, the column.
    """
    return {
        int(row["epoch"]): float(row[metric]) for row in rows if _chooses(row)
    }


def chosen_on(rows):
    """Returns the splits on which rows say that the best epoch is chosen."""
    return {row["split"] for row in rows if _chooses(row)}


def _chooses(row):
    # Where the column is missing, there was no other split than test.
    return int(row["chooses"]) if "chooses" in row else row["split"] == "test"


def flat(summaries):
    """Returns {"name/split": value} of {split: {name: value}}."""
    return {
        f"{name}/{split}": value
        for split, summary in summaries.items()
        for name, value in summary.items()
    }


def best_epoch(values):
    """Returns the epoch of the largest of {epoch: value}, the first of equals.

    NaN is the largest only where there is nothing else.
    """
    finite = {e: v for e, v in values.items() if not math.isnan(v)}
    return max(finite or values, key=(finite or values).get)


def has_stopped(values, patience):
    """Returns whether early stopping has come.

    Args:
        values: {epoch: value} of the metric, of all epochs so far.
        patience: int, so many epochs without a better one than before; None for
            no early stopping.
    """
    if patience is None or not values:
        return False
    return max(values) - best_epoch(values) >= patience


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


def check_rows(rows, path, last, metric, has_validation=False):
    """Checks that metrics.csv has every row up to an epoch.

    Args:
        rows: list of dicts, what `read_rows` returned.
        path: the file, to name it.
        last: int, the epoch.
        metric: str, the column that ranks epochs.
        has_validation: bool, whether there is a validation split.

    Raises:
        UserError: if a row is missing or is not what training writes.
    """
    evaluated = ("test", "validation") if has_validation else ("test",)
    needed = {
        (str(epoch), split)
        for epoch in range(last + 1)
        for split in evaluated + (("train",) if epoch else ())
    }
    try:
        rows = [row for row in rows if int(row["epoch"]) <= last]
        for row in rows:
            int(row["step"]), float(row["loss"])
            # Multi-label training has no metric of its own.
            if row["split"] != "train":
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
