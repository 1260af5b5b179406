import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from absl import logging

from keras_transfer import data
from keras_transfer.data import image_files
from keras_transfer.data.preprocessing import Fit
from keras_transfer.errors import UserError

pil = pytest.importorskip("PIL.Image")


def _image(h=20, w=20, c=3, seed=0):
    """A smooth picture, so that JPEG keeps it nearly."""
    phase = np.random.RandomState(seed).uniform(0, 6, (1, 1, c))
    y, x = np.mgrid[:h, :w][..., None] / 8
    waves = np.sin(y + phase) + np.cos(x * (1 + seed % 3) + 2 * phase)
    return np.round(127.5 + 60 * waves).astype(np.uint8)


def _save(path, array, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    pil.fromarray(np.squeeze(array)).save(path, **kwargs)


@pytest.fixture(autouse=True)
def _empty_cache():
    image_files._decoded.cache_clear()


@pytest.fixture
def root(tmp_path):
    """Two classes, six training and two test images each."""
    for split, count in (("train", 6), ("test", 2)):
        for label, name in enumerate(["cat", "dog"]):
            for i in range(count):
                image = _image(seed=100 * label + 10 * count + i)
                _save(tmp_path / split / name / f"{i}.png", image)
    return tmp_path


def _raw(split):
    return split.raw_images(np.arange(len(split)))


def _count_decodes(monkeypatch):
    calls = []
    fill = image_files._fill

    def counting(array, images, fit):
        calls.append(len(images))
        return fill(array, images, fit)

    monkeypatch.setattr(image_files, "_fill", counting)
    return calls


def test_folder_gives_every_image_with_its_class(root):
    (root / "train" / "cat" / ".hidden.png").write_bytes(b"nothing")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "cat" / "deeper").mkdir()
    dataset = data.load("folder", image_size=20, data_dir=str(root))
    info = dataset.info
    assert info.class_names == ("cat", "dog")
    assert info.image_shape == (20, 20, 3)
    assert (info.num_train, info.num_test) == (12, 4)
    for split in ("train", "test"):
        loaded = getattr(dataset, split)
        files = sorted(p for p in (root / split).rglob("[0-9].png"))
        expected = [np.asarray(pil.open(path)) for path in files]
        np.testing.assert_array_equal(_raw(loaded), expected)
        names = [info.class_names[label] for label in loaded.labels]
        assert names == [path.parent.name for path in files]


@pytest.mark.parametrize("keep", ["decoded", "encoded"])
def test_a_folder_of_validation_images(root, keep):
    for i, name in enumerate(["dog", "cat", "dog"]):
        _save(root / "val" / name / f"{i}.png", _image(seed=900 + i))
    dataset = data.load(
        "folder", 20, data_dir=str(root), validation_split="val", keep=keep
    )
    assert (dataset.info.num_train, dataset.info.num_validation) == (12, 3)
    expected = [
        np.asarray(pil.open(path)) for path in sorted(root.glob("val/*/*.png"))
    ]
    np.testing.assert_array_equal(_raw(dataset.validation), expected)
    assert list(dataset.validation.labels) == [0, 1, 1]
    share = data.load(
        "folder", 20, data_dir=str(root), validation_split=0.25, keep=keep
    )
    assert (share.info.num_train, share.info.num_validation) == (9, 3)
    train, validation = (
        {image.tobytes() for image in _raw(split)}
        for split in (share.train, share.validation)
    )
    assert len(train | validation) == 12
    np.testing.assert_array_equal(_raw(share.test), _raw(dataset.test))
    with pytest.raises(UserError, match="no folder 'valid'"):
        data.load("folder", 20, data_dir=str(root), validation_split="valid")
    _save(root / "val" / "cow" / "0.png", _image())
    with pytest.raises(UserError, match="without training images.* cow"):
        data.load("folder", 20, data_dir=str(root), validation_split="val")


