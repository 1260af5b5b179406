import gin
import keras
import numpy as np
import pandas
import pytest
import written_models
import written_runs

import keras_transfer as kt
from keras_transfer.analysis.analyze import analyze
from keras_transfer.analysis.declaration import find_analysis
from keras_transfer.analysis.mistakes import (
    OUTCOMES,
    _at,
    compare,
    decisions,
    error_consistency,
    excess_agreement,
    excess_at_end,
    expected_calibration_error,
)
from keras_transfer.data import ExampleSplit
from keras_transfer.errors import UserError
from keras_transfer.runs import Run


def one_hot(labels, num_classes):
    return np.eye(num_classes, dtype=np.float32)[labels]


def answering(answers, num_classes):
    """Logits whose largest is the given answer."""
    noise = np.random.default_rng(0).uniform(size=(len(answers), num_classes))
    return noise + 2 * one_hot(answers, num_classes)


def test_four_ways_by_hand():
    truth = np.array([0, 1, 2, 0, 1, 2, 0])
    first = np.array([0, 1, 0, 1, 1, 1, 2])
    second = np.array([0, 0, 0, 2, 1, 1, 0])
    #          right both, 2nd, same, different, right both, same, 1st
    found = compare(
        *(
            decisions(one_hot(truth, 3), answering(a, 3), multi_label=False)
            for a in (first, second)
        )
    )
    assert found["decisions"] == 7
    assert [found[name] for name in OUTCOMES] == [2, 1, 1, 2, 1]
    assert found["common_share"] == pytest.approx(3 / 5)


