"""Which mistakes two models share (paper section 3.2), and how surely made.

With several findings an image (multi-label data), each finding of each image
is a decision of its own, which is "yes" where the logit is above 0.
"""

import dataclasses

import numpy as np
import pandas

from keras_transfer.analysis.declaration import (
    Figure,
    Statistic,
    Table,
    declare_analysis,
)
from keras_transfer.analysis.drawing import colour, new_figure
from keras_transfer.analysis.statistics import (
    excess_of_pretrained_pairs,
    statistic_of_pairs,
)
from keras_transfer.config import schema
from keras_transfer.errors import UserError

# The four ways of the paper, "both wrong" in two.
OUTCOMES = (
    "both_right",
    "only_first_wrong",
    "only_second_wrong",
    "both_wrong_same",
    "both_wrong_different",
)
_IMAGE_COLUMNS = (
    "wrong_kind",
    "example",
    "class",
    "models_wrong",
    "models",
    "answers",
)


@dataclasses.dataclass(frozen=True)
class Decisions:
    """What one model answers.

    Attributes:
        truth: int [d], the right answer of each decision: a class, or with
            several findings 0 or 1.
        answer: int [d], the model's.
        confidence: float64 [d], the probability it gives its answer.
        example: int [d], index of the example.
        class_index: int [d], the example's class, or the finding.
        multi_label: bool, whether decisions are findings.
    """

    truth: np.ndarray
    answer: np.ndarray
    confidence: np.ndarray
    example: np.ndarray
    class_index: np.ndarray
    multi_label: bool

    @property
    def wrong(self):
        """Which decisions are wrong, bool [d]."""
        return self.answer != self.truth

    def at(self, index):
        """Returns the decisions at a boolean mask or integer index [d]."""
        return Decisions(
            self.truth[index],
            self.answer[index],
            self.confidence[index],
            self.example[index],
            self.class_index[index],
            self.multi_label,
        )


def decisions(targets, logits, multi_label):
    """Reads a model's logits as decisions.

    Args:
        targets: float [n, K], one-hot or multi-hot.
        logits: float [n, K].
        multi_label: bool; if so there are n K decisions, else n.

    Returns:
        `Decisions`.

    Raises:
        UserError: if the shapes differ.
    """
    targets, logits = np.asarray(targets), np.asarray(logits, np.float64)
    if targets.shape != logits.shape or targets.ndim != 2:
        raise UserError(
            "Mistakes need targets and logits of one shape [n, K]. Received: "
            f"targets of {targets.shape}, logits of {logits.shape}."
        )
    n, num_classes = targets.shape
    if not multi_label:
        truth = targets.argmax(1)
        answer = logits.argmax(1)
        below = logits - logits.max(1, keepdims=True)
        confidence = 1 / np.exp(below).sum(1)
        return Decisions(truth, answer, confidence, np.arange(n), truth, False)
    truth = (targets > 0.5).astype(int).ravel()
    answer = (logits > 0).astype(int).ravel()
    confidence = 1 / (1 + np.exp(-np.abs(logits.ravel())))
    example, finding = np.indices(targets.shape).reshape(2, -1)
    return Decisions(truth, answer, confidence, example, finding, True)


def compare(first, second):
    """Counts the mistakes of two models (paper section 3.2).

    Args:
        first: `Decisions`.
        second: `Decisions` on the same examples.

    Returns:
        dict: "decisions" and the `OUTCOMES` (int); "common_share", the share
        of wrong decisions that both got wrong (NaN if none is wrong); and
        "error_consistency", see there.
    """
    a, b = first.wrong, second.wrong
    same = first.answer == second.answer
    masks = (~a & ~b, a & ~b, ~a & b, a & b & same, a & b & ~same)
    counts = {k: int(m.sum()) for k, m in zip(OUTCOMES, masks, strict=True)}
    any_wrong, both_wrong = int((a | b).sum()), int((a & b).sum())
    return {
        "decisions": len(a),
        **counts,
        "common_share": both_wrong / any_wrong if any_wrong else np.nan,
        "error_consistency": error_consistency(a, b),
    }


def error_consistency(first_wrong, second_wrong):
    """Returns Cohen's kappa of two models being wrong.

    (c_obs - c_exp) / (1 - c_exp), c_obs the share of examples that both get
    right or both wrong, c_exp the share expected of models with these
    accuracies that err independently. 0: as by chance; 1: on the same examples.
    Source: Geirhos, Meding and Wichmann 2020.

    Args:
        first_wrong: bool [n].
        second_wrong: bool [n].

    Returns:
        float; NaN if both are always right, or always wrong.
    """
    first_wrong, second_wrong = (
        np.asarray(first_wrong),
        np.asarray(second_wrong),
    )
    observed = np.mean(first_wrong == second_wrong)
    p, q = first_wrong.mean(), second_wrong.mean()
    expected = p * q + (1 - p) * (1 - q)
    if expected == 1:
        return float("nan")
    return float((observed - expected) / (1 - expected))


