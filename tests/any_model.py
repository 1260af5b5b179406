"""Families of Keras models, built small and random: what people bring.

Each is a factory of (num_classes, input_shape, seed), as `train.model` is.
Inputs are 32 x 32 x 3 unless the name is in `SIDES`.
"""

import keras

layers = keras.layers
SIDES = {"InceptionV3": 75}


@keras.saving.register_keras_serializable(package="any_model")
class Block(layers.Layer):
    """A residual block written by hand, its layers in a list."""

    def __init__(self, width, depth=2, **kwargs):
        super().__init__(**kwargs)
        self.width, self.depth = width, depth
        self.steps = [layers.Dense(width, "relu") for _ in range(depth)]
        self.heads = {"out": layers.Dense(width)}

    def build(self, shape):
        for step in self.steps:
            step.build(shape)
            shape = (*shape[:-1], self.width)
        self.heads["out"].build(shape)

    def call(self, x):
        y = x
        for step in self.steps:
            y = step(y)
        return x + self.heads["out"](y)

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        own = {"width": self.width, "depth": self.depth}
        return super().get_config() | own


@keras.saving.register_keras_serializable(package="any_model")
class Tower(layers.Layer):
    """A stack of blocks in a list, as transformers hold theirs."""

    def __init__(self, width, depth=3, **kwargs):
        super().__init__(**kwargs)
        self.width, self.depth = width, depth
        self.blocks = [Block(width) for _ in range(depth)]

    def build(self, shape):
        for block in self.blocks:
            block.build(shape)

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return x

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        own = {"width": self.width, "depth": self.depth}
        return super().get_config() | own


def _seeded(build):
    """Makes a factory's networks depend on its seed."""

    def factory(num_classes, input_shape, seed):
        keras.utils.set_random_seed(seed)
        return build(num_classes, input_shape)

    factory.__name__ = build.__name__
    return factory


def _application(name, **arguments):
    def build(num_classes, input_shape):
        return getattr(keras.applications, name)(
            input_shape=input_shape,
            weights=None,
            classes=num_classes,
            **arguments,
        )

    return _seeded(build)


def _convnext(num_classes, input_shape):
    return keras.applications.ConvNeXtTiny(
        input_shape=input_shape,
        weights=None,
        classes=num_classes,
        include_preprocessing=True,
    )


def _hub_classifier(backbone, num_classes):
    import keras_hub

    return keras_hub.models.ImageClassifier(
        backbone=backbone, num_classes=num_classes
    )


def _hub_resnet(num_classes, input_shape):
    import keras_hub

    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 128],
        stackwise_num_blocks=[2, 2],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=input_shape,
    )
    return keras_hub.models.ResNetImageClassifier(
        backbone=backbone, num_classes=num_classes
    )


def _hub_vit(num_classes, input_shape):
    import keras_hub

    backbone = keras_hub.models.ViTBackbone(
        image_shape=input_shape,
        patch_size=8,
        num_layers=3,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
    )
    return keras_hub.models.ViTImageClassifier(
        backbone=backbone, num_classes=num_classes
    )


def _hub_efficientnet(num_classes, input_shape):
    import keras_hub

    backbone = keras_hub.models.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0] * 2,
        stackwise_depth_coefficients=[1.0] * 2,
        stackwise_kernel_sizes=[3, 3],
        stackwise_num_repeats=[1, 2],
        stackwise_input_filters=[8, 8],
        stackwise_output_filters=[8, 16],
        stackwise_expansion_ratios=[1, 4],
        stackwise_squeeze_and_excite_ratios=[0.25, 0.25],
        stackwise_strides=[1, 2],
        stackwise_block_types=["v1"] * 2,
        min_depth=None,
        include_stem_padding=True,
        use_depth_divisor_as_min_depth=True,
        cap_round_filter_decrease=True,
        stem_conv_padding="valid",
        batch_norm_momentum=0.9,
        image_shape=input_shape,
    )
    return keras_hub.models.EfficientNetImageClassifier(
        backbone=backbone, num_classes=num_classes
    )


def _base_as_layer(num_classes, input_shape):
    base = keras.applications.MobileNetV2(
        input_shape=input_shape, weights=None, include_top=False, alpha=0.35
    )
    inputs = keras.Input(input_shape)
    x = layers.Rescaling(2.0, offset=0.5)(inputs)
    x = base(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.2)(x)
    return keras.Model(inputs, layers.Dense(num_classes)(x))


def _sequential(num_classes, input_shape):
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Conv2D(8, 3, strides=2, activation="relu"),
            layers.Conv2D(8, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(num_classes),
        ]
    )


def _functional_vit(num_classes, input_shape):
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(16, 8, strides=8)(inputs)
    x = layers.Reshape((-1, 16))(x)
    for _ in range(3):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(2, 8)(y, y)
        y = layers.LayerNormalization()(x)
        y = layers.Dense(32, activation="gelu")(y)
        x = x + layers.Dense(16)(y)
    x = layers.LayerNormalization()(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(num_classes)(x))


def _blocks_in_lists(num_classes, input_shape):
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(8, 8, strides=8)(inputs)
    x = Tower(8)(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(num_classes)(x))


def _shared_layers(num_classes, input_shape):
    shared = layers.Conv2D(8, 3, padding="same", activation="relu")
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(8, 3, strides=4)(inputs)
    x = shared(shared(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(num_classes)(x))


def _preprocessing_inside(num_classes, input_shape):
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Normalization(
                mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0]
            ),
            layers.RandomFlip("horizontal"),
            layers.RandomRotation(0.1),
            layers.Conv2D(8, 3, strides=4, activation="relu"),
            layers.GlobalMaxPooling2D(),
            layers.Dense(num_classes),
        ]
    )


def _dropout_and_norms(num_classes, input_shape):
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(8, 3, strides=2)(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    y = layers.Conv2D(8, 3, padding="same")(x)
    y = layers.BatchNormalization()(y)
    x = layers.ReLU()(x + y)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.LayerNormalization()(x)
    x = layers.Dropout(0.5)(x)
    return keras.Model(inputs, layers.Dense(num_classes)(x))


def _softmax_ended(num_classes, input_shape):
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Conv2D(8, 3, strides=4, kernel_regularizer="l2"),
            layers.LeakyReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(num_classes, activation="softmax"),
        ]
    )


QUICK = {
    "Sequential": _seeded(_sequential),
    "ending in softmax, regularized": _seeded(_softmax_ended),
    "dropout, batch and layer normalization": _seeded(_dropout_and_norms),
    "blocks in lists and dicts": _seeded(_blocks_in_lists),
    "shared layers": _seeded(_shared_layers),
    "preprocessing layers inside": _seeded(_preprocessing_inside),
}
SLOW = {
    "functional ViT": _seeded(_functional_vit),
    "KerasHub ViT": _seeded(_hub_vit),
    "KerasHub ResNet": _seeded(_hub_resnet),
    "KerasHub EfficientNet": _seeded(_hub_efficientnet),
    "a base model called as a layer": _seeded(_base_as_layer),
    "MobileNetV2": _application("MobileNetV2", alpha=0.35),
    "ResNet50V2": _application("ResNet50V2"),
    "VGG16": _application("VGG16"),
    "EfficientNetB0": _application("EfficientNetB0"),
    "ConvNeXtTiny": _seeded(_convnext),
    "DenseNet121": _application("DenseNet121"),
    "InceptionV3": _application("InceptionV3"),
}
FAMILIES = QUICK | SLOW