def test_findings_are_decisions_of_their_own():
    targets = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
    first = np.array([[2.0, -1.0], [1.0, -3.0], [-1.0, 1.0]])
    second = np.array([[-2.0, -1.0], [1.0, 3.0], [1.0, 1.0]])
    a, b = (decisions(targets, x, multi_label=True) for x in (first, second))
    np.testing.assert_array_equal(a.wrong, [0, 0, 1, 1, 1, 0])
    np.testing.assert_array_equal(b.wrong, [1, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(a.example, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(a.class_index, [0, 1, 0, 1, 0, 1])
    found = compare(a, b)
    # Both wrong about a yes or no is the same answer.
    assert [found[name] for name in OUTCOMES] == [2, 2, 1, 1, 0]
    assert found["common_share"] == pytest.approx(1 / 4)
    # The sigmoid of what speaks for the answer given.
    expected = 1 / (1 + np.exp(-np.array([2, 1, 1, 3, 1, 1.0])))
    np.testing.assert_allclose(a.confidence, expected)


def test_confidence_is_the_largest_softmax():
    special = pytest.importorskip("scipy.special")
    logits = np.random.default_rng(0).normal(0, 300, size=(50, 7))
    found = decisions(one_hot(np.zeros(50, int), 7), logits, multi_label=False)
    expected = special.softmax(logits, axis=1).max(1)
    np.testing.assert_allclose(found.confidence, expected)


def test_targets_and_logits_must_fit():
    with pytest.raises(UserError, match=r"\(4, 3\), logits of \(4, 2\)"):
        decisions(np.ones((4, 3)), np.ones((4, 2)), multi_label=False)


@pytest.mark.parametrize("rates", [(0.3, 0.4), (0.05, 0.5), (0.9, 0.8)])
def test_error_consistency_is_cohens_kappa(rates):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    shared = rng.uniform(size=500) < 0.3
    first, second = (shared | (rng.uniform(size=500) < r) for r in rates)
    assert error_consistency(first, second) == pytest.approx(
        metrics.cohen_kappa_score(first, second)
    )


def test_error_consistency_at_the_ends():
    wrong = np.array([True, False, True, False])
    assert error_consistency(wrong, wrong) == 1
    assert error_consistency(wrong, ~wrong) == -1
    assert error_consistency(wrong, [True, True, False, False]) == 0
    never = np.zeros(4, bool)
    assert np.isnan(error_consistency(never, never))


def test_expected_calibration_error_by_hand():
    # Two bins, (0, 1/2] and (1/2, 1]: gaps |0.4 - 1/2| and |0.8 - 1/3|.
    confidence = np.array([0.3, 0.5, 0.6, 0.8, 1.0])
    right = np.array([True, False, True, False, False])
    found = expected_calibration_error(confidence, right, num_bins=2)
    assert found == pytest.approx(2 / 5 * 0.1 + 3 / 5 * (0.8 - 1 / 3))
    assert expected_calibration_error(np.ones(3), np.ones(3, bool)) == 0


def test_a_calibrated_model_has_almost_no_calibration_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(size=200_000)
    right = rng.uniform(size=200_000) < confidence
    assert expected_calibration_error(confidence, right) < 0.01


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    written_models.write_models(path)
    return path


class Guessing(kt.Models):
    """Models that are right three times in four."""

    def logits(self, member, split="test"):
        labels = self.examples.split(split).labels
        rng = np.random.default_rng(sum(member.name.encode()))
        guesses = rng.integers(0, 10, len(labels))
        guesses = np.where(rng.uniform(size=len(labels)) < 0.7, labels, guesses)
        return answering(guesses, 10)


@pytest.fixture(scope="module")
def found(directory):
    guessing = Guessing(written_models.named(directory))
    return guessing, kt.mistakes(guessing, num_bins=10)


def answers(guessing):
    return {m.name: guessing.logits(m).argmax(1) for m in guessing}


def test_table_of_pairs(found):
    guessing, table = found
    labels = guessing.examples.split("test").labels
    given = answers(guessing)
    overall = table[table["class"] == "all"]
    assert list(overall.pair) == [
        "P-T/P-T",
        *["P-T/RI-T"] * 4,
        "RI-T/RI-T",
    ]
    for row in overall.itertuples():
        a, b = given[row.first], given[row.second]
        assert row.decisions == len(labels) == 797
        assert row.both_right == np.sum((a == labels) & (b == labels))
        assert row.only_first_wrong == np.sum((a != labels) & (b == labels))
        assert row.only_second_wrong == np.sum((a == labels) & (b != labels))
        assert row.both_wrong_same == np.sum((a == b) & (a != labels))
    # Classes add up to all.
    by_class = table[table["class"] != "all"].groupby(["first", "second"])
    counts = ["decisions", *OUTCOMES]
    expected = overall.set_index(["first", "second"])[counts]
    pandas.testing.assert_frame_equal(
        by_class[counts].sum(), expected.sort_index()
    )
    threes = table[(table["class"] == "3") & (table["first"] == "pt0")]
    assert set(threes.decisions) == {np.sum(labels == 3)}


def test_tables_of_models_and_confidence(found):
    guessing, table = found
    models = table.further["mistakes_models"]
    labels = guessing.examples.split("test").labels
    given = answers(guessing)
    assert list(models.model) == ["pt0", "pt1", "rit0", "rit1"]
    for row in models.itertuples():
        assert row.accuracy == pytest.approx(
            np.mean(given[row.model] == labels)
        )
    confidence = table.further["mistakes_confidence"]
    counts = confidence.groupby(
        ["first", "second", "model", "mistakes"]
    ).decisions.sum()
    for row in table[table["class"] == "all"].itertuples():
        common = row.both_wrong_same + row.both_wrong_different
        key = row.first, row.second
        assert counts[(*key, row.first, "common")] == common
        assert counts[(*key, row.second, "common")] == common
        assert counts[(*key, row.first, "uncommon")] == row.only_first_wrong
        assert counts[(*key, row.second, "uncommon")] == row.only_second_wrong
    assert confidence.confidence_to.max() == 1


def test_images_only_one_kind_gets_wrong(found):
    guessing, table = found
    images = table.further["mistakes_images"]
    labels = guessing.examples.split("test").labels
    given = answers(guessing)
    wrong = {name: answer != labels for name, answer in given.items()}
    by_kind = {
        "P-T": wrong["pt0"].astype(int) + wrong["pt1"],
        "RI-T": wrong["rit0"].astype(int) + wrong["rit1"],
    }
    for kind, other in (("P-T", "RI-T"), ("RI-T", "P-T")):
        own = images[images.wrong_kind == kind]
        expected = (by_kind[kind] > 0) & (by_kind[other] == 0)
        assert set(own.example) == set(np.flatnonzero(expected))
        assert list(own.models_wrong) == sorted(own.models_wrong)[::-1]
        np.testing.assert_array_equal(
            own.models_wrong, by_kind[kind][own.example]
        )
        np.testing.assert_array_equal(
            own["class"].astype(int), labels[own.example]
        )
    row = images[images.wrong_kind == "RI-T"].iloc[0]
    assert row.answers == " ".join(
        str(given[name][row.example]) for name in ("rit0", "rit1")
    )
    # What is drawn is the first of these.
    pictures = table.further["mistakes_pictures"]
    first = images[images.wrong_kind == "RI-T"].head(24)
    own = pictures[pictures.wrong_kind == "RI-T"]
    assert list(own.example) == list(first.example)
    assert own.label.iloc[0] == f"{row['class']}: {row.answers}"
    np.testing.assert_array_equal(
        np.stack(list(own.image)),
        guessing.examples.split("test").images(own.example.to_numpy()),
    )


def test_what_is_written(found, directory, tmp_path, monkeypatch):
    """Every table and figure, but not what only a figure needs."""
    _, table = found
    monkeypatch.setattr(kt.Models, "logits", Guessing.logits)
    gin.parse_config("analyze.analyses = [@mistakes]\nmistakes.num_bins = 10")
    gin.bind_parameter("Models.models", written_models.named(directory))
    analyze(tmp_path)
    assert {path.name for path in tmp_path.glob("mistakes*.csv")} == {
        "mistakes.csv",
        "mistakes_agreement.csv",
        "mistakes_models.csv",
        "mistakes_confidence.csv",
        "mistakes_images.csv",
    }
    written = pandas.read_csv(tmp_path / "mistakes.csv")
    pandas.testing.assert_frame_equal(
        written, pandas.DataFrame(table), check_dtype=False
    )
    for name in (
        "mistakes",
        "mistakes_agreement",
        "mistakes_confidence",
        "mistakes_images",
    ):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


def test_multi_label_tables(directory):
    test = written_runs.digits().examples.split("test")
    images = np.float32(test.images(np.arange(len(test)))) / 127.5 - 1
    targets = one_hot(test.labels, 10)
    data = kt.Examples(test=(images, targets), multi_label=True)
    found = kt.Models(written_models.named(directory), data=data)
    table = kt.mistakes(found)
    overall = table[table["class"] == "all"]
    assert set(overall.decisions) == {7970}
    assert set(overall.both_wrong_different) == {0}
    fives = table[table["class"] == "5"]
    logits = [found.logits(m)[:, 5] > 0 for m in found.of_kind("P-T")]
    truth = targets[:, 5] > 0
    assert fives.both_right.iloc[0] == np.sum(
        (logits[0] == truth) & (logits[1] == truth)
    )
    images = table.further["mistakes_images"]
    assert set(images.answers.str.split().explode()) <= {"yes", "no"}


def test_logits_take_one_pass_per_model(directory, monkeypatch):
    found = kt.Models(written_models.named(directory))
    passes = []
    real = ExampleSplit.batches

    def counted(self, *args, **kwargs):
        passes.append(args)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(ExampleSplit, "batches", counted)
    first = found.of_kind("P-T")[0]
    logits = found.logits(first)
    for member in found:
        assert found.logits(member).shape == (797, 10)
    assert found.logits(first) is logits
    assert len(passes) == 1
    images = found.examples.split("test").images(np.arange(797)) / 127.5 - 1
    np.testing.assert_allclose(
        logits, found.model(first).predict(images, verbose=0), atol=1e-4
    )
    assert found.logits(first, "train").shape == (32, 10)


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_models_in_memory(activation):
    """Answers and confidence are what the models give themselves."""
    nets = written_models.nets(activation=activation)
    images, labels = written_models.arrays()["test"]
    data = kt.Examples(test=(images, labels), class_names=["a", "b", "c"])
    table = kt.mistakes(kt.Models(nets, data=data), images_shown=3)
    given = {
        f"{kind} {i}": net.predict(images, verbose=0)
        for kind, own in nets.items()
        for i, net in enumerate(own)
    }
    for row in table[table["class"] == "all"].itertuples():
        a, b = given[row.first].argmax(1), given[row.second].argmax(1)
        assert row.both_right == np.sum((a == labels) & (b == labels))
        assert row.only_first_wrong == np.sum((a != labels) & (b == labels))
    assert set(table["class"]) == {"all", "a", "b", "c"}
    found = table.further["mistakes_models"].set_index("model")
    for name, outputs in given.items():
        if activation is None:
            outputs = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
        assert found.expected_calibration_error[name] == pytest.approx(
            expected_calibration_error(
                outputs.max(1), outputs.argmax(1) == labels
            ),
            abs=1e-6,
        )
    for name in ("mistakes", "mistakes_confidence", "mistakes_images"):
        assert getattr(kt.figures, name)(table).axes


def test_inputs_that_are_no_images():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)).astype(np.float32), np.arange(30) % 3

    def make(seed):
        keras.utils.set_random_seed(seed)
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])

    found = kt.Models(
        {"P-T": make(0), "RI-T": make(1)}, data=kt.Examples(test=(x, y))
    )
    table = kt.mistakes(found)
    assert len(table.further["mistakes_images"])
    assert not len(table.further["mistakes_pictures"])
    assert kt.figures.mistakes_images(table) is None
    (figure,) = [
        f
        for f in find_analysis("mistakes").figures
        if f.name == "mistakes_images"
    ]
    assert not list(figure.drawn(table.further))


