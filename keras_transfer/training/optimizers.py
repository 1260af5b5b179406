"""SGD with the update rule of the published recipes, and Keras' optimizers.

Gin knows every optimizer of Keras by its name, with all of its arguments:

    train.optimizer = @AdamW
    AdamW.weight_decay = 0.05
    AdamW.use_ema = True

`SGD` is the one below; Keras' own is called `KerasSGD`.
"""

import inspect

import gin
import keras
import tensorflow as tf
from keras import ops

from keras_transfer.errors import UserError

# Of several optimizers for several layers; not in all versions of Keras.
MULTI_OPTIMIZER = getattr(keras.optimizers, "MultiOptimizer", ())
_OF_OTHERS = (
    keras.optimizers.Optimizer,
    keras.optimizers.LossScaleOptimizer,
    MULTI_OPTIMIZER,
)

# What arguments take that have no default to tell.
_KINDS = dict.fromkeys(
    ("weight_decay", "clipnorm", "clipvalue", "global_clipnorm")
    + ("loss_scale_factor",),
    float | None,
) | dict.fromkeys(
    ("ema_overwrite_frequency", "gradient_accumulation_steps"), int | None
)


def _register(name, kind):
    """Has gin know an optimizer of Keras by a name."""

    def make(*args, **kwargs):
        return kind(*args, **kwargs)

    # Of the subclass that gin would make of a class, none is known.
    signature = inspect.signature(kind)
    make.__signature__ = signature.replace(
        parameters=[
            parameter.replace(annotation=_KINDS.get(key, parameter.annotation))
            for key, parameter in signature.parameters.items()
        ]
    )
    make.__doc__ = kind.__doc__
    gin.external_configurable(make, name, module="keras.optimizers")


for _name, _kind in vars(keras.optimizers).items():
    if (
        inspect.isclass(_kind)
        and issubclass(_kind, keras.optimizers.Optimizer)
        and _kind not in _OF_OTHERS
    ):
        _register("KerasSGD" if _name == "SGD" else _name, _kind)


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
        use_ema: bool, whether to keep a moving average of the weights, as all
            optimizers of Keras can; models are evaluated and saved with it.
        ema_momentum: float in [0, 1], its momentum.
        gradient_accumulation_steps: int or None, after how many steps there is
            one with the mean of their gradients, likewise.

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
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        gradient_accumulation_steps: int | None = None,
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
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            gradient_accumulation_steps=gradient_accumulation_steps,
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
            for key in (
                *("learning_rate", "momentum", "global_clipnorm", "name"),
                *("use_ema", "ema_momentum", "gradient_accumulation_steps"),
            )
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
    unwrapped(optimizer)._all_reduce_sum_gradients = lambda pairs: pairs


def unwrapped(optimizer):
    """Returns the optimizer that takes steps, without any loss scaling."""
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer


def averages(optimizer):
    """Returns (variable, moving average of it) pairs; [] without `use_ema`.

    Args:
        optimizer: any Keras optimizer, built. Averages begin as the variables.
    """
    optimizer = unwrapped(optimizer)
    if not optimizer.use_ema:
        return []
    pairs = zip(
        optimizer._trainable_variables,
        optimizer._model_variables_moving_average,
        strict=True,
    )
    pairs = [pair for pair in pairs if pair[1] is not None]
    for variable, average in pairs:
        average.assign(variable)
    return pairs


def decide_across_replicas(optimizer):
    """Has replicas decide together whether accumulated gradients are due.

    Keras lets each decide for itself, and `tf.distribute` does not let them
    meet then, as they do in a step.

    Args:
        optimizer: any Keras optimizer, changed in place; for several replicas.

    Raises:
        UserError: for `ema_overwrite_frequency`, which is decided likewise.
    """
    optimizer = unwrapped(optimizer)
    if optimizer.use_ema and optimizer.ema_overwrite_frequency:
        raise UserError(
            "Weights are overwritten with their averages on one device only. "
            f"Received: ema_overwrite_frequency="
            f"{optimizer.ema_overwrite_frequency} on several; leave it out, or "
            'bind strategy.name = "one_device".'
        )
    count = optimizer.gradient_accumulation_steps
    if not count:
        return

    def accumulators(variables):
        indices = map(optimizer._get_variable_index, variables)
        return [optimizer._accumulated_gradients[i] for i in indices]

    def take_step(gradients, variables):
        pairs = zip(gradients, accumulators(variables), strict=True)
        means = optimizer._clip_gradients([(g + a) / count for g, a in pairs])
        optimizer._apply_weight_decay(variables)
        rate = optimizer.learning_rate
        optimizer._backend_update_step(means, variables, rate)
        optimizer._backend_reset_gradient_accumulators()

    def accumulate(gradients, variables):
        optimizer._backend_increment_gradient_accumulators(
            gradients, accumulators(variables)
        )

    def decide(distribution, *arguments):
        def on_all(function):
            distribution.extended.call_for_each_replica(function, arguments)

        tf.cond(
            (optimizer._iterations + 1) % count == 0,
            lambda: on_all(take_step),
            lambda: on_all(accumulate),
        )

    def apply_gradients(gradients, variables):
        context = tf.distribute.get_replica_context()
        context.merge_call(decide, args=(gradients, variables))
        optimizer._update_model_variables_moving_average(
            optimizer._trainable_variables
        )

    optimizer._backend_apply_gradients = apply_gradients


def scale_rates(optimizer, factors):
    """Has each variable learn at a multiple of the learning rate.

    Decoupled weight decay, which goes with the rate, is multiplied too. Keras
    has one rate for all variables.

    Args:
        optimizer: any Keras optimizer, changed in place.
        factors: sequence of float, one for each variable, in the order in which
            the optimizer is built with them.
    """
    optimizer = unwrapped(optimizer)
    take_step, decay = optimizer.update_step, optimizer._apply_weight_decay
    rate = optimizer._get_current_learning_rate

    def factor(variable):
        return factors[optimizer._get_variable_index(variable)]

    def rate_of(variable):
        return lambda: rate() * factor(variable)

    def update_step(gradient, variable, learning_rate):
        take_step(gradient, variable, learning_rate * factor(variable))

    def apply_weight_decay(variables):
        for variable in variables:
            optimizer._get_current_learning_rate = rate_of(variable)
            decay([variable])
        optimizer._get_current_learning_rate = rate

    optimizer.update_step = update_step
    optimizer._apply_weight_decay = apply_weight_decay


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
