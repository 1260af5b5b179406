"""Learning rate as a function of the step, in epochs of the run at hand.

Each schedule is called by the training loop with `steps_per_epoch` and
`epochs`; everything else is bound in gin, for example

    train.schedule = @multi_step
    multi_step.base_rate = 0.1
    multi_step.boundaries = [30, 60]

Warm-up multiplies any of them by a ramp that rises linearly over the first
`warmup_epochs` and reaches 1 at the last step of the warm-up.
"""

import gin
import keras
import tensorflow as tf

from keras_transfer.errors import UserError

_LearningRateSchedule = keras.optimizers.schedules.LearningRateSchedule


class WarmUp(_LearningRateSchedule):
    """`schedule` times min(1, (step + 1) / warmup_steps)."""

    def __init__(self, schedule, warmup_steps):
        self.schedule = schedule
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        """Returns the rate at `step` (0 is the first), a float32 scalar."""
        ramp = (tf.cast(step, tf.float32) + 1.0) / self.warmup_steps
        return tf.minimum(ramp, 1.0) * self.schedule(step)

    def get_config(self):
        """Returns the constructor's arguments."""
        return {"schedule": self.schedule, "warmup_steps": self.warmup_steps}


class _Constant(_LearningRateSchedule):
    def __init__(self, rate):
        self.rate = rate

    def __call__(self, step):
        return tf.constant(self.rate, tf.float32)

    def get_config(self):
        return {"rate": self.rate}


def _warmed_up(schedule, warmup_epochs, steps_per_epoch):
    warmup_steps = round(warmup_epochs * steps_per_epoch)
    return WarmUp(schedule, warmup_steps) if warmup_steps > 0 else schedule


@gin.configurable
def constant(
    steps_per_epoch, epochs, base_rate: float = 0.1, warmup_epochs: float = 0.0
):
    """The same rate throughout (the paper's CheXpert recipe).

    Args:
        steps_per_epoch: int, optimizer steps in an epoch.
        epochs: int, length of the run (unused; every schedule is told).
        base_rate: float, the learning rate.
        warmup_epochs: float, epochs of linear warm-up.

    Returns:
        A `LearningRateSchedule`.
    """
    del epochs
    return _warmed_up(_Constant(base_rate), warmup_epochs, steps_per_epoch)


@gin.configurable
def multi_step(
    steps_per_epoch,
    epochs,
    base_rate: float = 0.1,
    boundaries: tuple[float, ...] = (30, 60),
    factor: float = 0.1,
    warmup_epochs: float = 0.0,
):
    """The rate is multiplied by `factor` at each of `boundaries`.

    Args:
        steps_per_epoch: int, optimizer steps in an epoch.
        epochs: int, length of the run (unused; every schedule is told).
        base_rate: float, the rate before the first boundary.
        boundaries: increasing epochs; the first step of epoch b (counting
            epochs from 0) is the first with the lower rate.
        factor: float.
        warmup_epochs: float, epochs of linear warm-up.

    Returns:
        A `LearningRateSchedule`.

    Raises:
        UserError: if the boundaries do not increase or are not positive.
    """
    del epochs
    boundaries = list(boundaries)
    if boundaries != sorted(set(boundaries)) or min(boundaries, default=1) <= 0:
        raise UserError(
            "multi_step.boundaries must be increasing positive epochs. "
            f"Received: {boundaries}"
        )
    # PiecewiseConstantDecay still gives the old value at the boundary itself.
    steps = [round(b * steps_per_epoch) - 1 for b in boundaries]
    rates = [base_rate * factor**i for i in range(len(steps) + 1)]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(steps, rates)
    return _warmed_up(schedule, warmup_epochs, steps_per_epoch)


@gin.configurable
def cosine(
    steps_per_epoch, epochs, base_rate: float = 0.1, warmup_epochs: float = 0.0
):
    """Half a cosine from `base_rate` to zero over the whole run.

    Args:
        steps_per_epoch: int, optimizer steps in an epoch.
        epochs: int, length of the run.
        base_rate: float, the rate at the start.
        warmup_epochs: float, epochs of linear warm-up.

    Returns:
        A `LearningRateSchedule`.
    """
    schedule = keras.optimizers.schedules.CosineDecay(
        base_rate, max(1, steps_per_epoch * epochs)
    )
    return _warmed_up(schedule, warmup_epochs, steps_per_epoch)
