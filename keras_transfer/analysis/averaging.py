"""Averages of the weights of several solutions ("soups", paper section 6)."""

import gin
import keras
import numpy as np
import tensorflow as tf

from keras_transfer import objectives
from keras_transfer.analysis.output import colour, new_figure
from keras_transfer.errors import UserError
from keras_transfer.landscape.weight_space import Points
from keras_transfer.runs import Run

_WITHOUT_ONE = "uniform without one"
_MODELS = ("member", "uniform", _WITHOUT_ONE, "greedy", "ensemble")
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


@gin.configurable
def averaging(subjects, output):
    """Averages the models of each kind, weight for weight.

    Beside the uniform average of all stands the greedy one, whose members are
    chosen by accuracy (AUC for multi-label data) on every other test image, and
    the ensemble, the mean of the members' probabilities, which costs as many
    forward passes as it has members. Batch normalization's statistics are
    estimated anew for each average (see `dataset_surface`).

    Averages are kept as run directories average_<kind>_<uniform or greedy>,
    which bin/export, bin/analyze and train.pretrained accept. The average is
    their best and last epoch, numbered as the last of the members'; their epoch
    0 is the average of the members' epochs 0.

    Args:
        subjects: `Subjects`, two or more of one kind.
        output: `Output`; receives averaging.csv, what is returned, the figure
            averaging and the run directories.

    Returns:
        `pandas.DataFrame`, one row per kind, model and examples: kind, model
        ("member", "uniform", "greedy", "ensemble", or "uniform without
        one", the average of all others, for three or more), members (names),
        examples ("all", or of these "selection", every other one, which chose
        the greedy average, or "report", the others), loss (nats) and accuracy,
        or auc and auc_<finding>.

    Raises:
        UserError: if no kind has two models.
    """
    import pandas

    models = subjects.trained()
    kinds = {s.kind: subjects.of_kind(s.kind) for s in models}
    kinds = {kind: own for kind, own in kinds.items() if len(own) > 1}
    if not kinds:
        raise UserError(
            "An average needs two or more models of one kind. Received: "
            f"{', '.join(s.name for s in models) or 'none'}."
        )
    rows = []
    for kind, own in kinds.items():
        candidates = _Candidates(subjects, own)
        everyone = list(range(len(own)))
        averages = {
            "uniform": everyone,
            "greedy": greedy_soup(candidates.score, len(own)),
        }
        compared = [("member", [i]) for i in everyone]
        compared += [*averages.items(), ("ensemble", everyone)]
        if len(own) > 2:
            compared += [
                (_WITHOUT_ONE, everyone[:i] + everyone[i + 1 :])
                for i in everyone
            ]
        rows += [
            {
                "kind": kind,
                "model": model,
                "members": ", ".join(own[i].name for i in chosen),
                "examples": examples,
            }
            | candidates.summary(chosen, examples, model == "ensemble")
            for model, chosen in compared
            for examples in _EXAMPLES
        ]
        for model, chosen in averages.items():
            save_average(
                output.path / f"average_{kind}_{model}",
                subjects,
                [own[i] for i in chosen],
                candidates.weights(chosen),
                candidates.summary(chosen, "all"),
            )
    table = pandas.DataFrame(rows)
    output.table("averaging", table)
    metric = objectives.metric_name(subjects.info.multi_label)
    output.figure("averaging", _figure(table, metric))
    return table


def gain(table):
    """Returns the statistic of claim C12, "averaging does no harm".

    Args:
        table: what `averaging` returns.

    Returns:
        `pandas.Series` by kind: accuracy (or AUC) of the uniform average minus
        the mean of its members', on all test images.
    """
    metric = "auc" if "auc" in table else "accuracy"
    rows = table[table.examples == "all"]
    means = rows.groupby(["kind", "model"], sort=False)[metric].mean().unstack()
    return means["uniform"] - means["member"]


def gains(table, kind):
    """Returns `gain` for each uniform average of one kind.

    Args:
        table: what `averaging` returns.
        kind: kind of model, such as "P-T".

    Returns:
        dict from frozenset of the averaged models' names to float: all models,
        and all but each one, which tells how much the gain owes to which seeds
        were drawn.
    """
    metric = "auc" if "auc" in table else "accuracy"
    rows = table[(table.examples == "all") & (table.kind == kind)]
    members = rows[rows.model == "member"].set_index("members")[metric]
    averages = rows[rows.model.isin(["uniform", _WITHOUT_ONE])]
    return {
        frozenset(names): value - members[names].mean()
        for names, value in zip(
            averages.members.str.split(", "), averages[metric], strict=True
        )
    }


def save_average(path, subjects, members, weights, summary):
    """Writes an average as a run directory.

    Args:
        path: the directory, made or renewed.
        subjects: the `Subjects` that `members` belong to.
        members: list of `Subject`.
        weights: list of arrays as `model.get_weights()` gives them, the
            average.
        summary: {column: value}, its test loss and metrics.

    Returns:
        The `runs.Run`.
    """
    run = Run(path)
    model = keras.models.clone_model(subjects.model(members[0]))
    epoch = max(1, *(member.epoch for member in members))
    points = {epoch: weights}
    if all(0 in member.run.epochs() for member in members):
        starts = [subjects.weights(member, 0) for member in members]
        points[0] = [np.mean(w, axis=0) for w in zip(*starts, strict=True)]
    for stale in set(run.epochs()) - points.keys():
        run.remove(stale)
    for number, point in points.items():
        model.set_weights(point)
        run.save(number, tf.train.Checkpoint(model=model))
    metric = objectives.metric_name(subjects.info.multi_label)
    run.write_metrics([{"epoch": epoch, "step": 0, "split": "test"} | summary])
    run.write_best(epoch, metric, summary[metric])
    sources = ", ".join(f"{m.run.path} (epoch {m.epoch})" for m in members)
    config = f"# The average of {sources}, made with:\n\n"
    run.describe(config + gin.operative_config_str(), model, subjects.dataset)
    return run


class _Candidates:
    """Averages and ensembles of some subjects, evaluated on the test split.

    `chosen` is a list of positions among `own`, the subjects.
    """

    def __init__(self, subjects, own):
        self._surface = subjects.surface("test")
        self._vectors = [subjects.trained().index(s) for s in own]
        self._info = subjects.info
        self._known = {}

    def score(self, chosen):
        metric = objectives.metric_name(self._info.multi_label)
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
            self._targets[rows], logits[rows], self._info
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
        if not self._info.multi_label:
            log_probabilities = [tf.nn.log_softmax(x) for x in logits]
            return tf.reduce_logsumexp(log_probabilities, axis=0).numpy()
        # Logit of the mean of sigmoids, without leaving the log domain.
        yes = tf.reduce_logsumexp([tf.math.log_sigmoid(x) for x in logits], 0)
        no = tf.reduce_logsumexp([tf.math.log_sigmoid(-x) for x in logits], 0)
        return (yes - no).numpy()


def _figure(table, metric):
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
