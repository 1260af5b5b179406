"""Averages of the weights of several solutions ("soups", paper section 6)."""

import os
import pathlib
import shutil
import tempfile

import gin
import numpy as np
import pandas
import tensorflow as tf

from keras_transfer import files, objectives
from keras_transfer.analysis.declaration import (
    Figure,
    Statistic,
    declare_analysis,
)
from keras_transfer.analysis.drawing import colour, new_figure
from keras_transfer.analysis.statistics import HARM
from keras_transfer.analysis.trajectory import copy_of
from keras_transfer.errors import UserError
from keras_transfer.landscape.weight_space import Points
from keras_transfer.models import logits_model
from keras_transfer.runs import Run

_MODELS = ("member", "uniform", "greedy", "ensemble")
_EXAMPLES = {
    "all": slice(None),
    "selection": slice(0, None, 2),
    "report": slice(1, None, 2),
}


def greedy_soup(score, num_members):
    """Chooses members whose average scores best, one by one.

    Members are tried from the best to the worst; each stays if the average with
    it scores no less than the one without.

    Source: Wortsman et al. 2022, recipe 1 (greedy soup).

    Args:
        score: function of a list of members -> float, the score of their
            average; higher is better.
        num_members: int.

    Returns:
        list of int, the chosen members, the best one first.
    """
    singles = [score([i]) for i in range(num_members)]
    order = sorted(range(num_members), key=lambda i: -singles[i])
    chosen, best = order[:1], singles[order[0]]
    for member in order[1:]:
        tried = score([*chosen, member])
        if tried >= best:
            chosen, best = [*chosen, member], tried
    return chosen


def gain(table, kind="P-T"):
    """Returns the statistic of claim C12, what averaging adds.

    Args:
        table: what `averaging` returns.
        kind: kind of model.

    Returns:
        float, accuracy (or AUC) of the uniform average minus the mean of its
        members', on all test images.

    Raises:
        UserError: if there were not two models of the kind.
    """
    metric = "auc" if "auc" in table else "accuracy"
    rows = table[(table.examples == "all") & (table.kind == kind)]
    if rows.empty:
        raise UserError(
            f"An average of {kind} needs two or more of them; name them in "
            f"Models.models. Received: {', '.join(table.kind.unique())}."
        )
    average, members = (
        rows[metric][rows.model == model] for model in ("uniform", "member")
    )
    return float(average.item() - members.mean())


@declare_analysis(
    figures=[
        Figure(
            "averaging",
            lambda table: _figure(table),
            "Averages of the weights",
            "Each model by itself (rings), averages of their weights, and the "
            "ensemble, which averages their answers.",
        )
    ],
    statistics=[
        Statistic(
            "C12",
            "Averaging models of one basin does no harm.",
            "accuracy of the average minus the mean of its members'",
            ">",
            -HARM,
            gain,
            unit="points",
        )
    ],
    cost=lambda options, models: 2 * models,
)
def averaging(models, save_to: os.PathLike | None = None):
    """Averages the models of each kind, weight for weight.

    Beside the uniform average of all stands the greedy one, whose members are
    chosen by accuracy (AUC for multi-label data) on every other test image, and
    the ensemble, the mean of the members' probabilities, which costs as many
    forward passes as it has members. Batch normalization's statistics are by
    `Models.batch_norm`.

    Args:
        models: `Models`, two or more of one kind.
        save_to: directory in which averages are kept, None for nowhere. Those
            of runs are run directories average_<kind>_<uniform or greedy>,
            which bin/export, bin/analyze and train.pretrained accept: the
            average is their best and last epoch, numbered as the last of the
            members'; their epoch 0 is the average of the members' epochs 0.
            Those of other models are files of that name and .keras.

    Returns:
        `pandas.DataFrame`, one row per kind, model and examples: kind, model
        ("member", "uniform", "greedy" or "ensemble"), members (names), examples
        ("all", or of these "selection", every other one, which chose the greedy
        average, or "report", the others), loss (nats) and accuracy, or auc and
        auc_<finding>.

    Raises:
        UserError: if no kind has two models, or a file cannot be written.
    """
    trained = models.trained()
    kinds = {m.kind: models.of_kind(m.kind) for m in trained}
    kinds = {kind: own for kind, own in kinds.items() if len(own) > 1}
    if not kinds:
        raise UserError(
            "An average needs two or more models of one kind. Received: "
            f"{', '.join(m.name for m in trained) or 'none'}."
        )
    rows = []
    for kind, own in kinds.items():
        candidates = _Candidates(models, own)
        averages = {
            "uniform": list(range(len(own))),
            "greedy": greedy_soup(candidates.score, len(own)),
        }
        rows += _compared(kind, candidates, averages)
        for name, chosen in averages.items():
            if save_to is not None:
                _save(
                    pathlib.Path(save_to) / f"average_{kind}_{name}",
                    models,
                    [own[i] for i in chosen],
                    candidates.weights(chosen),
                    candidates.summary(chosen, "all"),
                )
    return pandas.DataFrame(rows)


def _compared(kind, candidates, averages):
    """Returns the rows of one kind.

    Args:
        kind: str.
        candidates: `_Candidates`.
        averages: {name: positions of the members}.
    """
    everyone = averages["uniform"]
    compared = [("member", [i]) for i in everyone]
    compared += [*averages.items(), ("ensemble", everyone)]
    return [
        {
            "kind": kind,
            "model": model,
            "members": candidates.names(chosen),
            "examples": examples,
        }
        | candidates.summary(chosen, examples, model == "ensemble")
        for model, chosen in compared
        for examples in _EXAMPLES
    ]


