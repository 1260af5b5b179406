"""A study's runs for TensorBoard, named as people would say them."""

import pathlib
import re

import pandas

from keras_transfer import files
from keras_transfer.runs import Summaries

# What the directories of a study are called, in words.
_WORDS = {
    r"blocks_(\d+)": r"on blocks of \1 px",
    r"pixels": "on shuffled pixels",
    r"from_epoch_(\d+)": r"from epoch \1 of P",
    r"images_(\d+)": r"with \1 images",
}
_HPARAMS = {
    "kind": "kind",
    "target": "target",
    "replication": "replication",
    "block_size": "block size",
    "from_epoch": "epoch of P",
    "num_train": "training images",
}
_METRICS = {
    "final": "metric after the last epoch",
    "best": "metric at the best epoch",
    "speed": "metric averaged over epochs",
}


def write_tensorboard(path, report):
    """Writes what TensorBoard shows of a study as a whole.

    One run for each that was trained: its HParams (kind, target, replication,
    and what the sweeps vary), its final metrics and, where the report draws it,
    its learning curve. What an earlier call wrote is replaced.

    Args:
        path: the directory, as of `tensorboard --logdir`.
        report: `Report`.

    Raises:
        UserError: if it cannot be written.
    """
    path = pathlib.Path(path)
    with files.writing(path):
        files.remove(path)
    runs = report.runs[report.runs.state == "finished"]
    names = [column for column in _HPARAMS if column in runs]
    top = Summaries(path)
    top.write_experiment([_HPARAMS[name] for name in names], _METRICS)
    top.close()
    curves = report.curves
    by_run = dict(list(curves.groupby("run"))) if len(curves) else {}
    for row in runs.to_dict("records"):
        summaries = Summaries(path / run_name(row["name"]))
        summaries.write_hparams(
            {
                _HPARAMS[name]: _plain(row[name])
                for name in names
                if not pandas.isna(row[name]) and row[name] != ""
            }
        )
        summaries.write_scalars(0, {}, {name: row[name] for name in _METRICS})
        _write_curve(summaries, by_run.get(row["name"]))
        summaries.close()


def run_name(name):
    """Returns how people would say a run.

    Args:
        name: str, see `Report.runs`, such as
            "replication_2/digits/blocks_4/P-T".

    Returns:
        str, such as "digits, P-T on blocks of 4 px, replication 2".
    """
    replication, *target, run = name.split("/")
    sweep = target[1:]
    said = [run.replace("_", " ")]
    for part in sweep:
        for pattern, words in _WORDS.items():
            if re.fullmatch(pattern, part):
                part = re.sub(pattern, words, part)
        said.append(part)
    parts = [*target[:1], " ".join(said), replication.replace("_", " ")]
    return ", ".join(parts)


def _write_curve(summaries, curve):
    if curve is None:
        return
    metric = curve.metric.iloc[0]
    for epoch, rows in curve.groupby("epoch"):
        splits = {
            row.split: {"loss": row.loss, metric: row.value}
            for row in rows.itertuples()
        }
        summaries.write_scalars(int(epoch), splits, {})


def _plain(value):
    """Returns a value as HParams have it: block sizes have been made floats."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | float | str) else str(value)
