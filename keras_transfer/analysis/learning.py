"""What learning curves tell: how much was learned, how fast, and to the end?"""

import dataclasses

from keras_transfer.analysis.statistics import HARM
from keras_transfer.analysis.trajectory import about, learning_curve
from keras_transfer.data import Info
from keras_transfer.errors import UserError


def learning_summary(source):
    """Returns what a model learned, and how fast.

    Source: paper section 3.1. The initialization, epoch 0, has learned nothing
    yet and is left out.

    Args:
        source: the `runs.Run`, or `Trajectory`.

    Returns:
        dict: "epochs" (int, the evaluations after the initialization, one an
        epoch), "final" (test accuracy at the last of them, or for multi-label
        data AUC) and "speed" (optimization speed: its mean over all of them).

    Raises:
        UserError: if there was no evaluation after the initialization.
    """
    return _summary(learning_curve(source)[1])


def _summary(values):
    """Does what `learning_summary` does, of the values of a curve."""
    return {
        "epochs": len(values),
        "final": float(values.iloc[-1]),
        "speed": float(values.mean()),
    }


def last_fifth(source):
    """Returns where a model's learning curve ends, and whether it is flat.

    Args:
        source: the `runs.Run`, or `Trajectory`.

    Returns:
        dict: "averaged" (int, the epochs that are the last fifth, one at
        least), "level" (float, mean test accuracy, or AUC, over them) and
        "rise" (float, by how much the level lies above that of the fifth
        before; NaN of a single epoch). A model has converged if its rise is at
        most `HARM`.

    Raises:
        UserError: if there was no evaluation after the initialization.
    """
    return _last_fifth(learning_curve(source)[1])


def _last_fifth(values):
    """Does what `last_fifth` does, of the values of a curve."""
    fifth = max(1, len(values) // 5)
    level = float(values.iloc[-fifth:].mean())
    before = float(values.iloc[-2 * fifth : -fifth].mean())
    return {"averaged": fifth, "level": level, "rise": level - before}


def learned(source, averaged=False):
    """Returns the columns that tables of learning curves have in common.

    Args:
        source: the `runs.Run`, or `Trajectory`.
        averaged: bool, whether final is the mean over the last fifth of the
            epochs: the accuracy of a single one is noisy.

    Returns:
        dict: what `learning_summary` returns, "averaged" (int, the epochs of
        which final is the mean; only if it is), "rise" (see `last_fifth`),
        "converged" (bool) and "metric" ("accuracy" or "auc").
    """
    metric, values = learning_curve(source)
    columns, end = _summary(values), _last_fifth(values)
    if averaged:
        columns |= {"final": end["level"], "averaged": end["averaged"]}
    return columns | {
        "rise": end["rise"],
        "converged": end["rise"] <= HARM,
        "metric": metric,
    }


def unconverged(table):
    """Returns a sentence that names the RI-Ts which have not converged.

    What P saves is overstated where a model without it was still learning when
    its training ended.

    Args:
        table: `pandas.DataFrame` of the columns kind, name and converged, see
            `learned`.

    Returns:
        str, "" if all have converged.
    """
    rising = (table.kind == "RI-T") & ~table.converged
    if not rising.any():
        return ""
    return (
        f"RI-T not converged, risen by more than {HARM} in the last fifth of "
        f"its epochs: {', '.join(table['name'][rising])}."
    )


def check_same_data(members, ignored=()):
    """Raises a `UserError` unless models were trained on the same data.

    Fields of `data.Info` must agree where both of two models know them: those
    of runs do all, a trajectory the images' shape and what it was given.

    Args:
        members: sequence of `Member`.
        ignored: names of the fields in which they may differ.
    """
    first, *others = members
    expected = about(first.source)
    compared = {field.name for field in dataclasses.fields(Info)}
    for other in others:
        found = about(other.source)
        for field in expected:
            if field in ignored or field not in compared & found.keys():
                continue
            if found[field] != expected[field]:
                raise UserError(
                    "The models of a sweep must be trained on the same data. "
                    f"Received: {first.name} with {field} = "
                    f"{expected[field]!r} and {other.name} with "
                    f"{found[field]!r}."
                )


def check_metric(table):
    """Raises a `UserError` unless models are compared by one metric.

    Args:
        table: `pandas.DataFrame` of the column metric.
    """
    if table.metric.nunique() > 1:
        raise UserError(
            "The models of a sweep are compared by one metric. Received: "
            f"{' and '.join(table.metric.unique())}."
        )


def mark_unconverged(axes, table, x, y):
    """Draws rings around the models that have not converged.

    Args:
        axes: of Matplotlib.
        table: `pandas.DataFrame` of the column converged, see `learned`.
        x: str, its column of positions.
        y: str, its column of values.
    """
    rising = table[~table.converged]
    if len(rising):
        axes.plot(
            rising[x],
            rising[y],
            "o",
            markersize=8,
            fillstyle="none",
            color="0.4",
            label="not converged",
        )
        axes.legend(fontsize="small")
