"""Stochastic gradient descent with the update rule of the published recipes."""

import gin
import keras
import tensorflow as tf
from keras import ops

from keras_transfer.errors import UserError


@gin.configurable
class SGD(keras.optimizers.SGD):
    """SGD as `torch.optim.SGD` defines it (paper section 3, training recipes).

    With gradient g, parameter w, learning rate r, momentum m, weight decay d:

        g <- g + d w        (coupled: the decay goes through the momentum)
        v <- m v + g
        w <- w - r v

    Keras' own SGD keeps r inside the velocity and decays w beside it, which is
    another trajectory as soon as the rate changes or the decay is not zero.

    Args:
        learning_rate: float or Keras `LearningRateSchedule`.
        momentum: float in [0, 1].
        weight_decay: float, L2 penalty on every parameter.
        scalar_multiplier: float, factor on the learning rate of every parameter
            with "bias" or "scale" in its name. The recipes for Fixup networks
            bind it to 0.1, for their scalars and the head's bias.
        global_clipnorm: float or None, upper bound on the L2 norm of the whole
            gradient, before weight decay is added.

    Raises:
        UserError: if the momentum is out of range.
    """

    def __init__(
        self,
        learning_rate,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        scalar_multiplier: float = 1.0,
        global_clipnorm: float | None = None,
        name: str = "sgd",
    ):
        if not 0 <= momentum <= 1:
            raise UserError(
                f"SGD.momentum must lie in [0, 1]. Received: {momentum!r}"
            )
        super().__init__(
            learning_rate=learning_rate,
            momentum=float(momentum),
            global_clipnorm=global_clipnorm,
            name=name,
        )
        self.coupled_weight_decay = weight_decay
        self.scalar_multiplier = scalar_multiplier

    def build(self, variables):
        """Creates the momenta and looks up every variable's rate."""
        if self.built:
            return
        super().build(variables)
        self._multipliers = [
            self.scalar_multiplier if _is_scalar_parameter(v) else 1.0
            for v in variables
        ]

    def update_step(self, gradient, variable, learning_rate):
        """Applies one step to one variable."""
        index = self._get_variable_index(variable)
        rate = ops.cast(
            learning_rate * self._multipliers[index], variable.dtype
        )
        gradient = ops.cast(gradient, variable.dtype)
        velocity = gradient + self.coupled_weight_decay * variable
        if self.momentum:  # Without, Keras keeps no velocity.
            kept = self.momentums[index]
            self.assign(kept, self.momentum * kept + velocity)
            velocity = kept
        self.assign_sub(variable, rate * velocity)

    def get_config(self):
        """Returns the constructor's arguments."""
        base = super().get_config()
        return {
            key: base[key]
            for key in ("learning_rate", "momentum", "global_clipnorm", "name")
        } | {
            "weight_decay": self.coupled_weight_decay,
            "scalar_multiplier": self.scalar_multiplier,
        }


def _is_scalar_parameter(variable):
    return "bias" in variable.name or "scale" in variable.name


def expect_summed_gradients(optimizer):
    """Has a Keras optimizer not sum over replicas what has been summed.

    Keras does it in `apply`, after clipping. The training step does it before,
    so that clipping and loss scaling see the gradient of the global batch.

    Args:
        optimizer: any Keras optimizer, changed in place.
    """
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    optimizer._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars


def sum_over_replicas(gradients):
    """Sums gradients over replicas; call in a replica context.

    Args:
        gradients: list of tensors, or None of what the loss does not depend on.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return gradients
    given = [gradient for gradient in gradients if gradient is not None]
    sums = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, given))
    return [None if g is None else next(sums) for g in gradients]
