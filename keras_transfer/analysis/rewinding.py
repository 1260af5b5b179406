"""Rewinding one module to an earlier epoch (paper section 3.4)."""

import math
from typing import Annotated

import gin
import numpy as np
from tqdm import tqdm

from keras_transfer.analysis.output import new_figure
from keras_transfer.config import schema
from keras_transfer.landscape.module_loss import (
    END_POINTS,
    LEVELS,
    Checkpoints,
    Levels,
    Perturbations,
    parts,
    subject_suffixes,
)

_Epochs = Annotated[tuple[schema.Natural, ...], schema.NotEmpty()]
# Of the checkpoints of one model, so many are in memory at a time.
_CHECKPOINT_BYTES = 2 * 2**30


@gin.configurable
def rewinding(
    subjects,
    output,
    epochs: _Epochs | None = None,
    splits: schema.Splits = ("train", "test"),
    levels: Levels = LEVELS,
):
    """Sets each module back to what it was at earlier epochs.

    All other modules stay at the end point: the last epoch ("final") or the
    best one ("optimal"). Source: paper section 3.4; Zhang, Bengio and Singer
    2019.

    Args:
        subjects: `Subjects`; those trained on the target are looked at.
        output: `Output`; receives rewinding.csv, what is returned, and the
            figures rewinding_final and rewinding_optimal (error by module and
            epoch, mean over models of a kind).
        epochs: integers, the epochs to set back to; None for all stored ones.
            Those after the end point are left out.
        splits: of "train" (without augmentation) and "test".
        levels: of "block" (modules) and "group" (conv1, layer1, ..., fc).

    Returns:
        `pandas.DataFrame`, one row per model, end point, split, level, module
        and epoch: kind, name, end_point, end_epoch, split, level, module,
        depth, epoch, loss (nats), accuracy (share of right answers, for
        multi-label data of right findings), error (0-1 error: 1 - accuracy),
        and for multi-label data auc and auc_<finding>.

    Raises:
        UserError: if a checkpoint is missing, or an argument cannot be used.
    """
    import pandas

    suffixes = {split: subject_suffixes(subjects, split) for split in splits}
    tables = []
    for subject in tqdm(subjects.trained(), "rewinding", unit="model"):
        ends = [subject.run.resolve_epoch(e) for e in END_POINTS.values()]
        for stretch in _stretches(subject.run, epochs):
            loaded = [*ends, *stretch]
            vectors = list(Checkpoints(subject.run, loaded))
            for end, end_point in enumerate(END_POINTS):
                chosen = [
                    k
                    for k in range(len(ends), len(loaded))
                    if loaded[k] <= ends[end]
                ]
                labels = {"kind": subject.kind, "name": subject.name}
                labels |= {"end_point": end_point, "end_epoch": ends[end]}
                for split in splits if chosen else ():
                    found = rewound(
                        suffixes[split],
                        vectors,
                        end,
                        chosen,
                        levels,
                        output.results,
                        f"{subject.name}, {end_point}, {split}",
                    )
                    found.insert(3, "epoch", [loaded[k] for k in found.vector])
                    found = found.drop(columns="vector")
                    tables.append(found.assign(**labels, split=split))
    table = pandas.concat(tables, ignore_index=True)
    table = table.set_index([*labels, "split"]).reset_index()
    output.table("rewinding", table)
    for end_point in END_POINTS:
        rows = table[(table.end_point == end_point)]
        figure = _figure(rows[rows.level == levels[0]], end_point)
        output.figure(f"rewinding_{end_point}", figure)
    return table


def rewound(
    suffixes,
    vectors,
    end,
    chosen,
    levels=LEVELS,
    results=None,
    description="rewinding",
):
    """Sets each module of a model to what it is in other weight vectors.

    Args:
        suffixes: `Suffixes`.
        vectors: K lists of arrays, each as `model.get_weights()` gives them.
        end: int, which of them all other modules are set to.
        chosen: integers, which of them one module is set to.
        levels: of "block" and "group", see `suffixes.parts`.
        results: None or `Results`, see `Suffixes.evaluate`.
        description: str, beside the progress bar.

    Returns:
        `pandas.DataFrame`, one row per level, module and vector: level, module,
        depth, vector (its index), and the columns of `suffixes`.

    Raises:
        UserError: if the vectors do not fit.
    """
    import pandas

    named = {level: parts(suffixes.chain, level) for level in levels}
    request = Perturbations(np.array(chosen, np.float64))
    found = suffixes.evaluate(
        vectors,
        end,
        {part: request for own in named.values() for part in own.values()},
        results,
        description,
    )
    tables = [
        pandas.DataFrame(
            {"level": level, "module": module, "depth": depth, "vector": chosen}
            | found[part]
        )
        for level, own in named.items()
        for depth, (module, part) in enumerate(own.items())
    ]
    return pandas.concat(tables, ignore_index=True)


def _stretches(run, epochs):
    """Yields lists of epochs whose checkpoints are in memory together."""
    if epochs is None:
        epochs = run.epochs()
    epochs = sorted({run.resolve_epoch(epoch) for epoch in epochs})
    weights = Checkpoints(run, epochs)[0]
    size = sum(array.nbytes for array in weights)
    count = max(1, math.floor(_CHECKPOINT_BYTES / size))
    for start in range(0, len(epochs), count):
        yield epochs[start : start + count]


def _figure(table, end_point):
    kinds, splits = (
        list(dict.fromkeys(table[column])) for column in ("kind", "split")
    )
    modules = list(dict.fromkeys(table.module))
    figure, axes = new_figure(
        5.0 * len(splits) + 1,
        (1.0 + 0.22 * len(modules)) * len(kinds) + 0.6,
        len(kinds),
        len(splits),
        squeeze=False,
    )
    for row, kind in zip(axes, kinds, strict=True):
        for panel, split in zip(row, splits, strict=True):
            own = table[(table.kind == kind) & (table.split == split)]
            mean = own.pivot_table("error", "module", "epoch", sort=False)
            mean = mean.sort_index(axis=1)
            image = panel.imshow(
                mean, vmin=0, vmax=1, cmap="cividis", aspect="auto"
            )
            panel.set_yticks(range(len(mean)), mean.index)
            shown = range(0, mean.shape[1], -(-mean.shape[1] // 12))
            panel.set_xticks(shown, mean.columns[list(shown)])
            panel.set_title(f"{kind}, {split} images", fontsize="medium")
    for panel in axes[-1]:
        panel.set_xlabel("epoch a module is set back to")
    figure.colorbar(image, ax=axes, label="mean error")
    figure.suptitle(f"Rewinding one module, others at the {end_point} weights")
    return figure