def test_trajectories():
    recorded = [written_models.fitted(seed) for seed in range(2)]
    data = written_models.examples()
    table = kt.mistakes(kt.Models({"P-T": recorded}, data=data, epoch=1))
    expected = kt.mistakes(
        kt.Models({"P-T": [t.load_model(1) for t in recorded]}, data=data)
    )
    pandas.testing.assert_frame_equal(table, expected)


AGREEMENT = [
    # pair, first and second accuracy, matched, kappa
    ("P-T/P-T", 0.9, 0.9, False, 0.5),
    ("P-T/RI-T", 0.9, 0.8, False, 0.3),
    ("P-T/RI-T", 0.9, 0.8, False, 0.5),
    ("P-T frozen/RI-T", 0.9, 0.8, False, 0.9),
    ("RI-T/RI-T", 0.8, 0.8, False, 0.45),
    ("P-T/P-T", 0.802, 0.8, True, 0.6),
    ("P-T/RI-T", 0.802, 0.8, True, 0.7),
    ("RI-T/P-T", 0.8, 0.8, True, 0.8),
    ("RI-T/RI-T", 0.8, 0.8, True, 0.35),
]


def agreement_of(rows):
    columns = ["pair", "first_accuracy", "second_accuracy", "matched", "kappa"]
    return pandas.DataFrame(rows, columns=columns)


