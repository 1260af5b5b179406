"""Which mistakes two models share (paper section 3.2), and how surely made.

With several findings an image (multi-label data), each finding of each image
is a decision of its own, which is "yes" where the logit is above 0.

Models that are right more often share fewer mistakes by chance alone, and two
models of unequal accuracy cannot err alike. So whether P-Ts make *similar*
mistakes is judged by Cohen's kappa of being wrong, which takes out chance, at
matched accuracy, where all of kappa can be attained: each of the better models,
as a rule the P-Ts, is taken back to the epoch where it was as good as the worse
ones became.
"""

import collections
import dataclasses

import numpy as np
import pandas

from keras_transfer import objectives
from keras_transfer.analysis.declaration import (
    Figure,
    Statistic,
    Table,
    Value,
    declare_analysis,
)
from keras_transfer.analysis.drawing import colour, new_figure
from keras_transfer.analysis.statistics import (
    HARM,
    excess_of_pretrained_pairs,
)
from keras_transfer.analysis.trajectory import learning_curve
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


def decisions(targets, logits, multi_label, name="of these logits"):
    """Reads a model's logits as decisions.

    Args:
        targets: float [n, K], one-hot or multi-hot.
        logits: float [n, K].
        multi_label: bool; if so there are n K decisions, else n.
        name: str, what to call the model.

    Returns:
        `Decisions`.

    Raises:
        UserError: if the shapes differ, or logits are not finite.
    """
    targets, logits = np.asarray(targets), np.asarray(logits, np.float64)
    if targets.shape != logits.shape or targets.ndim != 2:
        raise UserError(
            "Mistakes need targets and logits of one shape [n, K]. Received: "
            f"targets of {targets.shape}, logits of {logits.shape}."
        )
    objectives.check_finite(logits, name)
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


# Sentences that a statistic says beside its number.
_EXPLAINED = (
    "Accuracy explains it: models at the end of training differ as claimed, "
    "those of one accuracy do not."
)
_NOT_MATCHED = (
    "Accuracies are not matched: of the better models no other epochs are "
    "stored, or it is not known how accurate they were."
)
_COARSE = (
    f"Of the better models no stored epoch is within {100 * HARM:g} point of "
    "the accuracy of the worse ones."
)


def excess_agreement(agreement, other):
    """Returns a statistic of claim C3, "P-Ts make similar mistakes".

    Args:
        agreement: `mistakes_agreement`, which `mistakes` returns beside its
            table.
        other: "P-T/RI-T" or "RI-T/RI-T".

    Returns:
        `Value`: mean kappa of P-T/P-T minus that of the others, at matched
        accuracy, in [-2, 2]; above 0, P-Ts err more alike. If there is no match
        it is that of the models as they are, and the note says so.

    Raises:
        UserError: if a kind of pair is missing, or one makes no mistake.
    """
    at_end = excess_at_end(agreement, other)
    matched = agreement[agreement.matched]
    if not len(matched):
        return Value(at_end, _NOT_MATCHED)
    value = _excess(matched, other)
    if at_end > 0 >= value:
        return Value(value, _EXPLAINED)
    accuracies = matched[["first_accuracy", "second_accuracy"]]
    means = accuracies.groupby(matched.pair).mean().to_numpy()
    return Value(value, _COARSE if np.ptp(means) > HARM else "")


def excess_at_end(agreement, other):
    """Returns what `excess_agreement` does, of the models as they are."""
    return _excess(agreement[~agreement.matched], other)


def _excess(rows, other):
    value = excess_of_pretrained_pairs(rows.pair, rows.kappa, other)
    if np.isnan(value):
        raise UserError(
            "Mistakes agree or not where some are made. Received: P-T/P-T or "
            f"{other} without any; take more test images."
        )
    return value


def _statistic(other, matched):
    """Declares that P-T/P-T errs more alike than another kind of pair."""
    when = "at matched accuracy" if matched else "at the end of training"
    compute = excess_agreement if matched else excess_at_end
    return Statistic(
        "C3",
        "P-Ts make similar mistakes.",
        f"Cohen's kappa of errors {when}, P-T/P-T minus {other}",
        ">",
        0.0,
        lambda agreement: compute(agreement, other),
        tables=("mistakes_agreement",),
        figure="mistakes_agreement",
        decides=matched,
    )


