"""trainer.data.labels on real files."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data.dataset import DataError
from trainer.data.labels import Label, read_labels
from trainer.storage import NotFound
from trainer.storage.folder import FolderStore

CSV = "\ufeffkey,source,label,split\n\nAu/1.jpg,web, authentic ,train\n" + '"Tp/a,b.jpg",web,fake,\nTp/3.jpg,web,fake,Val\n'


def read(tmp_path, content: bytes | str):
    (tmp_path / "labels.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    return read_labels(FolderStore(tmp_path), "labels.csv")


def parquet(**columns) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def test_a_csv_file_labels_keys(tmp_path):
    """A file as a spreadsheet saves it (byte order mark, quotes, further columns, empty lines) would give wrong labels."""
    labels = read(tmp_path, CSV)
    assert labels.of == {
        "Au/1.jpg": Label("authentic", "", "training"),
        "Tp/a,b.jpg": Label("fake", "", ""),
        "Tp/3.jpg": Label("fake", "", "validation"),
    }
    assert not labels.grouped


def test_a_parquet_file_labels_keys(tmp_path):
    """A data set with numbers as labels or groups, or with empty cells, could not be trained on."""
    labels = read(tmp_path, parquet(key=["1.jpg", "2.jpg"], label=[0, 1], group=[7, None], more=[b"x", b"y"]))
    assert labels.of == {"1.jpg": Label("0", "7", ""), "2.jpg": Label("1", "", "")}
    assert labels.grouped


def test_a_repeated_row_counts_once(tmp_path):
    """Two concatenated exports would be refused although they agree."""
    assert read(tmp_path, CSV + "Au/1.jpg,other,authentic,training\n").of == read(tmp_path, CSV).of


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            CSV + "Au/1.jpg,web,fake,train\n",
            "the key 'Au/1.jpg' twice, with label = 'authentic' and 'fake' (row 4). Fix: delete the",
        ),
        (CSV + "Au/1.jpg,web,authentic,test\n", "twice, with split = 'training' and 'test' (row 4)"),
        (CSV + ",web,fake,\n", "has no key in row 4. Fix: fill it in"),
        (CSV + "Au/9.jpg,web, ,\n", "has no label in row 4"),
        (CSV + "Au/9.jpg,web,fake,dev\n", "has split = 'dev' in row 4. Fix: use training, validation, test or leave it empty"),
        (CSV + "Au/9.jpg,fake\n", "is neither CSV in UTF-8 nor Parquet (row 4 has 2 cells, the header 4)"),
        ("file,class\nAu/1.jpg,a\n", "has no column 'key' and no column 'label' (found: 'file', 'class'). Fix: add it"),
        ("", "has no column 'key' and no column 'label' (found: none)"),
        ("key,label\n", "has no rows"),
        (b"\xff\xd8\xff\xe0 a photograph", "is neither CSV in UTF-8 nor Parquet ("),
        (b"PK\x03\x04\x00\x00 a spreadsheet", "is neither CSV in UTF-8 nor Parquet (it contains zero bytes)"),
        (b"PAR1 cut off", "is not a valid Parquet file ("),
        (parquet(key=["1.jpg"], name=["a"]), "has no column 'label' (found: 'key', 'name')"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, content, words):
    """A mistake in the file would end in a traceback, or train on wrong labels."""
    with pytest.raises(DataError) as error:
        read(tmp_path, content)
    message = str(error.value)
    assert message.startswith(f"data.labels = {tmp_path}/labels.csv ")
    assert words in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(("sound", "damaged"), [(b"authentic", b"auth\xeentic"), (b"\x15\x04\x15", b"\x0f\x0f\x0f")])
def test_a_damaged_parquet_file_is_refused_in_one_plain_line(tmp_path, sound, damaged):
    """Texts that are no UTF-8 would end in a traceback, and Arrow's messages may hold escape sequences."""
    content = parquet(key=["1.jpg", "2.jpg"], label=["authentic", "fake"])
    assert sound in content
    with pytest.raises(DataError, match=r"is not a valid Parquet file") as error:
        read(tmp_path, content.replace(sound, damaged))
    assert str(error.value).isprintable()


@pytest.mark.parametrize("wrong", [None, b"", b"<html>Access is blocked by policy</html>", b"key,label\n\0"])
def test_one_wrong_answer_costs_nothing(tmp_path, wrong):
    """A 404 or the error page of a proxy would end the job, and on Kubernetes for good."""

    class Once(FolderStore):
        reads = 0

        def get(self, key):
            self.reads += 1
            if self.reads > 1:
                return super().get(key)
            if wrong is None:
                raise NotFound("no such object")
            return wrong

    (tmp_path / "labels.csv").write_text(CSV)
    assert read_labels(Once(tmp_path), "labels.csv").of == read(tmp_path, CSV).of


def test_a_missing_file(tmp_path):
    """A wrong path would end in a traceback."""
    with pytest.raises(DataError, match=r"data\.labels = .*/none\.csv does not exist\. Fix: correct the path\."):
        read_labels(FolderStore(tmp_path), "none.csv")
