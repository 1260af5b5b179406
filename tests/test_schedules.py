import math

import numpy as np
import pytest

from keras_transfer.errors import UserError
from keras_transfer.training import constant, cosine, multi_step


def rates(schedule, steps):
    return np.array([float(schedule(step)) for step in steps])


def test_constant():
    schedule = constant(steps_per_epoch=7, epochs=3, base_rate=0.02)
    np.testing.assert_allclose(rates(schedule, range(21)), 0.02)


def test_multi_step_changes_at_the_first_step_of_the_boundary_epoch():
    schedule = multi_step(
        steps_per_epoch=10, epochs=100, base_rate=0.1, boundaries=[30, 60, 90]
    )
    steps = [0, 299, 300, 599, 600, 899, 900, 999]
    expected = [0.1, 0.1, 1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4]
    np.testing.assert_allclose(rates(schedule, steps), expected, rtol=1e-6)


def test_multi_step_agrees_with_torch():
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5], 0.3)
    expected = []
    for _ in range(8):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    schedule = multi_step(
        steps_per_epoch=4, epochs=8, boundaries=[2, 5], factor=0.3
    )
    for offset in (0, 3):
        steps = [4 * epoch + offset for epoch in range(8)]
        np.testing.assert_allclose(rates(schedule, steps), expected, rtol=1e-6)


def test_multi_step_refuses_unordered_boundaries():
    with pytest.raises(UserError, match=r"increasing.*\[60, 30\]"):
        multi_step(steps_per_epoch=10, epochs=90, boundaries=[60, 30])


def test_cosine():
    schedule = cosine(steps_per_epoch=5, epochs=8, base_rate=0.4)
    steps = np.arange(40)
    expected = 0.2 * (1 + np.cos(math.pi * steps / 40))
    np.testing.assert_allclose(rates(schedule, steps), expected, atol=1e-7)


@pytest.mark.parametrize("factory", [constant, multi_step, cosine])
def test_warmup_is_a_linear_ramp_on_any_schedule(factory):
    plain = factory(steps_per_epoch=10, epochs=100, base_rate=0.1)
    warmed = factory(
        steps_per_epoch=10, epochs=100, base_rate=0.1, warmup_epochs=2.5
    )
    steps = np.array([0, 1, 11, 24, 25, 400, 999])
    ramp = np.minimum((steps + 1) / 25, 1)
    np.testing.assert_allclose(
        rates(warmed, steps), ramp * rates(plain, steps), rtol=1e-6
    )
