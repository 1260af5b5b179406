"""Points of parameter space, as combinations of stored weight vectors."""

import dataclasses
import hashlib
import math

import numpy as np
import tensorflow as tf

from keras_transfer.errors import UserError
from keras_transfer.models.weights import parameters


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """Points of parameter space, described compactly.

    Point p has the weights

        sum_k coefficients[p, k] weights[k] + sigma[p] u,   u ~ N(0, I),

    where u is a function of seeds[p]: points of one seed share their noise up
    to its scale (common random numbers). Only trainable weights get noise, not
    frozen ones or batch statistics.

    Attributes:
        coefficients: float [P, K].
        sigma: float [P], standard deviation of the noise on every coordinate;
            None for none.
        seeds: int [P]; None for zeros.
    """

    coefficients: np.ndarray
    sigma: np.ndarray | None = None
    seeds: np.ndarray | None = None

    def __len__(self):
        return len(self.coefficients)

    def expand(self, num_vectors):
        """Returns the arrays with nothing left out.

        Args:
            num_vectors: K.

        Returns:
            list: coefficients float32 [P, K], sigma float32 [P] and seeds
            int32 [P].

        Raises:
            UserError: if there is no point, or a shape does not fit.
        """
        count = len(self)
        sigma = np.zeros(count) if self.sigma is None else self.sigma
        seeds = np.zeros(count) if self.seeds is None else self.seeds
        arrays = [
            np.asarray(self.coefficients, np.float32),
            np.asarray(sigma, np.float32),
            np.asarray(seeds, np.int32),
        ]
        shapes = [(count, num_vectors), (count,), (count,)]
        if not count or [a.shape for a in arrays] != shapes:
            raise UserError(
                "Points need coefficients [P, K], sigma [P] and seeds [P], "
                f"with K = {num_vectors} vectors. Received: coefficients "
                f"{np.shape(self.coefficients)}, sigma {np.shape(sigma)}, "
                f"seeds {np.shape(seeds)}."
            )
        return arrays


def noise_seeds(seed, count):
    """Returns seeds of noise, those of one seed unlike those of any other.

    Args:
        seed: int >= 0.
        count: int.

    Returns:
        int32 [count], as `Points` and `Perturbations` take them; the first of
        them are the same whatever the count is.
    """
    words = np.random.SeedSequence(seed).generate_state(count)
    return (words >> 1).astype(np.int32)


class FlatWeights:
    """The weights of a model, or of a part of it, as one flat vector.

    First come the trainable weights, then frozen ones, then what is no
    parameter: the statistics of normalization layers. Counters and the like
    cannot be combined and are left out.

    Args:
        model: `keras.Model` whose `get_weights` lists all weights.
        variables: list of `keras.Variable`, the part's; None for all.

    Attributes:
        variables: list of `keras.Variable`, in the vector's order.
        positions: list of int, where they stand in `model.weights`.
        num_trained: int, the trainable weights, which alone get noise.
        num_parameters: int, these and the frozen ones.
    """

    def __init__(self, model, variables=None):
        position = {id(v): i for i, v in enumerate(model.weights)}
        is_parameter = parameters(model)

        def rank(variable):
            if variable.trainable:
                return 0
            return 1 if is_parameter[position[id(variable)]] else 2

        chosen = model.weights if variables is None else variables
        self.variables = sorted(
            (v for v in chosen if tf.as_dtype(v.dtype).is_floating), key=rank
        )
        self.positions = [position[id(v)] for v in self.variables]
        self._sizes = [math.prod(v.shape) for v in self.variables]
        ranks = [rank(v) for v in self.variables]
        self.num_trained, self.num_parameters = (
            sum(s for s, r in zip(self._sizes, ranks, strict=True) if r <= most)
            for most in (0, 1)
        )

    @property
    def size(self):
        """D, the length of the vector."""
        return sum(self._sizes)

    @property
    def spec(self):
        """A list of `tf.TensorSpec`, of what `split` returns."""
        return [tf.TensorSpec(v.shape, v.dtype) for v in self.variables]

    def flatten(self, weights):
        """Returns the vector, float32 [D], from what `get_weights` returns."""
        arrays = [np.ravel(weights[i]) for i in self.positions]
        return np.concatenate([*arrays, np.zeros(0)]).astype(np.float32)

    def split(self, flat):
        """Returns a tensor for each of `variables` from the vector [D]."""
        parts = tf.split(flat, self._sizes) if self._sizes else []
        return [
            tf.cast(tf.reshape(part, v.shape), v.dtype)
            for v, part in zip(self.variables, parts, strict=True)
        ]

    def places(self, variables):
        """Returns where some of `variables` lie in the vector, int [n]."""
        ends = np.cumsum([0, *self._sizes])
        at = {id(v): i for i, v in enumerate(self.variables)}
        ranges = [
            np.arange(ends[at[id(v)]], ends[at[id(v)] + 1]) for v in variables
        ]
        return np.concatenate([np.zeros(0, int), *ranges])

    def noise(self, seed, stream):
        """Returns noise float32 [D]: N(0, 1), and 0 for what is not trained.

        Args:
            seed: int32 tensor [].
            stream: int, so that each part of a model has its own noise.
        """
        # Named, as the default differs from device to device.
        noise = tf.random.stateless_normal(
            [self.num_trained], [seed, stream], alg="philox"
        )
        return tf.concat([noise, tf.zeros([self.size - self.num_trained])], 0)


