import csv
import io

import pandas
import pytest

from keras_transfer import reading
from keras_transfer.errors import UserError
from keras_transfer.manifest import csv_text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe\0", "not text in UTF-8"),
        (b"[" * 100_000, "damaged"),
        (b'{"a": ' * 5000 + b"1" + b"}" * 5000, "damaged"),
        (b'{"epoch": ' + b"[" * 300 + b"]" * 300 + b"}", "300|200 levels"),
        (b"[]", "does not hold an object"),
        (b"null", "does not hold an object"),
        (b'{"a": 1}', "it lacks epoch"),
        (b'{"epoch": true}', "epoch is not of type int"),
        (b'{"epoch": 1.5}', "epoch is not of type int"),
        (b'{"epoch": "1"}', "epoch is not of type int"),
        (b'{"epoch": ' + b"9" * 5000 + b"}", "damaged"),
    ],
)
def test_json_of_another_form_is_a_sentence(content, said):
    with pytest.raises(UserError, match=f"x.json is damaged.*({said})|{said}"):
        reading.as_object(content, "x.json", epoch=int)


def test_json_comes_back():
    found = reading.as_object(b'{"epoch": 3, "b": [1]}', "x.json", epoch=int)
    assert found == {"epoch": 3, "b": [1]}


@pytest.mark.parametrize("content", [b"", b'a,"b\n1', b"\xff\n1\n"])
def test_a_table_that_is_none_is_a_sentence(content):
    with pytest.raises(UserError, match=r"x\.csv is damaged"):
        reading.as_table(content, "x.csv")


@pytest.mark.parametrize("make", ["absent", "directory", "pipe"])
def test_what_is_no_file_is_a_sentence(tmp_path, make):
    import os

    path = tmp_path / "x"
    if make == "directory":
        path.mkdir()
    if make == "pipe":
        os.mkfifo(path)
    with pytest.raises(UserError, match="x cannot be read"):
        reading.read_bytes(path)


def test_no_cell_of_a_table_is_a_formula():
    table = pandas.DataFrame(
        {"kind": ["=1+1", "+a", "-b", "@c", "P-T"], "loss": [-1.0, 2, 3, 4, 5]}
    )
    rows = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert [row["kind"] for row in rows] == [
        "'=1+1",
        "'+a",
        "'-b",
        "'@c",
        "P-T",
    ]
    # Numbers stay numbers.
    assert rows[0]["loss"] == "-1.0"
    assert list(table.kind)[0] == "=1+1"
