"""Points of parameter space, as combinations of stored weight vectors."""

import dataclasses
import hashlib
import math

import numpy as np
import tensorflow as tf

from keras_transfer.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """Points of parameter space, described compactly.

    In module m, point p has the weights

        sum_k coefficients[p, m, k] weights[k] + sigma[p, m] u,   u ~ N(0, I),

    where u is a function of seeds[p] and m: points of one seed share their
    noise up to its scale (common random numbers). Only trainable weights get
    noise, not batch statistics.

    Attributes:
        coefficients: float [P, K], the same in all modules, or [P, M, K].
        sigma: float [P] or [P, M], standard deviation of the noise on every
            coordinate; None for none.
        seeds: int [P]; None for zeros.
    """

    coefficients: np.ndarray
    sigma: np.ndarray | None = None
    seeds: np.ndarray | None = None

    def __len__(self):
        return len(self.coefficients)

    def expand(self, num_modules, num_vectors):
        """Returns the arrays with nothing left out.

        Args:
            num_modules: M.
            num_vectors: K.

        Returns:
            list: coefficients float32 [P, M, K], sigma float32 [P, M] and seeds
            int32 [P].

        Raises:
            UserError: if there is no point, or a shape does not fit.
        """
        count = len(self)
        sigma = np.zeros(count) if self.sigma is None else self.sigma
        seeds = np.zeros(count) if self.seeds is None else self.seeds
        coefficients = np.asarray(self.coefficients, np.float32)
        sigma = np.asarray(sigma, np.float32)
        if coefficients.ndim == 2:
            coefficients = np.repeat(coefficients[:, None], num_modules, axis=1)
        if sigma.ndim == 1:
            sigma = np.repeat(sigma[:, None], num_modules, axis=1)
        arrays = [coefficients, sigma, np.asarray(seeds, np.int32)]
        shapes = [(count, num_modules, num_vectors), (count, num_modules)]
        if not count or [a.shape for a in arrays] != [*shapes, (count,)]:
            raise UserError(
                "Points need coefficients [P, K] or [P, M, K], sigma [P] or "
                f"[P, M], and seeds [P], with K = {num_vectors} vectors and "
                f"M = {num_modules} modules. Received: coefficients "
                f"{np.shape(self.coefficients)}, sigma {np.shape(sigma)}, "
                f"seeds {np.shape(seeds)}."
            )
        return arrays


class FlatModule:
    """One module's weights as one flat vector, the trained ones first.

    Counters and the like cannot be combined and are left out.

    Args:
        model: `keras.Model` whose `get_weights` lists all weights.
        variables: list of `keras.Variable`, the module's.

    Attributes:
        variables: list of `keras.Variable`, in the vector's order.
        positions: list of int, where they stand in `model.weights`.
        num_trained: int, the trainable weights, which alone get noise.
    """

    def __init__(self, model, variables):
        position = {id(v): i for i, v in enumerate(model.weights)}
        self.variables = sorted(
            (v for v in variables if tf.as_dtype(v.dtype).is_floating),
            key=lambda v: not v.trainable,
        )
        self.positions = [position[id(v)] for v in self.variables]
        self._sizes = [math.prod(v.shape) for v in self.variables]
        self.num_trained = sum(
            size
            for v, size in zip(self.variables, self._sizes, strict=True)
            if v.trainable
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
        parts = tf.split(flat, self._sizes)
        return [
            tf.cast(tf.reshape(part, v.shape), v.dtype)
            for v, part in zip(self.variables, parts, strict=True)
        ]

    def noise(self, seed, module):
        """Returns noise float32 [D]: N(0, 1), and 0 for what is not trained.

        Args:
            seed: int32 tensor [].
            module: int, the module's number, so that each has its own.
        """
        # Named, as the default differs from device to device.
        noise = tf.random.stateless_normal(
            [self.num_trained], [seed, module], alg="philox"
        )
        return tf.concat([noise, tf.zeros([self.size - self.num_trained])], 0)


class WeightSpace:
    """Weight vectors kept on the devices, and the points between them.

    Args:
        model: `keras.Model` whose weights are meant.
        weights: K lists of arrays, each as `model.get_weights()` gives them.
        modules: M lists of variables that together hold all of `model.weights`
            once; None for one module.
        strategy: `tf.distribute.Strategy` on whose devices the vectors lie.

    Raises:
        UserError: if weights or modules do not fit the model, or a weight is
            not finite.
    """

    def __init__(self, model, weights, modules, strategy):
        check_weights(model, weights)
        _check_modules(model, modules)
        self.num_vectors = len(weights)
        self._modules = [
            FlatModule(model, module) for module in modules or [model.weights]
        ]
        # Counters are the first vector's.
        combined = {i for m in self._modules for i in m.positions}
        self._fixed = {
            i: np.asarray(array)
            for i, array in enumerate(weights[0])
            if i not in combined
        }
        # One flat matrix a module: few operations make a point's weights.
        flat = [
            np.stack([module.flatten(w) for w in weights])
            for module in self._modules
        ]
        with strategy.scope():
            self._stored = [tf.Variable(f, trainable=False) for f in flat]
        self._digest = hashlib.blake2b(digest_size=16)
        for array in (*flat, *self._fixed.values()):
            self._digest.update(np.ascontiguousarray(array))

    @property
    def num_modules(self):
        """M, the modules that points treat differently."""
        return len(self._modules)

    @property
    def num_parameters(self):
        """The number of trainable weights."""
        return sum(module.num_trained for module in self._modules)

    def gram(self):
        """Returns inner products of the vectors, the first one subtracted.

        For coefficients c [K] that sum to 0, c' gram c is the squared L2 norm
        of the sum of c_k times vector k.

        Returns:
            float64 [K, K], over trainable weights.
        """
        gram = np.zeros((self.num_vectors, self.num_vectors))
        for module, stored in zip(self._modules, self._stored, strict=True):
            vectors = stored.numpy()[:, : module.num_trained]
            vectors = (vectors - vectors[:1]).astype(np.float64)
            gram += vectors @ vectors.T
        return gram

    def combine(self, coefficients, sigma, seed):
        """Makes the weights of one point, in a `tf.function` or without.

        Args:
            coefficients: float32 tensor [M, K].
            sigma: float32 tensor [M].
            seed: int32 tensor [].

        Returns:
            list of tensors, in the order of `model.weights`.
        """
        values = {i: tf.constant(array) for i, array in self._fixed.items()}
        for m, module in enumerate(self._modules):
            # Products, not a matrix product: these are exact where coefficients
            # are 0 and 1, whatever precision a device gives to the latter.
            rows = [
                coefficients[m, k] * self._stored[m][k]
                for k in range(self.num_vectors)
            ]
            flat = self._add_noise(tf.add_n(rows), m, sigma[m], seed)
            values |= zip(module.positions, module.split(flat), strict=True)
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
            for array in (coefficients, sigma, seed * np.any(sigma)):
                digest.update(np.ascontiguousarray(array))
            names.append(digest.hexdigest())
        return names

    def _add_noise(self, flat, m, sigma, seed):
        return tf.cond(
            sigma > 0,
            lambda: flat + sigma * self._modules[m].noise(seed, m),
            lambda: flat,
        )


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


def _check_modules(model, modules):
    if modules is None:
        return
    received = sorted(id(v) for module in modules for v in module)
    if received != sorted(id(v) for v in model.weights):
        raise UserError(
            f"Modules must hold each weight of model '{model.name}' once. "
            f"Received: {len(modules)} modules with {len(received)} variables "
            f"for {len(model.weights)} weights; take them from "
            "models.module_chain."
        )