def test_statistic_of_agreement():
    table = agreement_of(AGREEMENT)
    assert excess_at_end(table, "P-T/RI-T") == pytest.approx(0.5 - 0.4)
    assert excess_at_end(table, "RI-T/RI-T") == pytest.approx(0.5 - 0.45)
    value, note = excess_agreement(table, "RI-T/RI-T")
    assert value == pytest.approx(0.6 - 0.35) and not note
    value, note = excess_agreement(table, "P-T/RI-T")
    assert value == pytest.approx(0.6 - 0.75)
    assert note.startswith("Accuracy explains it")


def test_what_must_be_read_with_the_agreement():
    table = agreement_of(AGREEMENT)
    # There was nothing to be explained.
    table.loc[0, "kappa"] = 0.2
    assert excess_agreement(table, "P-T/RI-T").note == ""
    # The P-Ts could not be taken back far enough.
    table.loc[table.pair == "P-T/P-T", "first_accuracy"] = 0.85
    assert "1 point" in excess_agreement(table, "RI-T/RI-T").note
    value, note = excess_agreement(table[~table.matched], "RI-T/RI-T")
    assert value == pytest.approx(0.2 - 0.45) and "not matched" in note
    table.loc[table.pair == "RI-T/RI-T", "kappa"] = np.nan
    with pytest.raises(UserError, match="RI-T/RI-T without any"):
        excess_agreement(table, "RI-T/RI-T")
    with pytest.raises(UserError, match="no RI-T/RI-T"):
        excess_agreement(table[table.pair != "RI-T/RI-T"], "RI-T/RI-T")


