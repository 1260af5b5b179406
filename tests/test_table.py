import numpy as np
import pytest

from keras_transfer import data
from keras_transfer.errors import UserError

pil = pytest.importorskip("PIL.Image")
IMAGES = np.random.RandomState(0).randint(0, 256, (8, 6, 6, 3), np.uint8)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images").mkdir()
    for i, image in enumerate(IMAGES):
        pil.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    write(tmp_path, "train", [(3, "b"), (1, "a"), (2, "b"), (0, "a")])
    write(tmp_path, "test", [(5, "b"), (4, "a")])
    return tmp_path


def write(root, name, rows, header="file,label"):
    lines = [header, *(f"images/{i}.png,{label}" for i, label in rows)]
    (root / f"{name}.csv").write_text("\n".join(lines) + "\n")


def load(root, **kwargs):
    return data.load("csv", 6, data_dir=str(root), **kwargs)


def raw(split):
    return split.raw_images(np.arange(len(split)))


def test_images_and_labels_are_those_of_the_tables(root):
    dataset = load(root)
    assert dataset.info.class_names == ("a", "b")
    np.testing.assert_array_equal(raw(dataset.train), IMAGES[[3, 1, 2, 0]])
    np.testing.assert_array_equal(dataset.train.labels, [1, 0, 1, 0])
    np.testing.assert_array_equal(raw(dataset.test), IMAGES[[5, 4]])
    np.testing.assert_array_equal(dataset.test.labels, [1, 0])
    assert data.count(name="csv", data_dir=str(root)) == (2, 4, 2)
    assert data.rebuild("load", dataset.arguments).info == dataset.info


def test_tables_of_other_names_and_for_validation(root):
    write(root, "fold1", [(0, "a"), (1, "b")])
    write(root, "dev", [(2, "a"), (3, "b")])
    dataset = load(root, train_split="fold1", validation_split="dev")
    np.testing.assert_array_equal(raw(dataset.train), IMAGES[:2])
    np.testing.assert_array_equal(raw(dataset.validation), IMAGES[2:4])
    np.testing.assert_array_equal(dataset.validation.labels, [0, 1])
    assert load(root, validation_split=0.5).info.num_validation == 2


def test_absolute_files_further_columns_and_a_byte_order_mark(root, tmp_path):
    path = tmp_path / "images" / "6.png"
    text = f"by,label,file\r\nme,a,{path}\r\n\r\nme,b,images/7.png\r\n"
    (root / "train.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    np.testing.assert_array_equal(raw(load(root).train), IMAGES[6:])


def test_numbers_are_classes_in_their_order(root):
    write(root, "train", [(0, "10"), (1, "9"), (2, "x"), (3, "-1")])
    write(root, "test", [(4, "9")])
    dataset = load(root)
    assert dataset.info.class_names == ("9", "10", "-1", "x")
    np.testing.assert_array_equal(dataset.train.labels, [1, 0, 3, 2])


@pytest.mark.parametrize(
    "table, text, message",
    [
        ("train", None, r"no table .*train.csv. Expected <data_dir>"),
        ("train", "", "lacks columns: file, label"),
        ("train", "path,label\n", "lacks columns: file. Received: path, label"),
        ("train", "file,label,file\n", "two columns of one name"),
        ("train", "file,label\n", "train.csv lists no images"),
        ("train", "file,label\na.png\n", "fewer cells .*line 2"),
        ("train", "file,label\na.png,a,b\n", "more or fewer cells"),
        ("train", "file,label\n,a\n", "file='', label='a' in line 2"),
        ("train", "file,label\na.png, \n", "label='' in line 2"),
        (
            "train",
            "file,label\na.png,a\nimages/1.png,b\n",
            r"a.png \(No such file",
        ),
        ("train", b"\xff\xfe\x00", "not a table of comma"),
        ("test", "file,label\nimages/7.png,c\n", "without training .*: c"),
        ("test", "file,label\nimages/3.png,b\n", "others.*images/3.png in"),
    ],
)
def test_mistakes_are_sentences(root, table, text, message):
    path = root / f"{table}.csv"
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        load(root)


def test_a_place_is_needed():
    with pytest.raises(UserError, match="data_dir=None"):
        data.load("csv", 6)
