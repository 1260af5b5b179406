"""A model's weights as arrays by name, and which of them are parameters."""

import itertools

import keras

from keras_transfer.errors import UserError

# Weights that a normalization layer estimates from data: nothing trains them.
_STATISTICS = {
    keras.layers.BatchNormalization: (
        "moving_mean",
        "moving_variance",
        "moving_stddev",
        "renorm_mean",
        "renorm_stddev",
    ),
    keras.layers.Normalization: ("mean", "variance", "count"),
    keras.layers.SpectralNormalization: ("vector_u",),
}


def named_weights(model):
    """Reads all that a model holds: weights, statistics, random states.

    Also found are the weights of layers that another layer holds in a list or a
    dict, and the states of random number generators (dropout, augmentation).

    Args:
        model: built `keras.Model` of any kind.

    Returns:
        A dict from a variable's path, such as "conv1/kernel", to a NumPy array
        of its value, in the order of `model.variables`. Where a path occurs
        again, "#2", "#3" and so on is added to it.
    """
    return {
        name: keras.ops.convert_to_numpy(variable)
        for name, variable in _named_variables(model).items()
    }


def assign_weights(model, named, what="The weights"):
    """Gives a model the weights that `named_weights` read from another.

    Variables are matched by path where both have the same paths, otherwise by
    position: Keras numbers layers without a name of their own as they are made
    (dense, dense_1), and such names tell nothing.

    Args:
        model: built `keras.Model`, changed in place.
        named: dict from a path to an array, in the order of the variables of
            the model that it comes from.
        what: what the weights are, the start of a sentence that says why they
            cannot be used: "Checkpoint 3 of DIR".

    Raises:
        UserError: if number or shapes differ; the model is unchanged then.
    """
    variables = _named_variables(model)
    if variables.keys() == named.keys():
        named = {name: named[name] for name in variables}
    for ours, theirs in itertools.zip_longest(
        variables.items(), named.items(), fillvalue=None
    ):
        if not ours or not theirs or _shape(ours) != _shape(theirs):
            raise UserError(
                f"{what} cannot be given to model '{model.name}', which is of "
                f"another architecture: it has {_describe(ours)} here. "
                f"Received: {_describe(theirs)}; build the model as the one "
                "was that the weights come from."
            )
    for variable, value in zip(variables.values(), named.values(), strict=True):
        variable.assign(value)


def parameters(model):
    """Tells the parameters among a model's weights.

    A parameter is what could be trained: all but the statistics of
    normalization layers (a moving mean, say) and integers that count. Frozen
    weights are parameters as well.

    Args:
        model: built `keras.Model` of any kind.

    Returns:
        A list of bool, one for each of `model.weights`.
    """
    statistics = set()
    # Only this private method finds the layers that other layers hold.
    for layer in model._flatten_layers():
        for kind, names in _STATISTICS.items():
            if isinstance(layer, kind):
                statistics |= {id(w) for w in layer.weights if w.name in names}
    return [
        id(weight) not in statistics and "float" in weight.dtype
        for weight in model.weights
    ]


def _named_variables(model):
    """Returns a dict from a path, made unique, to the variable."""
    named = {}
    for variable in model.variables:
        name = variable.path
        numbers = itertools.count(2)
        while name in named:
            name = f"{variable.path}#{next(numbers)}"
        named[name] = variable
    return named


def _shape(item):
    return tuple(item[1].shape)


def _describe(item):
    if item is None:
        return "nothing more"
    return f"'{item[0]}' of shape {_shape(item)}"