def _save(path, models, members, weights, summary):
    """Keeps an average, in the form that its members have.

    Args:
        path: `pathlib.Path`, of a run directory or, with .keras, of a file;
            what is there is replaced.
        models: the `Models` that the members belong to.
        members: list of `Member`.
        weights: list of arrays as `models.weights` gives them, the average.
        summary: {column: value}, its test loss and metrics.
    """
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if all(isinstance(member.source, Run) for member in members):
        with files.whole_directory(path) as aside:
            _write_run(Run(aside), models, members, weights, summary)
        return
    model = _with_weights(members[0], weights)
    with (
        files.whole_file(f"{path}.keras") as aside,
        tempfile.TemporaryDirectory() as elsewhere,
    ):
        # Keras writes to no other names.
        file = pathlib.Path(elsewhere, "average.keras")
        model.save(file)
        shutil.copyfile(file, aside)


def _write_run(run, models, members, weights, summary):
    epoch = max(1, *(member.epoch for member in members))
    source = members[0].source
    model = _with_weights(members[0], weights)
    run.begin(_config(members), model, source.load_data())
    run.save(epoch, model)
    if all(0 in member.source.epochs() for member in members):
        starts = [models.checkpoints(member, [0])[0] for member in members]
        start = [np.mean(w, axis=0) for w in zip(*starts, strict=True)]
        run.save(0, _with_weights(members[0], start))
    metric = objectives.metric_name(models.examples.multi_label)
    run.write_metrics([{"epoch": epoch, "step": 0, "split": "test"} | summary])
    run.write_best(epoch, metric, summary[metric])


def _config(members):
    """Returns what the average's config.gin says."""
    sources = ", ".join(f"{m.source.path} (epoch {m.epoch})" for m in members)
    text = members[0].source.config_path.read_text(encoding="utf-8")
    # The modules that define the layers.
    imports = [
        line
        for line in text.splitlines()
        if line.startswith(("import ", "from "))
    ]
    made = f"# The average of {sources}, made with:\n"
    return "\n".join([made, *imports, gin.operative_config_str()])


def _with_weights(member, weights):
    """Returns a member's model, as it was trained, with other weights."""
    source = member.source
    model = source.load_model(member.epoch)
    if member.epoch is None:
        # A single model is the user's own.
        model = copy_of(model)
    # Layers and variables are the same, without a softmax at the end.
    logits_model(model).set_weights(weights)
    return model


class _Candidates:
    """Averages and ensembles of some members, evaluated on the test split.

    `chosen` is a list of positions among `own`, the members.
    """

    def __init__(self, models, own):
        self._surface = models.surface("test")
        self._own = own
        self._vectors = [models.trained().index(member) for member in own]
        self._examples = models.examples
        self._known = {}

    def names(self, chosen):
        return ", ".join(self._own[i].name for i in chosen)

    def score(self, chosen):
        metric = objectives.metric_name(self._examples.multi_label)
        return self.summary(chosen, "selection")[metric]

    def weights(self, chosen):
        return self._surface.weights(self._average(chosen))[0]

    def summary(self, chosen, examples, ensemble=False):
        """Returns {column: value} on the named part of the examples."""
        if ensemble:
            logits = self._ensemble([self._logits([i]) for i in chosen])
        else:
            logits = self._logits(chosen)
        rows = _EXAMPLES[examples]
        return objectives.summarize(
            self._targets[rows], logits[rows], self._examples
        )

    def _logits(self, chosen):
        key = frozenset(chosen)
        if key not in self._known:
            self._targets, outputs = self._surface.outputs(
                self._average(chosen), "average"
            )
            self._known[key] = outputs[0]
        return self._known[key]

    def _average(self, chosen):
        coefficients = np.zeros((1, self._surface.space.num_vectors))
        coefficients[0, [self._vectors[i] for i in chosen]] = 1 / len(chosen)
        return Points(coefficients)

    def _ensemble(self, logits):
        """Returns logits of the mean of probabilities, [N, C]."""
        if not self._examples.multi_label:
            log_probabilities = [tf.nn.log_softmax(x) for x in logits]
            return tf.reduce_logsumexp(log_probabilities, axis=0).numpy()
        # Logit of the mean of sigmoids, without leaving the log domain.
        yes = tf.reduce_logsumexp([tf.math.log_sigmoid(x) for x in logits], 0)
        no = tf.reduce_logsumexp([tf.math.log_sigmoid(-x) for x in logits], 0)
        return (yes - no).numpy()


def _figure(table):
    metric = "auc" if "auc" in table else "accuracy"
    rows = table[table.examples == "all"]
    kinds = list(dict.fromkeys(rows.kind))
    models = [model for model in _MODELS if model in set(rows.model)]
    figure, axes = new_figure(
        7.2, 0.6 + 1.6 * len(kinds), len(kinds), 2, sharey=True, squeeze=False
    )
    for kind, panels in zip(kinds, axes, strict=True):
        for panel, measure in zip(panels, (metric, "loss"), strict=True):
            for model, group in rows[rows.kind == kind].groupby("model"):
                panel.plot(
                    group[measure],
                    [models.index(model)] * len(group),
                    "o",
                    color=colour(kind),
                    fillstyle="none" if model == "member" else "full",
                )
            panel.grid(axis="y", color="0.9")
            panel.set_yticks(range(len(models)), models)
            panel.set_title(kind, fontsize="medium")
    axes[0][0].margins(y=0.15)
    axes[0][0].invert_yaxis()
    axes[-1][0].set_xlabel(f"test {metric}")
    axes[-1][1].set_xlabel("test loss (nats)")
    return figure
