import dataclasses

import numpy as np
import pandas
import pytest
import written_runs

from keras_transfer.analysis import (
    Output,
    Subjects,
    error_consistency,
    expected_calibration_error,
    mistakes,
)
from keras_transfer.analysis.mistakes import (
    OUTCOMES,
    compare,
    decisions,
    shared_mistakes,
)
from keras_transfer.errors import UserError


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
    written_runs.write_subjects(path)
    return path


class Guessing(Subjects):
    """Subjects that are right three times in four."""

    def logits(self, subject, split="test"):
        labels = {"test": self.dataset.test, "train": self.dataset.train}
        labels = labels[split].labels
        rng = np.random.default_rng(sum(subject.name.encode()))
        guesses = rng.integers(0, 10, len(labels))
        guesses = np.where(rng.uniform(size=len(labels)) < 0.7, labels, guesses)
        return answering(guesses, 10)


@pytest.fixture(scope="module")
def found(directory, tmp_path_factory):
    subjects = Guessing(runs=written_runs.named(directory))
    output = Output(tmp_path_factory.mktemp("out"))
    return subjects, mistakes(subjects, output, num_bins=10), output.path


def answers(subjects):
    return {s.name: subjects.logits(s).argmax(1) for s in subjects}


def test_table_of_pairs(found):
    subjects, table, _ = found
    labels = subjects.dataset.test.labels
    given = answers(subjects)
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
    subjects, table, path = found
    models = pandas.read_csv(path / "mistakes_models.csv")
    labels, given = subjects.dataset.test.labels, answers(subjects)
    assert list(models.model) == ["pt0", "pt1", "rit0", "rit1"]
    for row in models.itertuples():
        assert row.accuracy == pytest.approx(
            np.mean(given[row.model] == labels)
        )
    confidence = pandas.read_csv(path / "mistakes_confidence.csv")
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
    subjects, _, path = found
    images = pandas.read_csv(path / "mistakes_images.csv")
    labels, given = subjects.dataset.test.labels, answers(subjects)
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
        np.testing.assert_array_equal(own["class"], labels[own.example])
    row = images[images.wrong_kind == "RI-T"].iloc[0]
    assert row.answers == " ".join(
        str(given[name][row.example]) for name in ("rit0", "rit1")
    )
    for name in ("mistakes", "mistakes_confidence", "mistakes_images"):
        assert (path / f"{name}.png").stat().st_size > 1000


def test_multi_label_tables(tmp_path, monkeypatch):
    subjects = written_runs.write_subjects(tmp_path)
    info, dataset = subjects.info, subjects.dataset
    # The digits as if each were ten findings.
    # Copies: what `load` returns is shared with other tests.
    info = dataclasses.replace(info, multi_label=True)
    split = dataclasses.replace(
        dataset.test, labels=one_hot(dataset.test.labels, 10)
    )
    dataset = dataclasses.replace(dataset, info=info, test=split)
    monkeypatch.setattr(Subjects, "info", info)
    monkeypatch.setattr(Subjects, "dataset", dataset)
    table = mistakes(subjects, Output(tmp_path / "out"))
    overall = table[table["class"] == "all"]
    assert set(overall.decisions) == {7970}
    assert set(overall.both_wrong_different) == {0}
    fives = table[table["class"] == "5"]
    logits = [subjects.logits(s)[:, 5] > 0 for s in subjects.of_kind("P-T")]
    truth = split.labels[:, 5] > 0
    assert fives.both_right.iloc[0] == np.sum(
        (logits[0] == truth) & (logits[1] == truth)
    )
    images = pandas.read_csv(tmp_path / "out" / "mistakes_images.csv")
    assert set(images.answers.str.split().explode()) <= {"yes", "no"}


def test_logits_take_one_pass_per_model(directory, monkeypatch):
    subjects = Subjects(runs=written_runs.named(directory))
    passes = []
    dataset = subjects.dataset
    real = type(dataset).eval_batches

    def counted(self, *args, **kwargs):
        passes.append(args)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(dataset), "eval_batches", counted)
    first = subjects.of_kind("P-T")[0]
    logits = subjects.logits(first)
    for subject in subjects:
        assert subjects.logits(subject).shape == (797, 10)
    assert subjects.logits(first) is logits
    assert len(passes) == 1
    images = dataset.test.raw_images(np.arange(797)) / 127.5 - 1
    np.testing.assert_allclose(
        logits, subjects.model(first).predict(images, verbose=0), atol=1e-4
    )
    assert subjects.logits(first, "train").shape == (32, 10)


def test_statistic_of_shared_mistakes():
    rows = [
        ("P-T/P-T", "all", 0.6),
        ("P-T/P-T", "0", 0.0),
        ("P-T/RI-T", "all", 0.3),
        ("P-T/RI-T", "all", 0.5),
        ("RI-T/RI-T", "all", 0.45),
    ]
    table = pandas.DataFrame(rows, columns=["pair", "class", "common_share"])
    assert shared_mistakes(table) == pytest.approx(0.6 - 0.45)


def test_what_mistakes_refuses(directory, tmp_path):
    pretrained = Subjects(
        runs={"P": [f"{directory}/pt0"], "P-T": [f"{directory}/pt1"]}
    )
    with pytest.raises(UserError, match="Received: 1"):
        mistakes(pretrained, Output(tmp_path))
    written_runs.write_run(
        tmp_path / "wide", written_runs.digits(), seed=0, num_classes=12
    )
    other = Subjects(runs={"P-T": [f"{directory}/pt0", f"{tmp_path}/wide"]})
    with pytest.raises(UserError, match="wide gives 12 logits"):
        mistakes(other, Output(tmp_path))
    with pytest.raises(UserError, match="named once.*pt0"):
        Subjects(runs={"P-T": [f"{directory}/pt0"], "P": f"{directory}/pt0"})
    with pytest.raises(UserError, match="num_bins"):
        mistakes(Subjects(runs=written_runs.named(directory)), None, num_bins=0)
