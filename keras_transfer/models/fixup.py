"""Residual networks without batch normalization (Fixup).

The architecture and initialization of Zhang, Dauphin and Ma, "Fixup
Initialization" (ICLR 2019), as used by Neyshabur et al. (2020). Without batch
statistics, a point between two weight vectors is itself a well-defined network.

Layers are named `<module>.<part>`, e.g. `layer1.0.conv2`: the module is what
comes before the last dot.
"""

import math
import numbers
import zlib

import gin
import keras

from keras_transfer.errors import UserError


@keras.saving.register_keras_serializable(package="keras_transfer")
class ScalarBias(keras.layers.Layer):
    """Adds one learned scalar, initially 0, to every element of its input.

    Its only variable is `bias`, of shape (1,). Source: Fixup, section 3.
    """

    def build(self, input_shape):
        """Creates `bias`."""
        self.bias = self.add_weight(
            shape=(1,), initializer="zeros", name="bias"
        )

    def call(self, inputs):
        """Returns `inputs + bias`, of the shape of `inputs`."""
        return inputs + self.bias

    def compute_output_shape(self, input_shape):
        """Returns `input_shape`."""
        return input_shape


@keras.saving.register_keras_serializable(package="keras_transfer")
class ScalarScale(keras.layers.Layer):
    """Multiplies every element of its input by one learned scalar, initially 1.

    Its only variable is `scale`, of shape (1,). Source: Fixup, section 3.
    """

    def build(self, input_shape):
        """Creates `scale`."""
        self.scale = self.add_weight(
            shape=(1,), initializer="ones", name="scale"
        )

    def call(self, inputs):
        """Returns `inputs * scale`, of the shape of `inputs`."""
        return inputs * self.scale

    def compute_output_shape(self, input_shape):
        """Returns `input_shape`."""
        return input_shape


@gin.configurable
def fixup_resnet18(
    num_classes,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    seed: int = 0,
):
    """Builds ResNet-18 with Fixup initialization.

    Example:
        model = fixup_resnet18(num_classes=345)
        logits = model(tf.zeros((1, 224, 224, 3)))

    Args:
        num_classes: number of logits.
        input_shape: (height, width, channels) of the images; height and width
            at least 32.
        seed: integer; the same seed gives the same initial weights.

    Returns:
        A functional `keras.Model` from images (batch, height, width, channels),
        already normalized, to logits (batch, num_classes), which keep the
        variables' precision (float32) under a mixed-precision policy.

    Raises:
        UserError: if `num_classes` or `input_shape` cannot be used.
    """
    return _imagenet_resnet(18, num_classes, input_shape, seed)


@gin.configurable
def fixup_resnet34(
    num_classes,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    seed: int = 0,
):
    """Builds ResNet-34 with Fixup initialization; see `fixup_resnet18`."""
    return _imagenet_resnet(34, num_classes, input_shape, seed)


@gin.configurable
def fixup_resnet50(
    num_classes,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    seed: int = 0,
):
    """Builds ResNet-50 with Fixup initialization; see `fixup_resnet18`."""
    return _imagenet_resnet(50, num_classes, input_shape, seed)


@gin.configurable
def fixup_resnet101(
    num_classes,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    seed: int = 0,
):
    """Builds ResNet-101 with Fixup initialization; see `fixup_resnet18`."""
    return _imagenet_resnet(101, num_classes, input_shape, seed)


@gin.configurable
def fixup_resnet152(
    num_classes,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    seed: int = 0,
):
    """Builds ResNet-152 with Fixup initialization; see `fixup_resnet18`."""
    return _imagenet_resnet(152, num_classes, input_shape, seed)