@declare_analysis(
    figures=[
        Figure(
            "mistakes_agreement",
            lambda agreement: _agreement_figure(agreement),
            "Mistakes in common, beyond chance and accuracy",
            "Cohen's kappa of two models being wrong: 0 as by chance, 1 on the "
            "same images. At matched accuracy, each of the better models is "
            "taken at the epoch where it was as good as the worse ones became.",
            tables=("mistakes_agreement",),
        ),
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
        _statistic(other, matched)
        for matched in (True, False)
        for other in ("P-T/RI-T", "RI-T/RI-T")
    ],
    # Of two kinds, one is looked at once more.
    cost=lambda options, models: 3 * models / 2,
    in_memory=("mistakes_pictures",),
)
def mistakes(
    models,
    split: schema.Split = "test",
    num_bins: schema.Count = 15,
    images_shown: schema.Natural = 24,
    seed: schema.Seed | None = None,
):
    """Compares the mistakes of every pair of models (paper section 3.2).

    For the agreement at matched accuracy, of P-Ts and RI-Ts those of the kind
    that is better at the end of training are taken at the stored epoch where
    the metric on the test data (accuracy, or mean AUC of several findings) was
    nearest to the mean of the other kind.

    Args:
        models: `Models`, two or more trained on the target; those of kind RI
            and P are not looked at.
        split: "test" or "train".
        num_bins: int, bins of confidence.
        images_shown: int, most images in the figure for each kind.
        seed: int, of a draw of as many examples with replacement, on which the
            agreement is computed: over several seeds it spreads as over several
            draws of test data (the bootstrap). None: on the examples as they
            are.

    Returns:
        `Table`, one row per pair and class: pair, first, second, class ("all"
        or a class's or finding's name) and what `compare` gives. Beside it
        mistakes_agreement (one row per pair of models as they are, and, where
        there is a match, per pair of P-Ts and RI-Ts at matched accuracy: pair,
        first, second, first_epoch, second_epoch (missing of a single model),
        first_accuracy, second_accuracy (shares of right decisions), matched
        (bool) and kappa, see `error_consistency`, of several findings the mean
        of theirs),
        mistakes_models (accuracy and expected calibration error of each model),
        mistakes_confidence (histograms of the confidence of common and uncommon
        mistakes), mistakes_images (which examples only models of one kind get
        wrong) and mistakes_pictures (the first of these, with their images, for
        the figure; empty if the inputs are no images).

    Raises:
        UserError: if there is no pair, or a model does not fit the data or
            gives logits that are not finite.
    """
    members = models.trained(2, "Comparing mistakes")
    examples = models.examples
    chosen = examples.split(split)
    made = {m: _made(models, m, split) for m in members}
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
        mistakes_agreement=_agreement(models, made, split, seed),
        mistakes_models=accuracies,
        mistakes_confidence=confidence,
        mistakes_images=images,
        mistakes_pictures=_pictures(images, chosen, images_shown),
    )


def _made(models, member, split):
    """Returns the `Decisions` of one member."""
    examples = models.examples
    return decisions(
        examples.split(split).targets,
        models.logits(member, split),
        examples.multi_label,
        member.name,
    )


def _agreement(models, made, split, seed):
    """Returns the table mistakes_agreement.

    Args:
        models: `Models`.
        made: {member: `Decisions`}.
        split: "test" or "train".
        seed: int or None.
    """
    earlier = _matched(models, made, split)
    made = made | {m: _made(models, m, split) for m in earlier.values()}
    drawn = np.arange(len(models.examples.split(split)))
    if seed is not None:
        drawn = np.random.default_rng(seed).choice(drawn, len(drawn))
    wrong = {m: _wrong(d)[drawn] for m, d in made.items()}
    rows = [(*row, False) for row in models.pairs(models.trained())]
    rows += [(*row, True) for row in models.pairs(list(earlier.values()))]
    return pandas.DataFrame(
        {
            "pair": pair,
            "first": first.name,
            "second": second.name,
            "first_epoch": first.epoch,
            "second_epoch": second.epoch,
            "first_accuracy": 1 - wrong[first].mean(),
            "second_accuracy": 1 - wrong[second].mean(),
            "matched": matched,
            "kappa": _mean_kappa(wrong[first], wrong[second]),
        }
        for pair, first, second, matched in rows
    )


