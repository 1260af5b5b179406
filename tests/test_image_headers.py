"""What files say of themselves, and images that are not what they seem."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from absl import logging

from keras_transfer import data
from keras_transfer.data import image_files
from keras_transfer.data.image_headers import read_header
from keras_transfer.errors import UserError

pil = pytest.importorskip("PIL.Image")

MAX_PIXELS = 2**26
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (9, 14, 3), np.uint8)
GRAY = COLOUR[..., 0]


def _encoded(image, kind, **arguments):
    file = io.BytesIO()
    if not hasattr(image, "save"):
        image = pil.fromarray(image)
    image.save(file, kind, **arguments)
    return file.getvalue()


def _exif(orientation):
    exif = pil.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
@pytest.mark.parametrize("image", [COLOUR, GRAY])
def test_sides(kind, image):
    header = read_header(_encoded(image, kind), MAX_PIXELS)
    assert (header.height, header.width, header.problem) == (9, 14, "")
    assert not header.is_turned and not header.is_deep


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(kind, orientation):
    content = _encoded(COLOUR, kind, exif=_exif(orientation))
    header = read_header(content, MAX_PIXELS)
    assert header.is_turned == (orientation > 1)
    assert (header.height, header.width) == (9, 14)


@pytest.mark.parametrize(
    "content",
    [
        _encoded(COLOUR, "JPEG", exif=_exif(3)),
        _encoded(COLOUR, "PNG", exif=_exif(3)),
        _encoded(COLOUR, "GIF"),
        _encoded(COLOUR, "BMP"),
    ],
)
def test_no_content_is_an_error(content):
    for length in range(0, len(content), 7):
        read_header(content[:length], MAX_PIXELS)
    for _ in range(300):
        damaged = bytearray(content)
        for place in RNG.integers(2, min(len(content), 200), 3):
            damaged[place] = RNG.integers(256)
        read_header(bytes(damaged), MAX_PIXELS)


def _gif(*frames, screen=10):
    """Returns a GIF of frames that claim these sides, without pixels."""
    size = struct.pack("<HH", screen, screen)
    blocks = [
        b"," + bytes(4) + struct.pack("<HH", *frame) + b"\0\x02\x01\x44\0"
        for frame in frames
    ]
    return b"GIF89a" + size + b"\x80\0\0" + bytes(6) + b"".join(blocks) + b";"


def test_frames_of_a_gif_are_bounded():
    assert not read_header(_gif((10, 10), (10, 10)), 100).problem
    assert "20000 x 20" in read_header(_gif((20000, 20)), 10**5).problem
    many = [(10, 10)] * 3
    assert "300 pixels in all" in read_header(_gif(*many), 100).problem
    frames = [
        pil.fromarray(RNG.integers(0, 256, (9, 14), np.uint8)) for _ in range(3)
    ]
    real = _encoded(COLOUR, "GIF", save_all=True, append_images=frames)
    assert not read_header(real, 14 * 9 * 4).problem
    assert "504 pixels in all" in read_header(real, 14 * 9).problem


def _decode(content, channels=3):
    return image_files.decode_image(tf.constant(content), channels).numpy()


def test_a_bmp_of_any_usual_kind_has_its_own_colours():
    palette = pil.fromarray(COLOUR).quantize(200)
    few = pil.fromarray(COLOUR).quantize(7)  # A palette that is short.
    for image in (pil.fromarray(COLOUR), palette, few, pil.fromarray(GRAY)):
        expected = np.asarray(image.convert("RGB"))
        content = _encoded(image, "BMP")
        np.testing.assert_array_equal(_decode(content), expected)
        gray = np.asarray(image.convert("L"), int)[..., None]
        assert np.abs(_decode(content, 1) - gray).max() <= 1
    alpha = np.dstack([COLOUR, np.full_like(GRAY, 77)])
    content = _encoded(alpha, "BMP")
    assert not read_header(content, MAX_PIXELS).problem
    np.testing.assert_array_equal(_decode(content), COLOUR)


def test_a_bmp_of_another_kind_is_named():
    content = bytearray(_encoded(GRAY, "BMP"))
    struct.pack_into("<I", content, 30, 1)  # Run lengths.
    assert "compression 1" in read_header(bytes(content), MAX_PIXELS).problem
    few = pil.fromarray(GRAY).convert("1")
    assert "1 bits" in read_header(_encoded(few, "BMP"), MAX_PIXELS).problem


@pytest.fixture
def folder(tmp_path):
    """Returns a function that loads training images of given contents."""

    def load(*contents, kind="png", **arguments):
        image_files._decoded.cache_clear()
        for split, parts in (
            ("train", contents),
            ("test", [_encoded(COLOUR, "PNG")]),
        ):
            place = tmp_path / "images" / split / "a"
            place.mkdir(parents=True, exist_ok=True)
            for i, content in enumerate(parts):
                (place / f"{i}.{kind}").write_bytes(content)
        return data.load(
            "folder",
            8,
            data_dir=str(tmp_path / "images"),
            cache_dir=str(tmp_path / "cache"),
            **arguments,
        )

    return load


@pytest.mark.parametrize("keep", ["decoded", "encoded"])
@pytest.mark.parametrize("bits", [8, 12, 14])
def test_16_bit_images_of_fewer_bits_are_refused(folder, bits, keep):
    deep = RNG.integers(0, 2**bits, (9, 14)).astype(np.uint16)
    deep[0, 0] = 2**bits - 1
    with pytest.raises(
        UserError, match=f"no value above {2**bits - 1}, .*{bits} bits.*0.png"
    ):
        folder(_encoded(deep, "PNG"), keep=keep)
    whole = deep << (16 - bits)
    assert folder(_encoded(whole, "PNG"), keep=keep).info.num_train == 1
    # A dark one among others is a dark one.
    folder(_encoded(deep, "PNG"), _encoded(whole, "PNG"), keep=keep)


def test_turned_images_are_counted_and_used_as_stored(folder, monkeypatch):
    messages = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: messages.append(text % args)
    )
    upright = folder(_encoded(COLOUR, "PNG"))
    assert messages == []
    turned = folder(_encoded(COLOUR, "PNG", exif=_exif(6)))
    np.testing.assert_array_equal(
        turned.train.raw_images([0]), upright.train.raw_images([0])
    )
    assert len(messages) == 1 and "1 of 2 images are marked" in messages[0]


def test_the_bound_on_pixels_is_an_argument(folder):
    content = _encoded(COLOUR, "PNG")
    with pytest.raises(UserError, match=r"max_pixels=100, .*") as error:
        folder(content, max_pixels=100)
    assert "(14 x 9 pixels)" in str(error.value)
    assert folder(content, max_pixels=14 * 9).info.num_train == 1
    with pytest.raises(
        UserError, match="load.max_pixels .*at least 1. Received: 0"
    ):
        folder(content, max_pixels=0)


def test_a_frame_larger_than_its_screen_is_named(folder):
    with pytest.raises(UserError, match="frame of 20000 x 20000"):
        folder(_gif((20000, 20000)), kind="gif")


@pytest.mark.parametrize("keep", ["decoded", "encoded"])
def test_what_cannot_be_read_is_not_remembered_as_damaged(
    folder, monkeypatch, keep
):
    content = _encoded(COLOUR, "PNG")
    monkeypatch.setattr(
        image_files.ImageFiles,
        "read",
        lambda self, row: tf.io.read_file(
            tf.strings.join(["/nowhere/", tf.strings.as_string(row)])
        ),
    )

    def refused(self, row):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(image_files.ImageFiles, "read_now", refused)
    with pytest.raises(
        UserError, match=r"2 of 2 images cannot be read.*\(Permission denied\)"
    ):
        # Whatever is to be done about damaged ones.
        folder(content, keep=keep, on_damaged="skip", memory_budget=0.0)
    monkeypatch.undo()
    dataset = folder(content, keep=keep, on_damaged="skip", memory_budget=0.0)
    assert dataset.info.num_train == 1


@pytest.mark.parametrize(
    "shape", [(1, 1, 5_000_000, 1), (1, 101, 1, 1), (1, 2**13, 2**13 + 1, 1)]
)
def test_the_transform_refuses_what_it_would_blow_up(shape):
    info = data.load("digits").info
    with pytest.raises(tf.errors.InvalidArgumentError, match="at most"):
        data.preprocess(tf.zeros(shape, tf.uint8), info)
    assert data.preprocess(tf.zeros((2, 100, 1, 1), tf.uint8), info).shape == (
        2,
        8,
        8,
        1,
    )