@gin.configurable
def fixup_resnet(
    num_classes,
    input_shape,
    widths: tuple[int, ...] = (16, 32, 64),
    blocks_per_stage: int = 1,
    seed: int = 0,
):
    """Builds a small residual network for images of 16 to 64 pixels.

    A 3x3 convolution of stride 1 and no pooling, then stages of basic
    (two-convolution) blocks; every stage but the first halves the image.

    Example:
        model = fixup_resnet(num_classes=10, input_shape=(28, 28, 1))

    Args:
        num_classes: number of logits.
        input_shape: (height, width, channels) of the images; height and width
            at least 2^(stages - 1).
        widths: channels of each stage; the stem has those of the first.
        blocks_per_stage: residual blocks in each stage: one integer for all, or
            one per stage.
        seed: integer; the same seed gives the same initial weights.

    Returns:
        A functional `keras.Model` from images (batch, height, width, channels),
        already normalized, to logits (batch, num_classes), which keep the
        variables' precision (float32) under a mixed-precision policy.

    Raises:
        UserError: if an argument cannot be used.
    """
    if not _all_positive(widths):
        raise UserError(
            "widths must list the channels of each stage as positive integers. "
            f"Received: widths={widths!r}; give e.g. (16, 32, 64)."
        )
    blocks = blocks_per_stage
    if isinstance(blocks, numbers.Integral):
        blocks = [blocks] * len(widths)
    if not _all_positive(blocks) or len(blocks) != len(widths):
        raise UserError(
            "blocks_per_stage must be a positive integer, or one for each of "
            f"the {len(widths)} stages. "
            f"Received: blocks_per_stage={blocks_per_stage!r}."
        )
    _check_images(num_classes, input_shape, smallest=2 ** (len(widths) - 1))
    images = keras.Input(input_shape, name="images")
    x = _conv(images, widths[0], 3, 1, "conv1.conv", _torch_default(seed))
    x = ScalarBias(name="conv1.bias")(x)
    x = keras.layers.ReLU(name="conv1.relu")(x)
    x = _residual_stages(x, widths, blocks, bottleneck=False, seed=seed)
    logits = _head(x, num_classes, seed)
    return keras.Model(images, logits, name="fixup_resnet")


# Residual blocks of each stage, and whether they are bottlenecks, by depth.
_DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


def _imagenet_resnet(depth, num_classes, input_shape, seed):
    _check_images(num_classes, input_shape, smallest=32)
    blocks, bottleneck = _DEPTHS[depth]
    images = keras.Input(input_shape, name="images")
    x = _conv(images, 64, 7, 2, "conv1.conv", _torch_default(seed))
    x = ScalarBias(name="conv1.bias")(x)
    x = keras.layers.ReLU(name="conv1.relu")(x)
    # Torch pads a max-pool with -inf; after a ReLU zero is as neutral.
    x = keras.layers.ZeroPadding2D(1, name="conv1.pool_pad")(x)
    x = keras.layers.MaxPooling2D(3, 2, name="conv1.pool")(x)
    x = _residual_stages(x, (64, 128, 256, 512), blocks, bottleneck, seed)
    logits = _head(x, num_classes, seed)
    return keras.Model(images, logits, name=f"fixup_resnet{depth}")


def _residual_stages(x, widths, blocks, bottleneck, seed):
    for stage, width in enumerate(widths):
        for block in range(blocks[stage]):
            strides = 2 if stage > 0 and block == 0 else 1
            if bottleneck:
                # (filters, kernel size, strides) of each convolution.
                convs = ((width, 1, 1), (width, 3, strides), (4 * width, 1, 1))
            else:
                convs = ((width, 3, strides), (width, 3, 1))
            name = f"layer{stage + 1}.{block}"
            x = _residual_block(x, name, convs, sum(blocks), seed)
    return x


