import types

import numpy as np
import pytest
import tensorflow as tf
import written_models

import keras_transfer as kt
from keras_transfer import objectives
from keras_transfer.errors import UserError
from keras_transfer.landscape.loss_surface import examples_surface
from keras_transfer.landscape.weight_space import Points

NAN, INF = np.nan, np.inf
# An argmax would take each but the first two for an answer.
LOGITS = [
    [2.0, 1.0, 0.0],
    [0.0, 1.0, 2.0],
    [NAN, 0.0, 0.0],
    [0.0, NAN, 9.0],
    [NAN, NAN, NAN],
    [INF, 0.0, 0.0],
    [0.0, -INF, 0.0],
]
FIRST_CLASS = np.eye(3, dtype=np.float32)[np.zeros(len(LOGITS), int)]


RNG = np.random.default_rng(0)


def _info(*names, multi_label=False):
    return types.SimpleNamespace(
        name="pets", class_names=names, multi_label=multi_label
    )


@pytest.mark.parametrize("multi_label", [False, True])
def test_label_smoothing_spreads_targets(multi_label):
    logits = RNG.normal(size=(6, 4)).astype("float32")
    if multi_label:
        targets = RNG.integers(0, 2, (6, 4)).astype("float32")
        smooth = 0.7 * targets + 0.3 / 2
        p = 1 / (1 + np.exp(-logits.astype(float)))
        expected = -smooth * np.log(p) - (1 - smooth) * np.log(1 - p)
        expected = expected.mean(1)
    else:
        targets = np.eye(4, dtype="float32")[RNG.integers(4, size=6)]
        smooth = 0.7 * targets + 0.3 / 4
        logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        expected = -(smooth * logs).sum(1)
    losses = objectives.example_losses(targets, logits, multi_label, 0.3)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_class_weights_multiply_losses():
    logits = RNG.normal(size=(5, 3)).astype("float32")
    labels = np.array([2, 0, 1, 2, 0])
    targets = np.eye(3, dtype="float32")[labels]
    weights = np.array([0.5, 2.0, 0.0], np.float32)
    plain = objectives.example_losses(targets, logits, False).numpy()
    weighted = objectives.example_losses(
        targets, logits, False, class_weights=weights
    )
    np.testing.assert_allclose(weighted, plain * weights[labels], rtol=1e-6)


def test_weights_of_classes():
    from sklearn.utils.class_weight import compute_sample_weight

    info = _info("ant", "bee", "cat", "never")
    labels = np.array([0, 0, 0, 1, 2, 2])
    balanced = objectives.weights_of_classes("balanced", labels, info)
    expected = compute_sample_weight("balanced", labels)
    np.testing.assert_allclose(balanced[labels], expected)
    assert balanced[3] == 1 and balanced[labels].mean() == pytest.approx(1)
    given = objectives.weights_of_classes({"cat": 3, "ant": 0.5}, labels, info)
    np.testing.assert_array_equal(given, [0.5, 1, 3, 1])
    for wrong in ({"dog": 1.0}, {"cat": -1}, {"cat": "2"}, {"cat": np.nan}):
        with pytest.raises(UserError, match="least 0 .*the classes are ant"):
            objectives.weights_of_classes(wrong, labels, info)
    findings = _info("edema", "other", multi_label=True)
    with pytest.raises(UserError, match="one class an image.*'balanced'"):
        objectives.weights_of_classes("balanced", np.eye(2), findings)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("multi_label", [False, True])
def test_logits_that_are_not_finite_are_no_answer(multi_label, compiled):
    accuracy = objectives.example_accuracy
    if compiled:
        accuracy = tf.function(accuracy, jit_compile=True)
    logits = tf.constant(LOGITS, tf.float32)
    found = accuracy(FIRST_CLASS, logits, multi_label).numpy()
    # Above zero in turn: yes yes no, no yes yes, of yes no no.
    expected = [2 / 3, 0] if multi_label else [1, 0]
    np.testing.assert_allclose(found[:2], expected)
    assert np.isnan(found[2:]).all()


def test_a_summary_without_answers():
    data = written_models.examples()
    logits = np.float32(LOGITS)
    found = objectives.summarize(FIRST_CLASS, logits, data)
    assert np.isnan(found["loss"]) and np.isnan(found["accuracy"])
    found = objectives.summarize(FIRST_CLASS[:2], logits[:2], data)
    assert found["accuracy"] == 0.5


def test_an_auc_without_answers(recwarn):
    targets = np.float32([[0, 1], [1, 0], [1, 1], [0, 0]])
    data = kt.Examples(test=(np.zeros((4, 2)), targets), multi_label=True)
    logits = np.float32([[0, 1], [1, 0], [2, 2], [-1, -1]])
    assert objectives.summarize(targets, logits, data)["auc"] == 1
    logits[2, 0] = NAN
    found = objectives.summarize(targets, logits, data)
    assert np.isnan(list(found.values())).sum() == len(found) - 1
    assert found["findings"] == 0
    # Its cause is not what the split holds.
    assert not recwarn.list


def test_a_model_without_answers_is_named():
    objectives.check_finite(np.zeros((3, 2)), "pt0")
    with pytest.raises(UserError, match="'pt1'.*NaN or infinity for 5 of 7"):
        objectives.check_finite(np.array(LOGITS), "pt1")


def test_a_loss_surface_is_not_scored_where_logits_overflow():
    """On the line beyond both models, which float32 cannot go on with."""
    net, other = written_models.net(0), written_models.net(1)
    data = written_models.examples()
    surface = examples_surface(
        net, [net.get_weights(), other.get_weights()], data
    )
    ends = surface.evaluate(Points([[1.0, 0.0], [0.0, 1.0], [1e30, -1e30]]))
    assert np.isnan(ends["accuracy"][2]) and not np.isfinite(ends["loss"][2])
    images, labels = written_models.arrays()["test"]
    for model, accuracy in zip((net, other), ends["accuracy"], strict=False):
        answers = model.predict(images, verbose=0).argmax(1)
        assert accuracy == pytest.approx(np.mean(answers == labels))