class WeightSpace:
    """Weight vectors kept on the devices, and the points between them.

    Args:
        model: `keras.Model` whose weights are meant.
        weights: K lists of arrays, each as `model.get_weights()` gives them.
        strategy: `tf.distribute.Strategy` on whose devices the vectors lie.

    Raises:
        UserError: if weights do not fit the model, or one is not finite.
    """

    def __init__(self, model, weights, strategy):
        check_weights(model, weights)
        self.num_vectors = len(weights)
        self._flat = FlatWeights(model)
        # Counters are the first vector's.
        self._fixed = {
            i: np.asarray(array)
            for i, array in enumerate(weights[0])
            if i not in set(self._flat.positions)
        }
        flat = np.stack([self._flat.flatten(w) for w in weights])
        with strategy.scope():
            self._stored = tf.Variable(flat, trainable=False)
        self._digest = hashlib.blake2b(digest_size=16)
        for array in (flat, *self._fixed.values()):
            self._digest.update(np.ascontiguousarray(array))

    @property
    def num_trained(self):
        """The number of trainable weights, which alone get noise."""
        return self._flat.num_trained

    def gram(self):
        """Returns inner products of the vectors, the first one subtracted.

        For coefficients c [K] that sum to 0, c' gram c is the squared L2 norm
        of the sum of c_k times vector k.

        Returns:
            float64 [K, K], over parameters, frozen ones included.
        """
        vectors = self._stored.numpy()[:, : self._flat.num_parameters]
        vectors = (vectors - vectors[:1]).astype(np.float64)
        return vectors @ vectors.T

    def combine(self, coefficients, sigma, seed):
        """Makes the weights of one point, in a `tf.function` or without.

        Args:
            coefficients: float32 tensor [K].
            sigma: float32 tensor [].
            seed: int32 tensor [].

        Returns:
            list of tensors, in the order of `model.weights`.
        """
        # Products, not a matrix product: these are exact where coefficients
        # are 0 and 1, whatever precision a device gives to the latter.
        rows = [
            coefficients[k] * self._stored[k] for k in range(self.num_vectors)
        ]
        flat = tf.add_n(rows)
        flat = tf.cond(
            sigma > 0,
            lambda: flat + sigma * self._flat.noise(seed, 0),
            lambda: flat,
        )
        values = {i: tf.constant(array) for i, array in self._fixed.items()}
        values |= zip(self._flat.positions, self._flat.split(flat), strict=True)
        return [values[i] for i in range(len(values))]

    def names(self, points, salt=""):
        """Returns what identifies each point, stored vectors included.

        Args:
            points: as `Points.expand` returns them.
            salt: str, distinguishes what else the caller's numbers depend on.

        Returns:
            list of P str.
        """
        start = self._digest.copy()
        start.update(salt.encode())
        names = []
        for coefficients, sigma, seed in zip(*points, strict=True):
            digest = start.copy()
            # Without noise its seed does not matter.
            for array in (coefficients, sigma, seed * (sigma > 0)):
                digest.update(np.ascontiguousarray(array))
            names.append(digest.hexdigest())
        return names


def check_weights(model, weights):
    """Raises a `UserError` unless weight vectors fit a model and are finite.

    Args:
        model: `keras.Model`.
        weights: K lists of arrays, each as `model.get_weights()` gives them.
    """
    shapes = [tuple(v.shape) for v in model.weights]
    if not len(weights):
        raise UserError("At least one weight vector is needed. Received: none.")
    for k, vector in enumerate(weights):
        received = [np.shape(array) for array in vector]
        if received != shapes:
            raise UserError(
                f"Weight vector {k} does not fit model '{model.name}': the "
                "shapes of its arrays are not those of model.get_weights(). "
                f"Received: {len(received)} arrays, expected {len(shapes)}; "
                "analyze models of one architecture and one number of classes."
            )
        if not all(np.all(np.isfinite(array)) for array in vector):
            raise UserError(
                f"Weight vector {k} of model '{model.name}' holds values that "
                "are not finite; leave out the run that diverged."
            )