def test_claim(found):
    _, table = found
    agreement = table.further["mistakes_agreement"]
    declared = find_analysis("mistakes").statistics
    assert {s.claim for s in declared} == {"C3"}
    assert {(s.direction, s.threshold) for s in declared} == {(">", 0)}
    assert [s.decides for s in declared] == [True, True, False, False]
    # Of runs without a learning curve nothing can be matched.
    assert not agreement.matched.any()
    for statistic, other in zip(
        declared, ["P-T/RI-T", "RI-T/RI-T"] * 2, strict=True
    ):
        assert other in statistic.name
        value = statistic.compute(agreement)
        expected = excess_at_end(agreement, other)
        if statistic.decides:
            assert value.value == expected and "not matched" in value.note
        else:
            assert value == expected


# A model errs on an image if what it finds hard about it, which is partly what
# all, or those of its kind, find hard, is more than it has learned by an epoch.
IMAGES, CLASSES = 4000, 3
LEARNED = {"P-T": [0.3, 0.8, 1.2, 1.6], "RI-T": [-0.5, 0.1, 0.5, 0.8]}


class Learning(kt.Models):
    """Models that learn; P-Ts find the same images hard if they are alike."""

    alike = 0.0

    def logits(self, member, split="test"):
        labels = self.examples.split(split).labels
        return answering((labels + self.wrong(member)) % CLASSES, CLASSES)

    def wrong(self, member):
        kind, name = member.kind, member.name.split("@")[0]

        def normal(text):
            return np.random.default_rng(list(text.encode())).normal(
                size=IMAGES
            )

        alike = self.alike if kind == "P-T" else 0.0
        hard = normal("all") + alike * normal(kind)
        hard = hard + normal(name) * np.sqrt(1 - alike**2)
        return hard / np.sqrt(2) > LEARNED[kind][member.epoch - 1]


def learning(alike=0.0, kept=(1, 2, 3, 4)):
    """Two P-Ts and two RI-Ts, their curves as their answers are."""
    data = kt.Examples(
        test=(np.zeros((IMAGES, 2)), np.arange(IMAGES) % CLASSES)
    )
    recorded = {kind: [kt.Trajectory(), kt.Trajectory()] for kind in LEARNED}
    for trajectory in sum(recorded.values(), []):
        trajectory._weights = {0: {}} | {epoch: {} for epoch in kept}
    found = Learning(recorded, data=data)
    found.alike = alike
    for member in found:
        member.source._rows = [
            {"epoch": e, "val_accuracy": 1 - found.wrong(_at(member, e)).mean()}
            for e in range(1, 5)
        ]
    return found