@pytest.mark.parametrize("keep", ["decoded", "encoded"])
def test_files_are_seen_as_rectangles(root, keep):
    _save(root / "train" / "cat" / "0.png", _image(40, 30))
    dataset = data.load("folder", (10, 16), data_dir=str(root), keep=keep)
    rgb = pil.open(root / "train" / "cat" / "0.png")
    # 16 of 30 columns; of 21 rows the middle ten.
    expected = np.asarray(rgb.resize((16, 21), pil.BILINEAR), int)[6:16]
    assert np.abs(dataset.train.raw_images([0])[0] - expected).max() <= 1
    for augmentation in ([], [data.random_flip()], [data.random_crop(1)]):
        images, _ = next(iter(dataset.train_batches(4, 0, augmentation)))
        assert images.shape == (4, 10, 16, 3)


def test_relative_data_dir_is_kept_absolute(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    dataset = data.load("folder", 8, data_dir=root.name)
    assert dataset.arguments["data_dir"] == str(root)
    monkeypatch.chdir("/")
    again = data.load(**dataset.arguments)
    np.testing.assert_array_equal(_raw(again.train), _raw(dataset.train))


def _decode(path, size, channels=3):
    image = image_files.decode_image(tf.io.read_file(str(path)))
    return Fit("crop", size, size, channels)(image).numpy()


def test_png_of_every_kind(tmp_path):
    colour, gray = _image(16, 16, 3), _image(16, 16, 1)
    alpha = np.full((16, 16, 1), 128, np.uint8)
    repeated = np.repeat(gray, 3, axis=-1)
    path = tmp_path / "image.png"
    for array, expected in (
        (colour, colour),
        (gray, repeated),
        (np.concatenate([colour, alpha], -1), colour),
        (np.concatenate([gray, alpha], -1), repeated),
    ):
        _save(path, array)
        np.testing.assert_array_equal(_decode(path, 16), expected)
    # 16 bits a pixel: the high byte.
    deep = gray.astype(np.uint16) * 256 + 77
    pil.fromarray(deep[..., 0]).save(path)
    assert pil.open(path).mode.startswith("I;16")
    np.testing.assert_array_equal(_decode(path, 16), repeated)
    _save(path, gray)
    np.testing.assert_array_equal(_decode(path, 16, channels=1), gray)
    palette = pil.fromarray(colour).quantize(8)
    palette.save(path)
    np.testing.assert_array_equal(
        _decode(path, 16), np.asarray(palette.convert("RGB"))
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(40, 40), (37, 90), (80, 33)])
@pytest.mark.parametrize("size", [16, 32, 48])
def test_jpeg_is_resized_and_cropped_as_by_pillow(
    tmp_path, channels, shape, size
):
    path = tmp_path / "image.jpg"
    _save(path, _image(*shape, channels), quality=95, subsampling=0)
    decoded = tf.io.decode_jpeg(tf.io.read_file(str(path)), 3).numpy()
    # The two decoders use other roundings of the cosine transform.
    difference = decoded - np.asarray(pil.open(path).convert("RGB"), int)
    assert np.abs(difference).mean() < 1.5
    short = min(shape)
    h, w = (int(size * side / short) for side in shape)
    image = pil.fromarray(decoded).resize((w, h), pil.BILINEAR)
    top, left = round((h - size) / 2), round((w - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    expected = np.asarray(image.convert("RGB" if channels == 3 else "L"), int)
    received = _decode(path, size, channels)
    difference = received - expected.reshape(received.shape)
    assert np.abs(difference).max() <= 1


def test_bmp_and_gif(tmp_path):
    image = pil.fromarray(_image(16, 16, 3))
    image.save(tmp_path / "image.bmp")
    np.testing.assert_array_equal(_decode(tmp_path / "image.bmp", 16), image)
    frames = [pil.fromarray(_image(16, 16, 1, s)[..., 0]) for s in (1, 2)]
    path = tmp_path / "image.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert pil.open(path).n_frames == 2
    np.testing.assert_array_equal(
        _decode(path, 16), pil.open(path).convert("RGB")
    )


def _damage(root):
    """Damages four files; returns their paths."""
    dog, cat = root / "train" / "dog", root / "test" / "cat"
    (dog / "0.png").write_bytes((dog / "0.png").read_bytes()[:-200])
    _save(dog / "cut.jpg", _image())
    (dog / "cut.jpg").write_bytes((dog / "cut.jpg").read_bytes()[:-150])
    (dog / "notes.txt").write_text("not an image")
    (cat / "1.png").write_bytes(b"")
    return [dog / "0.png", dog / "cut.jpg", dog / "notes.txt", cat / "1.png"]


def test_damaged_files_are_named(root):
    damaged = _damage(root)
    with pytest.raises(UserError, match="4 of 18 files.*'skip'") as error:
        data.load("folder", 8, data_dir=str(root))
    for path in damaged:
        assert str(path) in str(error.value)


def test_many_damaged_files_are_counted(root):
    for i in range(9):
        (root / "test" / "cat" / f"x{i}.jpg").write_bytes(b"junk")
    with pytest.raises(UserError, match="9 of 25 .*x4.jpg and 4 more"):
        data.load("folder", 8, data_dir=str(root))


@pytest.mark.parametrize("memory_budget", [4.0, 0.0])
def test_damaged_files_are_skipped_and_counted(
    root, tmp_path_factory, monkeypatch, memory_budget
):
    damaged = _damage(root)
    messages = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: messages.append(text % args)
    )
    for _ in range(2):  # The second time a cache file is read.
        dataset = data.load(
            "folder",
            20,
            data_dir=str(root),
            on_damaged="skip",
            memory_budget=memory_budget,
            cache_dir=str(tmp_path_factory.getbasetemp() / "cache"),
        )
        image_files._decoded.cache_clear()
        assert (dataset.info.num_train, dataset.info.num_test) == (11, 3)
        for split in ("train", "test"):
            files = [
                path
                for path in sorted((root / split).glob("*/*"))
                if path not in damaged
            ]
            loaded = getattr(dataset, split)
            np.testing.assert_array_equal(
                _raw(loaded), [np.asarray(pil.open(p)) for p in files]
            )
            assert [dataset.info.class_names[i] for i in loaded.labels] == [
                path.parent.name for path in files
            ]
    assert len(messages) == 2
    assert all("Skipped 4 of 18 files" in text for text in messages)


def test_a_class_without_any_whole_image(root):
    for path in (root / "train" / "dog").iterdir():
        path.write_bytes(b"junk")
    with pytest.raises(UserError, match="could be decoded in dog"):
        data.load("folder", 8, data_dir=str(root), on_damaged="skip")


def test_layout_mistakes_are_named(root):
    def load(data_dir=root, **kwargs):
        return data.load("folder", 8, data_dir=str(data_dir), **kwargs)

    with pytest.raises(UserError, match="no image folder .*nowhere"):
        load(root / "nowhere")
    with pytest.raises(UserError, match="on_damaged='ignore'"):
        load(on_damaged="ignore")
    with pytest.raises(UserError, match="image_size=None"):
        data.load("folder", data_dir=str(root))
    _save(root / "test" / "cow" / "0.png", _image())
    with pytest.raises(UserError, match="without training images.* cow"):
        load()
    (root / "train" / "cow").mkdir()
    with pytest.raises(UserError, match="train/cow has no image files"):
        load()
    shutil.rmtree(root / "test")
    with pytest.raises(UserError, match="no folder 'test'"):
        load()
    (root / "test").mkdir()
    with pytest.raises(UserError, match="no classes in .*test"):
        load()


def test_names_that_are_not_utf8_are_written_out(root):
    for split in ("train", "test"):
        folder = os.fsencode(root / split)
        os.rename(folder + b"/dog", folder + b"/d\xf6g $x$")
    dataset = data.load("folder", 8, data_dir=str(root))
    assert dataset.info.class_names == ("cat", "d\\xf6g $x$")
    assert dataset.info.num_train == 12
    os.rename(folder, os.fsencode(root) + b"/\xf6")
    with pytest.raises(UserError, match="not UTF-8"):
        data.load(
            "folder", 8, data_dir=os.fsdecode(os.fsencode(root) + b"/\xf6")
        )


def test_files_are_decoded_once_in_a_process(root, monkeypatch):
    calls = _count_decodes(monkeypatch)
    first = data.load("folder", 8, data_dir=str(root))
    # Another draw, crop and normalization of the same stored images.
    again = data.load(
        "folder", 6, resize=8, data_dir=str(root), num_train=4, mean=0.1
    )
    assert calls == [16]
    assert again.train.images is first.train.images
    path = root / "train" / "cat" / "0.png"
    _save(path, 255 - np.asarray(pil.open(path)))
    os.utime(path, ns=(1, 1))
    changed = data.load("folder", 8, data_dir=str(root))
    assert calls == [16, 16]
    assert (_raw(changed.train)[0] != _raw(first.train)[0]).any()


@pytest.fixture
def cached(root, tmp_path_factory):
    """Loads `root` through a cache file; returns load and the file's path."""
    cache = tmp_path_factory.mktemp("cache")

    def load():
        image_files._decoded.cache_clear()
        return data.load(
            "folder",
            8,
            data_dir=str(root),
            memory_budget=0.0,
            cache_dir=str(cache),
        )

    load()
    (entry,) = (path for path in cache.iterdir() if path.is_dir())
    return load, entry


def test_large_data_are_cached_on_disk(root, cached, monkeypatch):
    load, entry = cached
    calls = _count_decodes(monkeypatch)
    dataset = load()
    assert calls == []
    assert isinstance(dataset.train.images.array, np.memmap)
    memory = data.load("folder", 8, data_dir=str(root))
    for split in ("train", "test"):
        np.testing.assert_array_equal(
            _raw(getattr(dataset, split)), _raw(getattr(memory, split))
        )
    for a, b in zip(
        dataset.train_batches(4, 0).take(5),
        memory.train_batches(4, 0).take(5),
        strict=True,
    ):
        np.testing.assert_array_equal(a[0], b[0])


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: os.truncate(entry / "images.npy", 500),
        lambda entry: (entry / "images.npy").write_bytes(b""),
        lambda entry: np.save(
            entry / "images.npy", np.zeros((16, 8, 8, 1), np.uint8)
        ),
        lambda entry: np.save(entry / "valid.npy", np.ones(3, bool)),
        lambda entry: (entry / "valid.npy").unlink(),
        lambda entry: (entry / "valid.npy").write_bytes(b"\x93NUMPY junk"),
    ],
)
def test_damaged_cache_files_are_made_again(cached, monkeypatch, damage):
    load, entry = cached
    expected = _raw(load().train)
    damage(entry)
    calls = _count_decodes(monkeypatch)
    np.testing.assert_array_equal(_raw(load().train), expected)
    assert calls == [16]
    load()
    assert calls == [16]


def test_interrupted_caching_starts_again(root, tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    kwargs = {
        "data_dir": str(root),
        "memory_budget": 0.0,
        "cache_dir": str(cache),
    }

    def interrupted(array, images, fit):
        array[:3] = 1
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(image_files, "_fill", interrupted)
        with pytest.raises(KeyboardInterrupt):
            data.load("folder", 8, **kwargs)
    assert not [p for p in cache.iterdir() if p.is_dir()]
    dataset = data.load("folder", 8, **kwargs)
    memory = data.load("folder", 8, data_dir=str(root))
    np.testing.assert_array_equal(_raw(dataset.train), _raw(memory.train))
    assert [p.suffix for p in cache.iterdir() if p.is_dir()] == [""]


def test_a_cache_that_cannot_be_written_is_named(root, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="memory_budget=0.0.*cache_dir"):
        data.load(
            "folder",
            8,
            data_dir=str(root),
            memory_budget=0.0,
            cache_dir=str(tmp_path / "file"),
        )