def _wrong(made):
    """Returns which decisions are wrong, bool [n, findings or 1]."""
    return made.wrong.reshape(made.example[-1] + 1, -1)


def _mean_kappa(first, second):
    """Returns the mean over findings [n, F] of kappa, NaN without mistakes."""
    kappas = [
        error_consistency(*pair) for pair in zip(first.T, second.T, strict=True)
    ]
    known = [kappa for kappa in kappas if not np.isnan(kappa)]
    return float(np.mean(known)) if known else float("nan")


def _matched(models, made, split):
    """Finds P-Ts and RI-Ts of one accuracy.

    Returns:
        {member: itself or its kind at an earlier epoch}, of all P-Ts and RI-Ts;
        {} if there is no match.
    """
    reached = collections.defaultdict(dict)
    for member in made:
        if member.kind in ("P-T", "RI-T"):
            reached[member.kind][member] = _metric(models, member, split)
    if len(reached) < 2:
        return {}
    means = {kind: np.mean([*own.values()]) for kind, own in reached.items()}
    if np.isnan([*means.values()]).any():
        # No finding has an AUC.
        return {}
    worse = min(means, key=means.get)
    found = {}
    for kind, own in reached.items():
        for member in own:
            epoch = member.epoch
            if kind != worse:
                epoch = _nearest_epoch(member, means[worse], split)
            if epoch is None and kind != worse:
                return {}
            found[member] = _at(member, epoch)
    return found


def _metric(models, member, split):
    """Returns a member's accuracy, or mean AUC of several findings."""
    summary = objectives.summarize(
        models.examples.split(split).targets,
        models.logits(member, split),
        models.examples,
    )
    return summary[objectives.metric_name(models.examples.multi_label)]


def _nearest_epoch(member, metric, split):
    """Returns the stored epoch where a member was as good, None if unknown."""
    # Curves are of the test data.
    stored = member.source.epochs() if split == "test" else []
    try:
        curve = learning_curve(member.source)[1]
    except UserError:
        return None
    curve = curve[curve.index.isin(stored) & (curve.index <= member.epoch)]
    curve = curve.dropna()
    if len(curve) < 2:
        return None
    # Of several the last one.
    return int((curve[::-1] - metric).abs().idxmin())


def _at(member, epoch):
    """Returns a member at another epoch."""
    if epoch == member.epoch:
        return member
    return dataclasses.replace(
        member, name=f"{member.name}@{epoch}", epoch=epoch
    )


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


def _agreement_figure(agreement):
    kinds = list(dict.fromkeys(agreement.pair))
    stages = [
        (title, rows)
        for title, rows in (
            ("at the end of training", agreement[~agreement.matched]),
            ("at matched accuracy", agreement[agreement.matched]),
        )
        if len(rows)
    ]
    figure, axes = new_figure(
        1.6 + 3.2 * len(stages), 3.6, 1, len(stages), sharey=True, squeeze=False
    )
    for panel, (title, rows) in zip(axes[0], stages, strict=True):
        for i, kind in enumerate(kinds):
            own = rows.kappa[rows.pair == kind]
            panel.bar(i, own.mean(), color=colour(kind), alpha=0.4)
            panel.plot([i] * len(own), own, "o", color=colour(kind))
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set_xticks(range(len(kinds)), _with_accuracy(rows, kinds))
        panel.set_title(title)
    axes[0, 0].set_ylabel("Cohen's kappa of errors")
    return figure


def _with_accuracy(rows, kinds):
    """Returns each kind of pair with the mean accuracies of its models."""
    means = rows.groupby("pair")[["first_accuracy", "second_accuracy"]].mean()
    return [
        f"{kind}\n" + " / ".join(f"{a:.1%}" for a in means.loc[kind])
        if kind in means.index
        else kind
        for kind in kinds
    ]


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