def _residual_block(x, name, convs, num_branches, seed):
    """Applies one residual block (Fixup, section 3 and figure 1).

    Args:
        x: input tensor.
        name: the module's name.
        convs: (filters, kernel size, strides) of each convolution in turn.
        num_branches: L, the residual branches in the whole network.
        seed: the network's seed.

    Returns:
        The block's output tensor.
    """
    width, strides = convs[-1][0], math.prod(conv[2] for conv in convs)
    # He-normal by L^(-1/(2m-2)), m convolutions a branch; the last is zero.
    gain = num_branches ** (-1 / (2 * len(convs) - 2))
    out = biased = ScalarBias(name=f"{name}.bias1a")(x)
    for i, (filters, size, conv_strides) in enumerate(convs, start=1):
        last = i == len(convs)
        if i > 1:
            out = ScalarBias(name=f"{name}.bias{i}a")(out)
        initializer = _zeros if last else _he_normal(seed, gain)
        out = _conv(
            out, filters, size, conv_strides, f"{name}.conv{i}", initializer
        )
        if last:
            out = ScalarScale(name=f"{name}.scale")(out)
        out = ScalarBias(name=f"{name}.bias{i}b")(out)
        if not last:
            out = keras.layers.ReLU(name=f"{name}.relu{i}")(out)
    if strides != 1 or x.shape[-1] != width:
        x = _conv(
            biased, width, 1, strides, f"{name}.shortcut", _he_normal(seed)
        )
    out = keras.layers.Add(name=f"{name}.add")([out, x])
    return keras.layers.ReLU(name=f"{name}.relu")(out)


def _conv(x, filters, size, strides, name, initializer):
    """Convolves without a bias, padding both sides alike (size // 2)."""
    padding = "same"
    if strides > 1:
        # "same" would pad a strided convolution on one side only.
        padding = "valid"
        if size > 1:
            module = name.rpartition(".")[0]
            x = keras.layers.ZeroPadding2D(size // 2, name=f"{module}.pad")(x)
    return keras.layers.Conv2D(
        filters,
        size,
        strides,
        padding,
        use_bias=False,
        kernel_initializer=initializer(name),
        name=name,
    )(x)


def _head(x, num_classes, seed):
    # Logits in the variables' precision keep a mixed-precision loss exact.
    dtype = keras.config.dtype_policy().variable_dtype
    x = keras.layers.GlobalAveragePooling2D(name="fc.pool", dtype=dtype)(x)
    x = ScalarBias(name="fc.bias", dtype=dtype)(x)
    bound = 1 / math.sqrt(x.shape[-1])
    return keras.layers.Dense(
        num_classes,
        kernel_initializer=_torch_default(seed)("fc.dense"),
        bias_initializer=keras.initializers.RandomUniform(
            -bound, bound, seed=_layer_seed(seed, "fc.dense.bias")
        ),
        name="fc.dense",
        dtype=dtype,
    )(x)


# Each of these gives, for a layer's name, the initializer of its kernel.


def _he_normal(seed, gain=1.0):
    """Normal of standard deviation gain * sqrt(2 / fan_out)."""
    return lambda name: keras.initializers.VarianceScaling(
        2 * gain**2,
        "fan_out",
        "untruncated_normal",
        seed=_layer_seed(seed, name),
    )


def _torch_default(seed):
    """Uniform between -1/sqrt(fan_in) and 1/sqrt(fan_in)."""
    return lambda name: keras.initializers.VarianceScaling(
        1 / 3, "fan_in", "uniform", seed=_layer_seed(seed, name)
    )


def _zeros(name):
    del name
    return keras.initializers.Zeros()


def _layer_seed(seed, name):
    # From the name, so that a layer's weights do not depend on build order.
    return zlib.crc32(f"{seed}/{name}".encode())


def _check_images(num_classes, input_shape, smallest):
    if not _all_positive([num_classes]):
        raise UserError(
            "num_classes must be a positive integer. "
            f"Received: num_classes={num_classes!r}."
        )
    if not _all_positive(input_shape) or len(input_shape) != 3:
        raise UserError(
            "input_shape must be (height, width, channels), three positive "
            f"integers. Received: input_shape={input_shape!r}."
        )
    if min(input_shape[:2]) < smallest:
        raise UserError(
            f"Images must be at least {smallest} pixels high and wide for this "
            f"network. Received: input_shape={input_shape!r}; use larger "
            "images or a smaller network (fixup_resnet with fewer widths)."
        )


def _all_positive(values):
    return (
        isinstance(values, (list, tuple))
        and len(values) > 0
        and all(isinstance(v, numbers.Integral) and v > 0 for v in values)
    )
