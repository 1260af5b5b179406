"""CheXpert (Irvin et al. 2019) as the paper uses it (section 3)."""

from pathlib import Path

import numpy as np

from keras_transfer.data.csv_files import read_rows
from keras_transfer.data.sources.registry import Found, register
from keras_transfer.errors import UserError

FINDINGS = (
    "Cardiomegaly",
    "Edema",
    "Consolidation",
    "Atelectasis",
    "Pleural Effusion",
)
# What an uncertain mention (-1) counts as; no mention is negative.
_UNCERTAIN = {
    "Cardiomegaly": 0,
    "Edema": 1,
    "Consolidation": 0,
    "Atelectasis": 1,
    "Pleural Effusion": 0,
}
# Training images with one of these are listed twice.
_DOUBLED = ("Cardiomegaly", "Consolidation")

_INSTRUCTIONS = (
    "Register at https://stanfordmlgroup.github.io/competitions/chexpert/, "
    "download and unpack CheXpert-v1.0-small (or CheXpert-v1.0), and bind "
    "load.data_dir to the folder that holds train.csv."
)


def doubled(labels):
    """Returns which training examples to see, some of them twice.

    Args:
        labels: float32 [n, 5].

    Returns:
        Integers, each of 0..n-1 once, or twice in a row if positive for
        Cardiomegaly or Consolidation.
    """
    columns = [FINDINGS.index(name) for name in _DOUBLED]
    positive = labels[:, columns].any(axis=1)
    return np.repeat(np.arange(len(labels)), 1 + positive)


@register(
    "chexpert",
    mean=128 / 255,
    std=64 / 255,
    fit="xray",
    keep="encoded",
    repeat=doubled,
)
def find_chexpert(data_dir, split_size, split_seed, test_split):
    """Finds the images and the findings of `FINDINGS`.

    The rows of `train.csv` are permuted by NumPy's `RandomState(split_seed)`;
    the first `split_size` are for training and the next for testing.

    Args:
        data_dir: the unpacked folder, with `train.csv`, `valid.csv`, `train`
            and `valid`.
        split_size: number of images in either split; None for half of all.
        split_seed: seed of the permutation; the paper's is 1234.
        test_split: None or "test", or "valid": the official validation images.

    Returns:
        A `Found`.

    Raises:
        UserError: if the folder or what is in it is not CheXpert's.
    """
    if test_split not in (None, "test", "valid"):
        raise UserError(
            "CheXpert's test_split is 'test' (drawn from train.csv, as in the "
            "paper) or 'valid' (the official validation images). "
            f"Received: test_split={test_split!r}."
        )
    paths, labels = _read_csv(data_dir, "train.csv")
    size = len(paths) // 2 if split_size is None else split_size
    if not 0 < size <= len(paths) // 2:
        raise UserError(
            f"train.csv has {len(paths)} rows, too few for two splits of this "
            f"size. Received: split_size={split_size}."
        )
    order = np.random.RandomState(split_seed).permutation(len(paths))
    train, test = (
        ([paths[i] for i in rows], labels[rows])
        for rows in (order[:size], order[size : 2 * size])
    )
    if test_split == "valid":
        test = _read_csv(data_dir, "valid.csv")
    return Found.of_splits(FINDINGS, train, test)


def _read_csv(data_dir, name):
    """Returns the paths and labels of one table's images."""
    if data_dir is None or not Path(data_dir, name).is_file():
        raise UserError(
            f"There is no CheXpert here: no {name}. Received: "
            f"data_dir={data_dir!r}. {_INSTRUCTIONS}"
        )
    table = Path(data_dir, name)
    paths, labels = [], []
    for line, row in read_rows(table, ("Path", *FINDINGS), _INSTRUCTIONS):
        # The path begins with the name of the archive's folder.
        parts = Path(row["Path"]).parts[1:]
        if not parts or "\0" in row["Path"]:
            raise UserError(
                f"{table} must name an image in every row, as <folder>/<path>. "
                f"Received: {row['Path']!r} in line {line}."
            )
        paths.append(Path(data_dir, *parts))
        labels.append([_label(row, finding, table) for finding in FINDINGS])
    return paths, np.array(labels, np.float32).reshape(-1, len(FINDINGS))


def _label(row, finding, table):
    value = row[finding]
    try:
        number = float(value or 0)
        return {1: 1, 0: 0, -1: _UNCERTAIN[finding]}[number]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{table} has a label that is not 1, 0, -1 or empty. Received: "
            f"{finding}={value!r} for {row['Path']}."
        ) from error
