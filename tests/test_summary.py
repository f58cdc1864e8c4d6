"""What every command says of the images: counts, classes, sizes, colours, and what may not be meant so."""

import numpy as np
import pytest
from pictures import picture, surroundings, write_folder  # noqa: F401 - surroundings is a fixture
from PIL import Image

from oncequant.data import DataError, load_data, summary


def told(source, size=12, **kwargs):
    data = load_data(source if isinstance(source, tuple) else str(source), size=size, **kwargs)
    lines = summary(data.pictures, data.size, data.channels)
    return lines[:3], lines[3:]


def test_splits_classes_sizes_and_colours(tmp_path):
    write_folder(tmp_path / "train", count=20, size=(20, 16))
    write_folder(tmp_path / "test", count=3, mode="L")
    lines, notes = told(tmp_path, validation_fraction=0.2)
    assert lines == [
        "images: 32 train, 8 validation, 6 test",
        "2 classes, with their training images: cat 16, dog 16",
        "pictures: 12 to 20 px wide and 12 to 16 px high, shorter side 16 px in the median; 40 RGB, 6 L; used as "
        "12 x 12 px in colour",
    ]
    assert not notes


def test_long_lists_of_classes_are_shortened():
    rows = [(np.full((8, 8), i, np.uint8), i % 37) for i in range(255) for _ in range(1 + (i % 37 == 5))]
    lines, _ = told((rows, rows[:40], rows[:40]), size=8)
    assert lines[1].startswith("37 classes, with their training images: 0 7, 1 7, 2 7, 3 7, 4 7, 5 14, 6 7")
    assert lines[1].endswith("9 7 and 27 more; smallest 33 6, largest 5 14")
    assert lines[2] == "pictures: 8 x 8 px; 342 L; used as 8 x 8 px in grey"


def test_the_same_picture_in_two_splits_or_classes(tmp_path):
    train = write_folder(tmp_path / "train", count=12)
    for number, split in enumerate(("val", "test"), start=1):
        for i, file in enumerate(sorted(write_folder(tmp_path / split, count=4).rglob("*.png"))):
            picture(5000 * number + i).save(file)
    assert not told(tmp_path)[1]
    (train / "dog" / "copy.png").write_bytes((train / "dog" / "005.png").read_bytes())
    assert told(tmp_path)[1] == ["note: 1 picture is a copy of another one of the same split and class"]
    (train / "dog" / "copy.png").write_bytes((train / "cat" / "003.png").read_bytes())
    assert told(tmp_path)[1] == [
        "note: 1 picture is in another class too (train/cat/003.png = train/dog/copy.png): one of the labels is wrong"
    ]
    (train / "dog" / "copy.png").unlink()
    for i in range(4):
        name = f"{i:03}.png"
        (tmp_path / "test" / "cat" / name).write_bytes((train / "cat" / name).read_bytes())
    pairs = ", ".join(f"train/cat/00{i}.png = test/cat/00{i}.png" for i in range(3))
    assert told(tmp_path)[1] == [
        f"note: 4 pictures are in another split too ({pairs}, ...): figures of validation and test are too good; "
        "remove the copies"
    ]


def test_copies_that_held_out_splits_tear_apart_are_told(tmp_path):
    rows = [(np.full((8, 8), i % 30, np.uint8), i % 2) for i in range(60)]
    assert "pictures are in another split too" in str(told((rows, None, None), size=8)[1])


def test_few_or_unbalanced_pictures(tmp_path):
    rows = [(np.full((8, 8), i, np.uint8), int(i >= 240)) for i in range(255)]
    _, notes = told((rows, rows, rows), size=8)
    assert "class 0 has 240 training images, 1 has 15" in notes[-1]
    _, notes = told((rows[230:], rows[:1], rows[1:2]), size=8)
    assert notes == []
    _, notes = told((rows[235:248], rows[:1], rows[1:2]), size=8)
    assert notes == ["note: fewer than 10 training images in 2 of the classes (0 5, 1 8)"]


@pytest.mark.parametrize("high, words", [
    (4095, "12 bits: divided by 257, 16 levels remain; multiply them by 16"),
    (1023, "10 bits: divided by 257, 4 levels remain; multiply them by 64"), (16383, "14 bits"), (60000, ""),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["png", "tiff", "python"])
def test_16_bit_pictures_that_use_fewer_bits(tmp_path, high, words, kind):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, high, (12, 12), dtype=np.uint16) for _ in range(40)]
    for image in images:
        image[0, 0] = high
    if kind == "python":
        source = ([(image, i % 2) for i, image in enumerate(images)], None, None)
    else:
        for i, image in enumerate(images):
            (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / "ab"[i % 2] / f"{i}.{kind}")
        source = tmp_path
    _, notes = told(source)
    assert (len(notes) == 1 and words in notes[0] and f"to {high} only" in notes[0]) if words else not notes


def test_16_bit_colour_pictures_that_use_fewer_bits(tmp_path):
    import struct
    import zlib

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rng = np.random.default_rng(0)
    for i in range(40):
        pixels = rng.integers(0, 4096, (8, 8, 3)).astype(">u2")
        content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
        header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
        file = tmp_path / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        parts = chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
        file.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    _, notes = told(tmp_path, size=8)
    assert len(notes) == 1 and "12 bits" in notes[0]


@pytest.mark.parametrize("factor, words", [(255, "divide them by 255"), (4000, "scale them"), (-1, "scale them")])
def test_float_files_outside_0_to_1_say_file_range_and_what_is_accepted(tmp_path, factor, words):
    for i in range(12):
        file = tmp_path / "ab"[i % 2] / f"{i}.tiff"
        file.parent.mkdir(exist_ok=True)
        pixels = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
        Image.fromarray(pixels * (factor if i == 7 else 1)).save(file)
    with pytest.raises(DataError, match=rf"7\.tiff: its float values go from .* to .*from 0 to 1: {words}"):
        told(tmp_path, size=8)


def test_colour_that_is_lost_is_told(tmp_path, monkeypatch):
    from oncequant.data import splits

    monkeypatch.setattr(splits, "HEADER_SAMPLE", 1)
    write_folder(tmp_path, count=20, mode="L")
    picture(5).save(tmp_path / "dog" / "007.png")
    _, notes = told(tmp_path, resident_limit_bytes=0)
    assert notes == ["note: 1 pictures in colour (dog/007.png) are used in grey, as nearly all others are"]
