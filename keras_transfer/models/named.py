"""Networks of other libraries, by name: factories for `train.model`."""

import inspect

import gin
import keras

from keras_transfer.errors import UserError

_MORE = "See https://keras.io/api/applications or keras.io/keras_hub/api."


@gin.configurable
def keras_application(
    num_classes,
    input_shape,
    seed: int = 0,
    name: str = gin.REQUIRED,
    include_top: bool = True,
    arguments: dict | None = None,
):
    """Builds one of keras.applications' networks, with fresh weights.

    What it computes of an image is what Keras' own factory says: some begin
    with preprocessing layers (EfficientNet, ConvNeXt), and published weights
    expect images as their `preprocess_input` gives them.

    Example:
        model = keras_application(10, (96, 96, 3), name="MobileNetV2")

    Args:
        num_classes: number of logits.
        input_shape: (height, width, channels) of the images.
        seed: integer; the same seed gives the same initial weights.
        name: the factory's name, such as "ResNet50".
        include_top: bool, whether the network ends as the factory ends it (VGG
            in two large layers); if not, in global average pooling and one
            layer, "predictions", for any size of images.
        arguments: dict of further arguments of the factory, such as
            {"alpha": 0.35}; None for none.

    Returns:
        A functional `keras.Model` that gives [num_classes] logits.

    Raises:
        UserError: if there is no such network, or it cannot be built so.
    """
    factory = _member(keras.applications, name, "keras_application.name")
    if not inspect.isfunction(factory):
        raise UserError(
            "keras_application.name must be that of a network. Received: "
            f"{name!r}. {_MORE}"
        )
    given = {"weights": None, "input_shape": tuple(input_shape)}
    given |= {"include_top": include_top, **(arguments or {})}
    if include_top:
        given |= {"classes": num_classes, "classifier_activation": None}

    def build():
        model = factory(**given)
        if include_top:
            return model
        x = model.output
        if len(x.shape) == 4:
            x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = keras.layers.Dense(num_classes, name="predictions")(x)
        return keras.Model(model.inputs[0], x, name=model.name)

    return _built(build, seed, f"keras_application of {name!r}")


@gin.configurable
def keras_hub_classifier(
    num_classes,
    input_shape,
    seed: int = 0,
    backbone: str | None = None,
    arguments: dict | None = None,
    preset: str | None = None,
):
    """Builds an image classifier of KerasHub's, with fresh weights.

    Example:
        model = keras_hub_classifier(10, (64, 64, 3), backbone="ViTBackbone",
                                     arguments={"patch_size": 8, ...})

    Args:
        num_classes: number of logits.
        input_shape: (height, width, channels) of the images.
        seed: integer; the same seed gives the same initial weights.
        backbone: name of the backbone's class, such as "ResNetBackbone".
        arguments: dict of the backbone's arguments, the shape of images aside;
            None for none.
        preset: path of a preset's directory, whose architecture is taken in
            place of `backbone` (its weights are not: name it in
            `train.pretrained`).

    Returns:
        A functional `keras.Model` that gives [num_classes] logits.

    Raises:
        UserError: if KerasHub is not installed, there is no such backbone, or
            it cannot be built so.
    """
    try:
        import keras_hub
    except ImportError as error:
        raise UserError(
            "keras_hub_classifier needs KerasHub, which is not installed: pip "
            "install keras-hub."
        ) from error
    if (backbone is None) == (preset is None):
        raise UserError(
            "keras_hub_classifier takes the name of a backbone or the "
            f"directory of a preset. Received: backbone={backbone!r}, "
            f"preset={preset!r}"
        )
    given = {"image_shape": tuple(input_shape), **(arguments or {})}
    if backbone is not None:
        make = _member(
            keras_hub.models, backbone, "keras_hub_classifier.backbone"
        )
    else:
        given |= {"load_weights": False}

        def make(**given):
            return keras_hub.models.Backbone.from_preset(preset, **given)

    def build():
        network = make(**given)
        # Pooling and head differ from one backbone to another.
        classifier = next(
            (
                kind
                for kind in vars(keras_hub.models).values()
                if inspect.isclass(kind)
                and issubclass(kind, keras_hub.models.ImageClassifier)
                and kind.backbone_cls is type(network)
            ),
            keras_hub.models.ImageClassifier,
        )
        return classifier(
            backbone=network, num_classes=num_classes, preprocessor=None
        )

    return _built(
        build, seed, f"keras_hub_classifier of {backbone or preset!r}"
    )


def _member(package, name, parameter):
    found = getattr(package, name, None)
    if not callable(found):
        raise UserError(
            f"{parameter} names nothing in {package.__name__}. Received: "
            f"{name!r}. {_MORE}"
        )
    return found


def _built(build, seed, what):
    keras.utils.set_random_seed(seed)
    try:
        return build()
    except UserError:
        raise
    except Exception as error:  # Whatever a library's constructor raises.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{what} cannot be built with these arguments. Keras said: "
            f"{reason[:300]}"
        ) from error