def expected_calibration_error(confidence, right, num_bins=15):
    """Returns the mean gap between confidence and accuracy, by bins.

    Bins of equal width on (0, 1]; each bin's gap is weighted by its share of
    examples. Source: Guo et al. 2017, eq. 3.

    Args:
        confidence: float [n] in [0, 1].
        right: bool [n].
        num_bins: int.

    Returns:
        float in [0, 1].
    """
    index = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, None)
    gap = np.bincount(index, weights=confidence - right, minlength=num_bins)
    return float(np.abs(gap).sum() / len(confidence))


@declare_analysis(
    figures=[
        Figure(
            "mistakes",
            lambda table: _outcomes_figure(table),
            "Mistakes of pairs of models",
            "Share of the answers that only one model of a pair, or both, get "
            "wrong.",
        ),
        Figure(
            "mistakes_confidence",
            lambda confidence: _confidence_figure(confidence),
            "How surely mistakes are made",
            "Confidence in wrong answers: those that both models of a pair "
            "get wrong, and those that only one does.",
            tables=("mistakes_confidence",),
        ),
        Figure(
            "mistakes_images",
            lambda pictures: _pictures_figure(pictures),
            "Images that only one kind of model gets wrong",
            "Below each image its class, then what each model of the kind "
            "answers; those that most of them get wrong come first.",
            tables=("mistakes_pictures",),
        ),
    ],
    statistics=[
        Statistic(
            "C3",
            "P-Ts make similar mistakes.",
            "share of common mistakes, P-T/P-T minus the larger of P-T/RI-T "
            "and RI-T/RI-T",
            ">",
            0.0,
            lambda table: statistic_of_pairs(table, shared_mistakes),
        )
    ],
    in_memory=("mistakes_pictures",),
)
def mistakes(
    models,
    split: schema.Split = "test",
    num_bins: schema.Count = 15,
    images_shown: schema.Natural = 24,
):
    """Compares the mistakes of every pair of models (paper section 3.2).

    Args:
        models: `Models`, two or more trained on the target; those of kind RI
            and P are not looked at.
        split: "test" or "train".
        num_bins: int, bins of confidence.
        images_shown: int, most images in the figure for each kind.

    Returns:
        `Table`, one row per pair and class: pair, first, second, class ("all"
        or a class's or finding's name) and what `compare` gives. Beside it
        mistakes_models (accuracy and expected calibration error of each model),
        mistakes_confidence (histograms of the confidence of common and uncommon
        mistakes), mistakes_images (which examples only models of one kind get
        wrong) and mistakes_pictures (the first of these, with their images, for
        the figure; empty if the inputs are no images).

    Raises:
        UserError: if there is no pair, a model does not fit the data, or there
            is no bin.
    """
    if num_bins < 1:
        raise UserError(
            f"mistakes.num_bins must be 1 or more. Received: {num_bins}"
        )
    members = models.trained(2, "Comparing mistakes")
    examples = models.examples
    chosen = examples.split(split)
    made = {
        m: decisions(
            chosen.targets, models.logits(m, split), examples.multi_label
        )
        for m in members
    }
    names = [str(name) for name in examples.class_names]
    pairs = list(models.pairs(members))
    table = pandas.DataFrame(
        {"pair": pair, "first": first.name, "second": second.name} | row
        for pair, first, second in pairs
        for row in _by_class(made[first], made[second], names)
    )
    accuracies = pandas.DataFrame(
        {
            "kind": m.kind,
            "model": m.name,
            "accuracy": 1 - d.wrong.mean(),
            "expected_calibration_error": expected_calibration_error(
                d.confidence, ~d.wrong, num_bins
            ),
        }
        for m, d in made.items()
    )
    confidence = pandas.DataFrame(
        row
        for pair, first, second in pairs
        for row in _confidence_rows(pair, first, second, made, num_bins)
    )
    images = pandas.DataFrame(
        _wrong_by_one_kind(made, names), columns=_IMAGE_COLUMNS
    )
    return Table(
        table,
        mistakes_models=accuracies,
        mistakes_confidence=confidence,
        mistakes_images=images,
        mistakes_pictures=_pictures(images, chosen, images_shown),
    )


def shared_mistakes(table):
    """Returns the statistic of claim C3, "P-Ts make similar mistakes".

    Args:
        table: what `mistakes` returns.

    Returns:
        float, the mean share of common mistakes of two P-Ts minus the larger of
        the means of P-T with RI-T and of two RI-Ts. Above 0, P-Ts share more.

    Raises:
        UserError: if a kind of pair is missing.
    """
    overall = table[table["class"] == "all"]
    return excess_of_pretrained_pairs(overall.pair, overall.common_share)


def _by_class(first, second, class_names):
    yield {"class": "all"} | compare(first, second)
    for k, name in enumerate(class_names):
        own = first.class_index == k
        if own.any():
            yield {"class": name} | compare(first.at(own), second.at(own))