def test_better_models_are_taken_where_they_were_as_good():
    found = learning()
    table = kt.mistakes(found).further["mistakes_agreement"]
    at_end, matched = table[~table.matched], table[table.matched]
    assert set(at_end.first_epoch) == set(at_end.second_epoch) == {4}
    assert list(matched.pair) == list(at_end.pair)
    epochs = matched[["first_epoch", "second_epoch"]].to_numpy()
    # 0.8 after the second epoch, as RI-Ts at their last.
    assert epochs.tolist() == [[2, 2], *[[2, 4]] * 4, [4, 4]]
    assert list(matched["first"][:2]) == ["P-T 0@2", "P-T 0@2"]
    assert list(matched.second[-1:]) == ["RI-T 1"]
    accuracies = matched[["first_accuracy", "second_accuracy"]]
    assert np.ptp(accuracies.to_numpy()) < 0.02
    metrics = pytest.importorskip("sklearn.metrics")
    member = {m.name: m for m in found}
    for row in matched.itertuples():
        wrong = [
            found.wrong(_at(member[name.split("@")[0]], epoch))
            for name, epoch in (
                (row.first, row.first_epoch),
                (row.second, row.second_epoch),
            )
        ]
        assert row.first_accuracy == pytest.approx(1 - wrong[0].mean())
        assert row.kappa == pytest.approx(metrics.cohen_kappa_score(*wrong))
    # Otherwise as of the same models alone.
    assert kt.figures.mistakes_agreement(table).axes[1].patches


def test_whichever_kind_is_better_is_taken_back():
    found = learning()
    for member in found.of_kind("P-T"):
        # As if they had been trained for one epoch only.
        member.source._weights = {0: {}, 1: {}}
    found = Learning(
        {kind: [m.source for m in found.of_kind(kind)] for kind in LEARNED},
        data=found.examples,
    )
    table = kt.mistakes(found).further["mistakes_agreement"]
    last = table[table.matched].iloc[-1]
    assert last.pair == "RI-T/RI-T"
    # 0.3 lies between 0.1 and 0.5.
    assert last.first_epoch in (2, 3) and last.second_epoch in (2, 3)
    assert set(table[table.matched].first_epoch[:5]) == {1}


def test_unequal_accuracy_alone_is_no_agreement():
    """All find the same images hard, and P-Ts have learned more."""
    table = kt.mistakes(learning()).further["mistakes_agreement"]
    assert excess_at_end(table, "RI-T/RI-T") < -0.05
    assert abs(excess_agreement(table, "P-T/RI-T").value) < 0.05
    assert abs(excess_agreement(table, "RI-T/RI-T").value) < 0.05


def test_agreement_of_one_kind_is_found():
    table = kt.mistakes(learning(alike=0.8)).further["mistakes_agreement"]
    for other in ("P-T/RI-T", "RI-T/RI-T"):
        assert excess_agreement(table, other).value > 0.1


def test_no_match_of_one_epoch_alone():
    table = kt.mistakes(learning(kept=[4])).further["mistakes_agreement"]
    assert len(table) == 6 and not table.matched.any()
    assert "not matched" in excess_agreement(table, "P-T/RI-T").note
    assert kt.figures.mistakes_agreement(table).axes


def test_images_are_drawn_anew_by_seed():
    metrics = pytest.importorskip("sklearn.metrics")
    found = learning()
    tables = [kt.mistakes(found, seed=seed) for seed in (3, 3, 4)]
    agreements = [table.further["mistakes_agreement"] for table in tables]
    pandas.testing.assert_frame_equal(*agreements[:2])
    assert (agreements[0].kappa != agreements[2].kappa).all()
    # Only the agreement is of drawn images.
    pandas.testing.assert_frame_equal(tables[0], tables[2])
    drawn = np.random.default_rng(3).choice(IMAGES, IMAGES)
    first, second = (found.wrong(m)[drawn] for m in found.of_kind("P-T"))
    row = agreements[0].iloc[0]
    assert row.kappa == pytest.approx(metrics.cohen_kappa_score(first, second))
    assert row.second_accuracy == pytest.approx(1 - second.mean())


