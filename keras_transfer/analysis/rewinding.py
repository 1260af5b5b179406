"""Rewinding one module to an earlier epoch (paper section 3.4)."""

import math
from typing import Annotated

import numpy as np
import pandas
from tqdm import tqdm

from keras_transfer.analysis.declaration import Figure, declare_analysis
from keras_transfer.analysis.drawing import new_figure
from keras_transfer.config import schema
from keras_transfer.landscape.module_loss import (
    LEVELS,
    Levels,
    Perturbations,
    parts,
)

# Where all other modules are: {name: which epoch}.
END_POINTS = {"final": "last", "optimal": "best"}
_SPLITS = ("train", "test")
_Epochs = Annotated[tuple[schema.Natural, ...], schema.NotEmpty()]
# Of the checkpoints of one model, so many are in memory at a time.
_CHECKPOINT_BYTES = 2 * 2**30
_TEXT = (
    "Mean error over the models of a kind, one module set back to an earlier "
    "epoch and all others left where they are: what may be set back without "
    "loss has hardly been trained."
)


@declare_analysis(
    figures=[
        Figure(
            "rewinding_final",
            lambda table: _figure(table, "final"),
            "Rewinding one module, others at the last epoch",
            _TEXT,
        ),
        Figure(
            "rewinding_optimal",
            lambda table: _figure(table, "optimal"),
            "Rewinding one module, others at the best epoch",
            _TEXT,
        ),
    ],
    cost=lambda options, models: (
        models
        * len(END_POINTS)
        # How many checkpoints there will be is not known.
        * len(options["epochs"] or range(60))
        * len(options["splits"] or _SPLITS)
    ),
    by_module=True,
)
def rewinding(
    models,
    epochs: _Epochs | None = None,
    splits: schema.Splits | None = None,
    levels: Levels = LEVELS,
):
    """Sets each module back to what it was at earlier epochs.

    All other modules stay at the end point: the last epoch ("final") or the
    best one ("optimal"). Source: paper section 3.4; Zhang, Bengio and Singer
    2019.

    Args:
        models: `Models`; those trained on the target are looked at, each a run
            or a `Trajectory`.
        epochs: integers, the epochs to set back to; None for all stored ones.
            Those after the end point are left out.
        splits: of "train" (without augmentation) and "test"; None: those that
            the data have.
        levels: of "block" (modules) and "group" (conv1, layer1, ..., fc).

    Returns:
        `pandas.DataFrame`, one row per model, end point, split, level, module
        and epoch: kind, name, end_point, end_epoch, split, level, module,
        depth, epoch, loss (nats), accuracy (share of right answers, for
        multi-label data of right findings), error (0-1 error: 1 - accuracy),
        and for multi-label data auc and auc_<finding>.

    Raises:
        UserError: if a model has no epochs, or a checkpoint is missing.
    """
    members = models.trained(1, "Rewinding")
    splits = splits or [s for s in _SPLITS if models.examples.has(s)]
    tables = [
        table
        for member in tqdm(members, "rewinding", unit="model", disable=None)
        for stretch in _stretches(models, member, epochs)
        for table in _set_back(models, member, stretch, splits, levels)
    ]
    table = pandas.concat(tables, ignore_index=True)
    first = ["kind", "name", "end_point", "end_epoch", "split"]
    return table.set_index(first).reset_index()


def _stretches(models, member, epochs):
    """Yields lists of epochs whose checkpoints are in memory together."""
    source = member.source
    if epochs is None:
        # A model without a past says so.
        epochs = source.epochs() or [0]
    epochs = sorted({source.resolve_epoch(epoch) for epoch in epochs})
    size = sum(array.nbytes for array in models.weights(member))
    count = max(1, math.floor(_CHECKPOINT_BYTES / size))
    for start in range(0, len(epochs), count):
        yield epochs[start : start + count]


def _set_back(models, member, epochs, splits, levels):
    """Yields a table for each end point and split."""
    ends = [member.source.resolve_epoch(e) for e in END_POINTS.values()]
    loaded = [*ends, *epochs]
    vectors = list(models.checkpoints(member, loaded))
    for end, end_point in enumerate(END_POINTS):
        chosen = [
            k for k in range(len(ends), len(loaded)) if loaded[k] <= ends[end]
        ]
        for split in splits if chosen else ():
            found = _rewound(
                models.module_loss(split),
                vectors,
                end,
                chosen,
                levels,
                models.evaluations,
                f"{member.name}, {end_point}, {split}",
            )
            found.insert(3, "epoch", [loaded[k] for k in found.vector])
            yield found.drop(columns="vector").assign(
                kind=member.kind,
                name=member.name,
                end_point=end_point,
                end_epoch=ends[end],
                split=split,
            )


def _rewound(
    module_loss, vectors, end, chosen, levels, evaluations, description
):
    """Sets each module of a model to what it is in other weight vectors.

    Args:
        module_loss: `ModuleLoss`.
        vectors: K lists of arrays, each as `model.get_weights()` gives them.
        end: int, which of them all other modules are set to.
        chosen: integers, which of them one module is set to.
        levels: see `module_loss.parts`.
        evaluations: see `ModuleLoss.evaluate`.
        description: likewise.

    Returns:
        `pandas.DataFrame`, one row per level, module and vector: level, module,
        depth, vector (its index), and the columns of `module_loss`.
    """
    named = {level: parts(module_loss.chain, level) for level in levels}
    set_back = Perturbations(np.array(chosen, np.float64))
    every_part = [part for own in named.values() for part in own.values()]
    found = module_loss.evaluate(
        vectors,
        end,
        dict.fromkeys(every_part, set_back),
        evaluations,
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


def _figure(table, end_point):
    table = table[table.end_point == end_point]
    table = table[table.level == table.level.iloc[0]]
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
