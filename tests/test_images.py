"""What `oncequant.data` promises of single images: every kind of file, colour, size and orientation."""

import numpy as np
import pytest
import torch
from pictures import picture, surroundings, write_folder  # noqa: F401 - surroundings is a fixture
from PIL import Image

from oncequant.data import load_data, splits


def one_image(tmp_path, image, name="x.png", size=8, colour=True, **save):
    """Load a folder in which `image` is the whole test split."""
    write_folder(tmp_path / "train", count=3, mode="RGB" if colour else "L", size=(size, size))
    (tmp_path / "test" / "cat").mkdir(parents=True)
    image.save(tmp_path / "test" / "cat" / name, **save)
    data = load_data(str(tmp_path), size=size)
    return data, data.test.images(torch.tensor([0]))[0]


def sixteen_bit():
    return Image.fromarray((np.arange(64, dtype=np.uint16) * 4 * 257).reshape(8, 8))


def test_16_bit_greyscale_is_scaled_not_clipped(tmp_path):
    data, pixels = one_image(tmp_path, sixteen_bit(), colour=False)
    assert data.channels == 1 and pixels.flatten().tolist() == list(range(0, 256, 4))


def test_32_bit_integers_and_floats(tmp_path):
    ramp = np.arange(0, 256, 4, dtype=np.float32).reshape(8, 8)
    for name, image in [("I", sixteen_bit().convert("I")), ("F", Image.fromarray(ramp / 255))]:
        assert image.mode == name
        _, pixels = one_image(tmp_path / name, image, "x.tiff", colour=False)
        assert pixels.flatten().tolist() == list(range(0, 256, 4))


@pytest.mark.parametrize("mode, name", [("LA", "x.png"), ("RGBA", "x.png"), ("P", "x.gif"), ("P", "x.png")])
def test_transparency_becomes_white(tmp_path, mode, name):
    if mode == "P":
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, 40, 50, 60])
        image.paste(0, (0, 0, 4, 8))  # transparent black on the left
        saved = dict(transparency=0)
    else:
        image, saved = Image.new("RGBA", (8, 8), (40, 40, 40, 255)), {}
        image.paste((0, 0, 0, 0), (0, 0, 4, 8))
        image = image.convert(mode)
    data, pixels = one_image(tmp_path, image, name, colour=mode != "LA", **saved)
    assert data.channels == (1 if mode == "LA" else 3)
    colours = {"LA": [40], "RGBA": [40, 40, 40], "P": [40, 50, 60]}[mode]
    assert pixels[:, :, :4].min() == 255 and pixels[:, 5, 5].tolist() == colours


def test_cmyk_becomes_rgb(tmp_path):
    _, pixels = one_image(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "x.jpg", quality=95)
    red, green, blue = pixels.float().mean((1, 2))
    assert red > 240 and green < 15 and blue < 15


def test_one_colour_image_makes_the_set_a_colour_set(tmp_path, monkeypatch):
    monkeypatch.setattr(splits, "HEADER_SAMPLE", 1)  # a resident set looks at every header all the same
    write_folder(tmp_path, count=20, mode="L")
    assert load_data(str(tmp_path), size=12).channels == 1
    picture(0).save(tmp_path / "dog" / "007.png")
    data = load_data(str(tmp_path), size=12)
    assert data.channels == 3
    greys = [x for split in (data.train, data.validation, data.test) for x in split.images(torch.arange(len(split)))]
    assert sum(x[0].equal(x[1]) and x[0].equal(x[2]) for x in greys) == 39


def test_streaming_greyscale_is_decided_by_a_sample_and_the_rest_is_converted(tmp_path, monkeypatch):
    monkeypatch.setattr(splits, "HEADER_SAMPLE", 1)
    train = [(picture(i, mode="RGB" if i == 11 else "L"), i % 2) for i in range(12)]
    data = load_data((train, train, train), size=12, resident_limit_bytes=0)
    assert data.channels == 1 and data.train.images(torch.tensor([11])).shape == (1, 1, 12, 12)
    assert np.array_equal(data.train.images(torch.tensor([11]))[0, 0], picture(11).convert("L"))


@pytest.mark.parametrize("streaming", [False, True])
def test_mixed_sizes_are_scaled_on_the_shorter_side_and_centred(tmp_path, streaming):
    wide = Image.new("RGB", (64, 16), "red")
    wide.paste("blue", (24, 0, 40, 16))  # the square in the centre
    tall = Image.new("RGB", (5, 20), "red")
    tall.paste("blue", (0, 7, 5, 13))  # rows 7 to 12 are kept in full or not at all
    source = [(wide, 0), (tall, 1)] * 4
    data = load_data((source, source, source), size=8, resident_limit_bytes=0 if streaming else 10**9)
    for pixels in data.train.images(torch.arange(2))[:, :, 1:-1, 1:-1]:  # antialiasing mixes the border
        assert pixels[2].min() == 255 and pixels[0].max() == 0


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (32, 16), "red")
    image.paste("blue", (0, 0, 16, 16))  # blue left half; "rotate 90 degrees clockwise to view" puts it on top
    exif = Image.Exif()
    exif[0x0112] = 6
    _, pixels = one_image(tmp_path, image, "x.jpg", size=16, exif=exif, quality=95, subsampling=0)
    assert pixels[2, :7].min() > 200 and pixels[0, 9:].min() > 200


def test_big_jpegs_are_decoded_small_without_losing_detail(tmp_path):
    blocks = picture(3, size=(64, 48), mode="L").resize((640, 480), Image.Resampling.NEAREST).convert("RGB")
    _, pixels = one_image(tmp_path, blocks, "x.jpg", size=64, quality=95)
    whole = Image.open(tmp_path / "test" / "cat" / "x.jpg")
    exact = whole.resize((64, 64), Image.Resampling.BILINEAR, (80, 0, 560, 480))
    difference = pixels.permute(1, 2, 0).float() - torch.from_numpy(np.array(exact)).float()
    assert difference.abs().mean() < 6  # of about 60 from block to block
