import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from keras_transfer.data import random_crop, random_flip, random_resized_crop
from keras_transfer.data.augment import crop_boxes
from keras_transfer.errors import UserError


def _images(n, h, w, c=3):
    return np.random.RandomState(0).randint(0, 256, (n, h, w, c), np.uint8)


def _uniforms(n, k, seed=1):
    return np.random.RandomState(seed).uniform(size=(n, k)).astype(np.float32)


def _natural_images(n, size):
    """Smooth random images: what resizing is made for."""
    waves = np.random.RandomState(2).uniform(0.02, 0.2, (n, 2, 3))
    y, x = np.mgrid[:size, :size]
    phase = waves[:, 0, None, None] * y[..., None]
    phase = phase + waves[:, 1, None, None] * x[..., None]
    return np.round(127.5 + 127 * np.sin(phase)).astype(np.uint8)


@pytest.mark.parametrize("stored, size, padding", [(10, 10, 2), (12, 8, 0)])
def test_random_crop_is_pad_and_slice(stored, size, padding):
    images, uniforms = _images(40, stored, stored), _uniforms(40, 2)
    cropped = random_crop(padding)(images, uniforms, size)
    assert cropped.dtype == tf.uint8
    room = stored + 2 * padding - size + 1
    starts = np.floor(uniforms * room).astype(int)
    # Every offset occurs, the first and the last too.
    assert set(starts.ravel()) == set(range(room))
    for image, (top, left), crop in zip(images, starts, cropped, strict=True):
        edge = (padding, padding)
        padded = np.pad(image, (edge, edge, (0, 0)))
        np.testing.assert_array_equal(
            crop, padded[top : top + size, left : left + size]
        )


def test_rectangles_are_cropped():
    images, uniforms = _images(40, 9, 14), _uniforms(40, 22)
    cropped = random_crop(2)(images, uniforms[:, :2], (9, 14))
    tops, lefts = np.floor(uniforms[:, :2] * [5, 5]).astype(int).T
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    expected = [
        image[top : top + 9, left : left + 14]
        for image, top, left in zip(padded, tops, lefts, strict=True)
    ]
    np.testing.assert_array_equal(cropped, expected)
    resized = random_resized_crop()(images, uniforms, (6, 10))
    boxes = np.stack(crop_boxes(uniforms, 9, 14, (0.08, 1), (3 / 4, 4 / 3)), 1)
    for image, (top, left, h, w), ours in zip(
        images, boxes, resized, strict=True
    ):
        box = image[top : top + h, left : left + w]
        expected = tf.image.resize(box, (6, 10), antialias=True)
        np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_largest_uniform_stays_inside():
    largest = np.full((1, 2), np.nextafter(np.float32(1), np.float32(0)))
    image = _images(1, 9, 9)
    cropped = random_crop(2)(image, largest, 9)
    np.testing.assert_array_equal(cropped[0, :7, :7], image[0, 2:, 2:])


def test_random_flip_mirrors_below_one_half():
    images, uniforms = _images(50, 5, 6), _uniforms(50, 1)
    flipped = random_flip()(images, uniforms, 6)
    expected = [
        image[:, ::-1] if u < 0.5 else image
        for image, (u,) in zip(images, uniforms, strict=True)
    ]
    np.testing.assert_array_equal(flipped, expected)


@pytest.mark.parametrize("size", [16, 64, 120])
def test_random_resized_crop_equals_pillow(size):
    pil = pytest.importorskip("PIL.Image")
    images, uniforms = _natural_images(20, 90), _uniforms(20, 22)
    augmented = random_resized_crop()(images, uniforms, size)
    boxes = crop_boxes(uniforms, 90, 90, (0.08, 1.0), (3 / 4, 4 / 3))
    for i, (top, left, h, w) in enumerate(np.stack(boxes, axis=1)):
        cropped = pil.fromarray(images[i]).crop((left, top, left + w, top + h))
        expected = cropped.resize((size, size), pil.BILINEAR)
        difference = augmented[i] - np.asarray(expected, np.float32)
        # Pillow rounds to whole levels after each of its two passes.
        assert np.abs(difference).max() < 1.1


def _torchvision_box(rng, height, width, scale, ratio):
    """The published algorithm, in its own words: a loop of ten tries."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w = round(math.sqrt(area * aspect))
        h = round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = rng.randint(0, height - h + 1)
            return top, rng.randint(0, width - w + 1), h, w
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        w, h = round(height * ratio[1]), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("height, width", [(200, 200), (90, 300)])
def test_random_resized_crop_boxes_are_distributed_as_torchvision(
    height, width
):
    scale, ratio, n = (0.08, 1.0), (3 / 4, 4 / 3), 4000
    ours = np.stack(
        crop_boxes(_uniforms(n, 22), height, width, scale, ratio), axis=1
    )
    rng = np.random.RandomState(3)
    theirs = np.array(
        [_torchvision_box(rng, height, width, scale, ratio) for _ in range(n)]
    )
    for describe in (
        lambda box: box[:, 2] * box[:, 3],  # area
        lambda box: box[:, 3] / box[:, 2],  # ratio
        lambda box: box[:, 0],
        lambda box: box[:, 1],
    ):
        p = stats.ks_2samp(describe(ours), describe(theirs)).pvalue
        assert p > 1e-3
    top, left, h, w = ours.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()


@pytest.mark.parametrize(
    "height, width, ratio, expected",
    [
        (40, 40, (2, 2), (10, 0, 20, 40)),
        (40, 40, (0.5, 0.5), (0, 10, 40, 20)),
        (10, 40, (1, 1), (0, 15, 10, 10)),
    ],
)
def test_random_resized_crop_falls_back_to_the_centre(
    height, width, ratio, expected
):
    boxes = crop_boxes(_uniforms(3, 22), height, width, (1.0, 1.0), ratio)
    assert [tuple(map(int, b)) for b in np.transpose(boxes)] == [expected] * 3


def test_whole_image_at_its_own_size_is_unchanged():
    images = _images(2, 24, 24)
    crop = random_resized_crop(scale=(1, 1), ratio=(1, 1))
    augmented = crop(images, _uniforms(2, 22), 24)
    np.testing.assert_allclose(augmented, images, atol=1e-4)


def test_one_image_is_augmented_as_in_a_batch():
    images = _natural_images(4, 30)
    for augment in (random_crop(3), random_flip(), random_resized_crop()):
        uniforms = _uniforms(4, augment.num_uniforms)
        batch = augment(images, uniforms, 20)
        for i in range(4):
            one = augment(images[i : i + 1], uniforms[i : i + 1], 20)
            np.testing.assert_allclose(one[0], batch[i], atol=1e-3)


def test_impossible_ranges_are_refused():
    with pytest.raises(UserError, match=r"scale=\(0.5, 0.2\)"):
        random_resized_crop(scale=(0.5, 0.2))