def _confidence_rows(pair, first, second, made, num_bins):
    """Yields a histogram of one pair's confidence, of each of its models."""
    edges = np.linspace(0, 1, num_bins + 1)
    common = made[first].wrong & made[second].wrong
    for model in (first, second):
        wrong = made[model].wrong
        for mistakes_of, mask in (
            ("common", common),
            ("uncommon", wrong & ~common),
        ):
            counts, _ = np.histogram(made[model].confidence[mask], edges)
            for low, high, count in zip(edges, edges[1:], counts, strict=False):
                yield {
                    "pair": pair,
                    "first": first.name,
                    "second": second.name,
                    "model": model.name,
                    "mistakes": mistakes_of,
                    "confidence_from": low,
                    "confidence_to": high,
                    "decisions": count,
                }


def _wrong_by_one_kind(made, class_names):
    """Yields decisions that models of one kind, and no others, get wrong."""
    any_model = next(iter(made.values()))
    for kind in dict.fromkeys(member.kind for member in made):
        own = [d for m, d in made.items() if m.kind == kind]
        others = [d for m, d in made.items() if m.kind != kind]
        if not others:
            continue
        count = sum(d.wrong.astype(int) for d in own)
        count[np.any([d.wrong for d in others], axis=0)] = 0
        # Those most models of the kind get wrong come first.
        for d in np.argsort(-count, kind="stable")[: np.count_nonzero(count)]:
            answers = [_answer(one, d, class_names) for one in own]
            yield (
                kind,
                any_model.example[d],
                class_names[any_model.class_index[d]],
                count[d],
                len(own),
                " ".join(answers),
            )


def _answer(made, decision, class_names):
    if made.multi_label:
        return "yes" if made.answer[decision] else "no"
    return class_names[made.answer[decision]]


def _pictures(images, split, images_shown):
    """Returns the first images of each kind, with what to write below."""
    shown = images.groupby("wrong_kind", sort=False).head(images_shown)
    try:
        arrays = list(split.images(shown.example.to_numpy(int)))
    except UserError:
        # The inputs are something else than images.
        shown, arrays = shown[:0], []
    pictures = shown[["wrong_kind", "example"]].reset_index(drop=True)
    pictures["label"] = list(shown["class"] + ": " + shown.answers)
    pictures["image"] = pandas.Series(arrays, dtype=object)
    return pictures


def _outcomes_figure(table):
    overall = table[table["class"] == "all"]
    shares = overall[list(OUTCOMES)].div(overall.decisions, axis=0)
    shares = 100 * shares.groupby(overall.pair, sort=False).mean()
    figure, axes = new_figure(height=1.6 + 0.5 * len(shares))
    left = np.zeros(len(shares))
    shades = ("#56B4E9", "#E69F00", "#7F1D1D", "#D55E00")
    for outcome, shade in zip(OUTCOMES[1:], shades, strict=True):
        label = outcome.replace("_", " ")
        axes.barh(
            shares.index, shares[outcome], left=left, color=shade, label=label
        )
        left += shares[outcome].to_numpy()
    axes.invert_yaxis()
    axes.set(xlabel="share of answers (%)", title="Mistakes of pairs of models")
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure


def _confidence_figure(confidence):
    kinds = list(dict.fromkeys(confidence.pair))
    figure, axes = new_figure(
        3.2 * len(kinds), 3.2, columns=len(kinds), sharey=True, squeeze=False
    )
    edges = [*dict.fromkeys(confidence.confidence_from), 1.0]
    for panel, kind in zip(axes[0], kinds, strict=True):
        rows = confidence[confidence.pair == kind]
        pairs = len(rows[["first", "second"]].drop_duplicates())
        for name, style in (
            ("common", {"fill": True, "alpha": 0.4}),
            ("uncommon", {"linewidth": 1.5}),
        ):
            counts = rows[rows.mistakes == name].groupby("confidence_from")
            panel.stairs(
                # Two models a pair.
                counts.decisions.sum() / (2 * pairs),
                edges,
                color=colour(kind),
                label=f"{name} mistakes",
                **style,
            )
        panel.set(title=kind, xlabel="confidence in the wrong answer")
        panel.legend(fontsize="small", loc="upper left")
    axes[0, 0].set_ylabel("mistakes of a model (mean)")
    return figure


def _pictures_figure(pictures, columns=8):
    if not len(pictures):
        return None
    kinds = list(pictures.groupby("wrong_kind", sort=False))
    heights = [-(-len(rows) // columns) for _, rows in kinds]
    figure, axes = new_figure(
        1.15 * columns, 1.5 * sum(heights) + 0.3, sum(heights), columns
    )
    # Room for the first heading; below each row there is some already.
    room = 0.25 / figure.get_figheight()
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - room))
    axes = np.reshape(axes, (-1, columns))
    for panel in axes.flat:
        panel.axis("off")
    panels = np.split(axes, np.cumsum(heights)[:-1])
    for (kind, rows), own in zip(kinds, panels, strict=True):
        # Wider than its panel, it would push the panels apart.
        own[0, 0].text(
            0,
            1.05,
            f"Only {kind} wrong; below: true class: answers",
            transform=own[0, 0].transAxes,
            va="bottom",
            in_layout=False,
        )
        for panel, image, label in zip(
            own.flat, rows.image, rows.label, strict=False
        ):
            panel.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
            panel.text(
                0.5,
                -0.05,
                label,
                transform=panel.transAxes,
                ha="center",
                va="top",
                fontsize="small",
            )
    return figure
