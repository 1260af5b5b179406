import numpy as np
import pytest
import tensorflow as tf

from keras_transfer.data import block_shuffle, channel_shuffle, pixel_shuffle
from keras_transfer.errors import UserError


def _image(h, w, c, dtype=np.float32):
    return np.random.RandomState(0).randint(0, 256, (h, w, c)).astype(dtype)


def _blocks_by_definition(image, b, seed):
    n = image.shape[1] // b
    number = n * (image.shape[0] // b)
    permutation = np.random.RandomState(seed).permutation(number)
    output = np.empty_like(image)
    for i, source in enumerate(permutation):
        y, x = divmod(i, n)
        sy, sx = divmod(source, n)
        output[y * b : (y + 1) * b, x * b : (x + 1) * b] = image[
            sy * b : (sy + 1) * b, sx * b : (sx + 1) * b
        ]
    return output


@pytest.mark.parametrize("block_size", [1, 2, 4, 7, 8, 14, 16, 28, 32, 56, 112])
def test_block_shuffle_follows_the_definition(block_size):
    image = _image(224, 224, 3, np.uint8)
    for seed in (1234, 1235, 1236):
        shuffled = block_shuffle(224, block_size, seed)(image[None])
        np.testing.assert_array_equal(
            shuffled[0], _blocks_by_definition(image, block_size, seed)
        )


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
@pytest.mark.parametrize("block_size", [1, 2, 4])
def test_blocks_of_rectangular_images(shape, block_size):
    image = _image(*shape, 3, np.uint8)
    shuffled = block_shuffle(shape, block_size, 7)(image[None])
    expected = _blocks_by_definition(image, block_size, 7)
    np.testing.assert_array_equal(shuffled[0], expected)
    with pytest.raises(UserError, match=r"=3; use one of 1, 2, 4\."):
        block_shuffle(shape, 3, 7)


def test_one_block_is_the_image():
    image = _image(224, 224, 3)
    np.testing.assert_array_equal(block_shuffle(224, 224, 5)(image), image)


def test_pixel_shuffle_permutes_the_channel_first_image():
    image = _image(12, 8, 3)
    for seed in (1234, 1235, 1236):
        permutation = np.random.RandomState(seed).permutation(3 * 12 * 8)
        flat = image.transpose(2, 0, 1).reshape(-1)
        expected = flat[permutation].reshape(3, 12, 8).transpose(1, 2, 0)
        shuffled = pixel_shuffle((12, 8, 3), seed)(image)
        np.testing.assert_array_equal(shuffled, expected)


def test_pixel_shuffle_equals_torch():
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    images = np.stack([_image(8, 8, 3), _image(8, 8, 3) + 1])
    permutation = np.random.RandomState(1234).permutation(3 * 8 * 8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    x = x.reshape(2, -1)[:, torch.from_numpy(permutation)].view(2, 3, 8, 8)
    shuffled = pixel_shuffle((8, 8, 3), 1234)(images)
    np.testing.assert_array_equal(shuffled, x.permute(0, 2, 3, 1).numpy())


def test_channel_shuffle_moves_whole_channels():
    image = _image(5, 4, 3)
    permutation = np.random.RandomState(1236).permutation(3)
    assert list(permutation) != [0, 1, 2]
    shuffled = channel_shuffle((5, 4, 3), 1236)(image)
    np.testing.assert_array_equal(shuffled, image[:, :, permutation])


@pytest.mark.parametrize(
    "shuffle",
    [
        block_shuffle(8, 2, 0),
        pixel_shuffle((8, 8, 3), 0),
        channel_shuffle((8, 8, 3), 2),
    ],
)
def test_image_and_batch_agree_within_tf_data(shuffle):
    images = np.stack([_image(8, 8, 3), _image(8, 8, 3)[::-1]])
    dataset = tf.data.Dataset.from_tensor_slices(images)
    one_by_one = dataset.map(shuffle)
    assert one_by_one.element_spec.shape == (8, 8, 3)
    batch = dataset.batch(2).map(shuffle)
    assert batch.element_spec.shape == (None, 8, 8, 3)
    np.testing.assert_array_equal(
        list(one_by_one.as_numpy_iterator()),
        next(batch.as_numpy_iterator()),
    )
    np.testing.assert_array_equal(
        np.sort(shuffle(images).numpy().reshape(2, -1)),
        np.sort(images.reshape(2, -1)),
    )


def test_block_size_must_divide():
    with pytest.raises(UserError, match=r"=5; use one of 1, 2, 3, 4, 6, 12\."):
        block_shuffle(12, 5, 0)
    with pytest.raises(UserError, match="block_size=0"):
        block_shuffle(12, 0, 0)


@pytest.mark.parametrize(
    "shuffle", [block_shuffle(8, 2, 0), pixel_shuffle((8, 8, 3), 0)]
)
def test_wrong_image_shape_is_named(shuffle):
    with pytest.raises(UserError, match=r"shape \(1, 9, 8, 3\)"):
        shuffle(np.zeros((1, 9, 8, 3)))