def test_agreement_of_findings_is_their_mean():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    targets = (rng.uniform(size=(300, 3)) < [0.5, 0.3, 0.1]).astype(np.float32)
    data = kt.Examples(test=(targets, targets), multi_label=True)
    nets = []
    for seed in range(2):
        keras.utils.set_random_seed(seed)
        nets.append(
            keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
        )
    table = kt.mistakes(kt.Models({"P-T": nets}, data=data))
    a, b = ((net.predict(targets, verbose=0) > 0) != targets for net in nets)
    expected = [
        metrics.cohen_kappa_score(a[:, k], b[:, k])
        for k in range(3)
        # A finding that neither gets wrong says nothing.
        if a[:, k].any() or b[:, k].any()
    ]
    (row,) = table.further["mistakes_agreement"].itertuples()
    assert row.kappa == pytest.approx(np.nanmean(expected))
    assert row.first_accuracy == pytest.approx(1 - a.mean())


def test_trajectories_are_matched_with_what_their_weights_answer():
    recorded = {
        kind: [written_models.fitted(seed, epochs=3) for seed in seeds]
        for kind, seeds in {"P-T": (0, 1), "RI-T": (2, 3)}.items()
    }
    found = kt.Models(recorded, data=written_models.examples())
    table = kt.mistakes(found).further["mistakes_agreement"]
    images, labels = written_models.arrays()["test"]
    assert table.matched.sum() == 6
    for row in table[table.matched].itertuples():
        kind, number = row.first.split("@")[0].split()
        net = recorded[kind][int(number)].load_model(row.first_epoch)
        answers = net.predict(images, verbose=0).argmax(1)
        assert row.first_accuracy == pytest.approx(np.mean(answers == labels))


def test_runs_are_matched_by_their_metrics(tmp_path):
    """Epoch 1 was bad by metrics.csv, as all these random models are."""
    written_models.write_models(tmp_path)
    for path in tmp_path.iterdir():
        run = Run(path)
        run.save(1, run.load_model(0))
        for epoch, accuracy in ((1, 0.1), (2, 0.99)):
            summary = {"loss": 1.0, "accuracy": accuracy}
            run.add_metrics(epoch, epoch, {"test": summary})
    found = kt.Models(written_models.named(tmp_path))
    table = kt.mistakes(found).further["mistakes_agreement"]
    matched = table[table.matched].set_index("pair")
    epochs = matched[["first_epoch", "second_epoch"]]
    own = {"P-T/P-T": "pt0", "RI-T/RI-T": "rit0"}
    # Random models are about as good, so either kind may be the better one.
    ends = {tuple(epochs.loc[pair]): pair for pair in own}
    assert set(ends) == {(1, 1), (2, 2)}
    better = ends[1, 1]
    run = Run(tmp_path / own[better])
    test = found.examples.split("test")
    images = np.float32(test.images(np.arange(len(test)))) / 127.5 - 1
    answers = run.load_model(0).predict(images, verbose=0).argmax(1)
    row = matched.loc[better]
    assert row["first"] == f"{run.path.name}@1"
    assert row.first_accuracy == pytest.approx(np.mean(answers == test.labels))


def test_a_model_whose_outputs_are_not_finite_is_named():
    nets = written_models.nets()
    nets["RI-T"][1].layers[-1].bias.assign([np.nan, 0, 0])
    found = kt.Models(nets, data=written_models.examples())
    with pytest.raises(UserError, match="'RI-T 1' gives outputs.*40 of 40"):
        kt.mistakes(found)


def test_what_mistakes_refuses(directory, tmp_path):
    pretrained = kt.Models(
        {"P": [f"{directory}/pt0"], "P-T": [f"{directory}/pt1"]}
    )
    with pytest.raises(UserError, match="Received: 1"):
        kt.mistakes(pretrained)
    written_runs.write_run(
        tmp_path / "wide", written_runs.digits(), seed=0, num_classes=12
    )
    other = kt.Models({"P-T": [f"{directory}/pt0", f"{tmp_path}/wide"]})
    with pytest.raises(UserError, match="wide' gives 12 logits"):
        kt.mistakes(other)
    with pytest.raises(UserError, match="named once.*pt0"):
        kt.Models({"P-T": [f"{directory}/pt0"], "P": f"{directory}/pt0"})
    with pytest.raises(UserError, match="num_bins"):
        kt.mistakes(kt.Models(written_models.named(directory)), num_bins=0)
