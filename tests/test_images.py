"""Images as people have them: depth, sign, bands, pages, EXIF, from the file to the mask."""

import re
import struct
import sys
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps

import fcn
from fcn import checkpoint
from fcn.data import images
from fcn.data.dataset import Pair, SegmentationDataset, read_labels, read_mask
from fcn.data.files import is_image, unread_note
from fcn.data.images import as_tensor, image_size, range_note, read_image, to_uint8
from fcn.data.pixels import Pixels, upright, upright_pixels
from fcn.dataset_info import MEAN_COLOUR, DatasetInfo
from fcn.errors import DataError
from tests.conftest import TinyVOC, random_model

CLASSES = ["background", "cat", "dog", "horse", "cow"]
BANDS = np.arange(6 * 5 * 7).reshape(5, 7, 6)  # H, W, bands, as rasters have them


def save(path: Path, array: object, dtype: type = np.uint8) -> Path:
    Image.fromarray(np.array(array, dtype)).save(path)
    return path


def raster(path: Path, array: np.ndarray, **settings: Any) -> Path:
    settings = {"photometric": "minisblack", "planarconfig": "contig"} | settings
    tifffile.imwrite(path, array, **settings)
    return path


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("RGB", (6, 4), "white").convert("CMYK").save(path := tmp_path / "image.jpg")
    assert torch.equal(read_image(path), torch.full((3, 4, 6), 255, dtype=torch.uint8))


def test_images_of_any_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for suffix in ("png", "tif"):
        path = save(tmp_path / f"large.{suffix}", np.arange(300).reshape(15, 20) % 251)
        assert image_size(path) == (20, 15)
        assert read_image(path)[0, 14, 19] == 299 % 251
        assert read_mask(path, 251, 255)[14, 19] == 299 % 251
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read_image, [path] * 16))
        assert Image.MAX_IMAGE_PIXELS == 100


def test_threads_decode_large_images_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, both = save(tmp_path / "large.png", np.zeros((15, 20))), threading.Barrier(2)

    def decode(_: object) -> Pixels:
        both.wait(10)  # until the other thread decodes too
        return Pixels(np.zeros((1, 1, 1), np.uint8), ["grey"])

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(images, "upright_pixels", decode)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(read_image, [path] * 2))


def test_a_range_maps_its_ends_to_black_and_white() -> None:
    values = np.array([-1100, -1000, -998, -996, 0, 1000, 4000], np.int16)
    assert to_uint8(values, [-1000, 1000]).tolist() == [0, 0, 0, 1, 128, 255, 255]
    assert to_uint8(np.array([0.1, 0.5, 1]), [0, 1]).tolist() == [26, 128, 255]
    assert to_uint8(np.array([1, 70_000], np.uint32), [0, 2**32 - 1]).tolist() == [0, 0]
    assert to_uint8(np.array([2**32 - 1], np.uint32), [0, 2**32 - 1]).tolist() == [255]


@pytest.mark.parametrize("low", [-1350, -1, 0, 10])
@pytest.mark.parametrize("high", [100, 255, 256, 4095])
def test_a_range_that_8_bits_cannot_hold_is_not_for_8_bits(low: int, high: int) -> None:
    """They are finished pictures, beside CT in Hounsfield units or images of 12 bits."""
    grey = np.arange(256).astype(np.uint8)
    window = ((grey - float(low)) * 255 / (high - low)).clip(0, 255)
    expected = window if low >= 0 and high <= 255 else grey
    assert np.abs(to_uint8(grey, [low, high]) - expected.astype(float)).max() <= 0.501
    assert np.abs(to_uint8(grey.astype(np.int16), [low, high]) - window).max() <= 0.501


LAYOUTS = {
    "contig": lambda path, array: raster(path, array),
    "separate": lambda path, array: raster(
        path, array.transpose(2, 0, 1), planarconfig="separate", metadata=None
    ),
    "pages": lambda path, array: raster(path, array.transpose(2, 0, 1), planarconfig=None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float64])
def test_bands_of_any_tiff_are_chosen_by_number(tmp_path: Path, layout: str, dtype: type) -> None:
    array = (BANDS % 100).astype(dtype)
    path = LAYOUTS[layout](tmp_path / "six.tif", array)
    image = read_image(path, DatasetInfo(bands=[3, 0, 5, 5], value_range=[0, 255]))
    assert np.array_equal(image.permute(1, 2, 0), array[..., [3, 0, 5, 5]])
    assert image_size(path) == (7, 5)


def names_tag(*names: str) -> tuple[Any, ...]:
    """Return the tag with which GDAL names bands."""
    items = "".join(
        f'<Item name="DESCRIPTION" sample="{n}" role="description">{name}</Item>'
        for n, name in enumerate(names)
    )
    return 42112, "s", None, f"<GDALMetadata>{items}</GDALMetadata>", True


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_names_of_bands_count_more_than_what_a_tiff_calls_rgb_and_alpha(
    tmp_path: Path, dtype: type
) -> None:
    """GDAL calls three or four bands RGB and alpha whatever they are."""
    array, names = (BANDS % 100).astype(dtype), ["nir", "red", "green"]
    form: dict[str, Any] = {"photometric": "rgb", "extratags": [names_tag(*names)]}
    three = raster(tmp_path / "three.tif", array[..., :3], **form)
    chosen = DatasetInfo(bands=["red", "green", "nir"], value_range=[0, 255])
    assert np.array_equal(read_image(three, chosen).permute(1, 2, 0), array[..., [1, 2, 0]])
    own = names_tag("red", "green", "blue", "nir")
    for meaning in ("unassalpha", "unspecified"):
        form = {"photometric": "rgb", "extrasamples": [meaning], "extratags": [own]}
        four = raster(tmp_path / "four.tif", array[..., :4], **form)
        with pytest.raises(DataError, match=r"of 4 bands \(red, green, blue, nir\); 3 are needed"):
            read_image(four)
    for plain in (names_tag("Red", "Green", "Blue"), names_tag("Band 1", "Band 2", "Band 3")):
        image = raster(tmp_path / "rgb.tif", array[..., :3], photometric="rgb", extratags=[plain])
        assert read_image(image).shape == (3, 5, 7)
    own = names_tag("landcover")
    palette = raster(
        tmp_path / "map.tif", array[..., 0].astype(np.uint8), photometric="palette",
        colormap=np.zeros((3, 256), np.uint16), extratags=[own],
    )  # fmt: skip
    assert np.array_equal(read_labels(palette), array[..., 0])


def test_bands_are_chosen_by_name(tmp_path: Path) -> None:
    tag = names_tag("coastal", "blue", "green", "red", "nir", "swir")
    path = raster(tmp_path / "gdal.tif", BANDS.astype(np.uint8), extratags=[tag])
    image = read_image(path, DatasetInfo(bands=["red", "nir", 0]))
    assert np.array_equal(image.permute(1, 2, 0), BANDS[..., [3, 4, 0]])
    with pytest.raises(DataError, match=r"gdal\.tif: .*no band swir2; .*6 bands \(coastal, blue"):
        read_image(path, DatasetInfo(bands=["swir2"]))
    rgba = save(tmp_path / "rgba.png", BANDS[..., :4])
    image = read_image(rgba, DatasetInfo(bands=["alpha", "red"]))
    assert np.array_equal(image.permute(1, 2, 0), BANDS[..., [3, 0]])
    pages = LAYOUTS["pages"](tmp_path / "pages.tif", BANDS.astype(np.uint8))
    with pytest.raises(DataError, match=r"TIFF of 6 bands \(page 0, page 1, .*; 3 are needed"):
        read_image(pages)
    image = read_image(pages, DatasetInfo(bands=["page 4", 0]))
    assert np.array_equal(image.permute(1, 2, 0), BANDS[..., [4, 0]])


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_the_transparency_of_a_deep_tiff_counts_unless_bands_are_given(
    tmp_path: Path, kind: str
) -> None:
    deep = np.full((1, 3, 4), 20_000, np.uint16)
    deep[..., 3] = 0, 30_000, 65535
    path = raster(tmp_path / "a.tif", deep, photometric="rgb", extrasamples=[kind])
    rgb = DatasetInfo(bands=["red", "green", "blue"])
    assert (read_image(path, rgb) == round(20_000 / 257)).all()
    weight = np.array([0, 30_000, 65535]) / 65535
    seen = 78 * (weight if kind == "unassalpha" else 1)
    expected = (seen + (1 - weight) * np.array(MEAN_COLOUR)[:, None]).round()
    assert np.array_equal(read_image(path)[:, 0], expected)


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_an_alpha_channel_that_hides_the_picture_is_an_error(
    tmp_path: Path, dtype: type, channels: int
) -> None:
    """It holds labels, or counts to 255 in 16 bits; a picture may be transparent altogether."""
    white, path = np.iinfo(dtype).max, tmp_path / "a.tif"
    info = DatasetInfo(value_range=[0, int(white)])
    for largest in (0, 1, white // 2, white // 2 + 1, white):
        array = np.full((5, 7, channels), white, dtype)
        array[..., -1] = 0
        array[0, 0, -1] = largest
        form = {"photometric": "rgb"} if channels == 4 else {}
        raster(path, array, extrasamples=["unassalpha"], **form)
        if not 0 < largest < white / 2:
            assert (read_image(path, info)[0, 0, 0] == 255) == (largest == white)
            continue
        with pytest.raises(DataError, match=rf"alpha of {largest} at most.*data.bands=\[") as error:
            read_image(path, info)
        advice = re.search(r"data\.bands=\[(.*)\]", str(error.value))
        assert advice
        assert (read_image(path, replace(info, bands=advice[1].split(","))) == 255).all()


@pytest.mark.parametrize("overview", [False, True])
@pytest.mark.parametrize("photometric", ["minisblack", 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pages_that_mask_an_image_are_not_bands_of_it(
    tmp_path: Path, dtype: type, photometric: str | int, overview: bool
) -> None:
    """GDAL writes them with photometric 4, which Pillow does not know."""
    array, mask = np.random.default_rng(0).integers(0, 256, (64, 48, 3)), np.ones((64, 48), bool)
    array, labels = array.astype(dtype), (array[..., 0] % 5).astype(np.uint8)
    for name, pixels in (("image", array), ("labels", labels)):
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as file:
            form = {"photometric": "rgb" if pixels.ndim == 3 else "minisblack"}
            file.write(pixels, **form)
            if overview:
                file.write(pixels[::2, ::2], subfiletype=1, **form)
            file.write(mask, photometric=photometric, subfiletype=4)
    info, path = DatasetInfo(value_range=[0, 255]), tmp_path / "image.tif"
    assert np.array_equal(read_image(path, info).permute(1, 2, 0), array)
    assert (image_size(path), images.orientation(path)) == ((48, 64), 1)
    assert np.array_equal(read_labels(tmp_path / "labels.tif"), labels)
    if not overview and photometric == 4:
        with Image.open(path) as opened:
            again = as_tensor(upright_pixels(opened), info)
        assert np.array_equal(again.permute(1, 2, 0), array)


STORED = {  # ways to store red, green and blue
    "8 bits": {},
    "16 bits": {"dtype": np.uint16},
    "overviews": {"overview": True},
    "JPEG": {"compression": "jpeg"},  # as YCbCr
    "JPEG with overviews": {"compression": "jpeg", "overview": True},
    "GDAL's names": {"names": ["Red", "GREEN", "blue"]},
    "GDAL's names, 16 bits": {"names": ["Red", "GREEN", "blue"], "dtype": np.uint16},
    "no names": {"names": ["Band 1", "Band 2", "Band 3"]},
    "no names, 16 bits": {"names": ["Band 1", "Band 2", "Band 3"], "dtype": np.uint16},
}


@pytest.mark.parametrize("way", STORED)
def test_a_band_has_one_name_however_it_is_stored(tmp_path: Path, way: str) -> None:
    settings: dict[str, Any] = {"dtype": np.uint8, "photometric": "rgb"} | STORED[way]
    array = np.full((64, 48, 3), (200, 100, 50), settings.pop("dtype"))
    tags = [names_tag(*names)] if (names := settings.pop("names", None)) else []
    overview = settings.pop("overview", False)
    with tifffile.TiffWriter(path := tmp_path / "a.tif") as file:
        file.write(array, extratags=tags, **settings)
        if overview:
            file.write(array[::2, ::2], subfiletype=1, **settings)
    for bands in (["blue", "red"], ["Blue", "RED"], [2, 0]):
        image = read_image(path, DatasetInfo(bands=bands, value_range=[0, 255]))
        assert (image[:, 0, 0].int() - torch.tensor([50, 200])).abs().max() <= 2


def test_grey_has_one_name_however_it_is_stored(tmp_path: Path) -> None:
    for dtype in (np.uint8, np.uint16, np.int16, np.float32):
        for array in (BANDS[..., 0], BANDS[..., :2]):
            extra = {"extrasamples": ["unassalpha"]} if array.ndim == 3 else {"planarconfig": None}
            path = raster(tmp_path / "a.tif", array.astype(dtype), **extra)
            image = read_image(path, DatasetInfo(bands=["grey"], value_range=[0, 255]))
            assert np.array_equal(image[0], BANDS[..., 0])
    path = raster(
        tmp_path / "a.tif", BANDS.astype(np.uint8), extratags=[names_tag("Band 1", "NIR")]
    )
    image = read_image(path, DatasetInfo(bands=["band 1", "nir"]))
    assert np.array_equal(image.permute(1, 2, 0), BANDS[..., :2])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            BANDS.astype(np.uint8),
            r"TIFF of 6 bands \(0, 1, 2, 3, 4, 5\); 3 are needed.*data\.bands",
        ),
        (BANDS[..., :2].astype(np.uint16), r"TIFF of 2 bands"),
        (-BANDS[..., 0].astype(np.int16), r"negative values, -204\.\.0\); set data\.value_range"),
        (BANDS[..., 0].astype(np.float32), r"float32 pixels \(0\.\.204\); set data\.value_range"),
        (BANDS[..., 0].astype(np.uint32), r"uint32 pixels"),
        (np.full((5, 7), np.nan, np.float32), r"NaN"),
    ],
)
def test_what_does_not_make_rgb_is_said(tmp_path: Path, array: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=rf"odd\.tif: .*{message}"):
        read_image(raster(tmp_path / "odd.tif", array))


def test_only_special_tiffs_need_tifffile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = save(tmp_path / "plain.tif", BANDS[..., :3])
    special = raster(tmp_path / "special.tif", BANDS.astype(np.uint8))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert np.array_equal(read_image(plain).permute(1, 2, 0), BANDS[..., :3])
    with pytest.raises(DataError, match=r'special\.tif: .*pip install "fcn-segmentation\[tiff\]"'):
        read_image(special)


def test_12_bits_in_16_are_noted_until_their_range_is_set(tmp_path: Path) -> None:
    dark = [save(tmp_path / f"{n}.png", [[640, 3000 + n]], np.uint16) for n in range(25)]
    note = range_note(dark, DatasetInfo())
    assert "640..3024 of 0..65535" in note
    assert "data.value_range=[0,4095]" in note
    assert not range_note(dark, DatasetInfo(value_range=[0, 4095]))
    bright = save(tmp_path / "w.png", [[40_000]], np.uint16)
    assert not range_note([dark[0], bright], DatasetInfo())
    assert not range_note([save(tmp_path / "8.png", [[9]])], DatasetInfo())
    pixels = np.full((4, 4, 4), 3000, np.uint16)
    pixels[..., 3] = 65535  # a band that is not used does not count
    deep = raster(tmp_path / "a.tif", pixels)
    assert range_note([deep], DatasetInfo(bands=[0, 1]))
    assert not range_note([deep], DatasetInfo(bands=[0, 3]))


def test_a_fourth_band_without_a_meaning_is_not_taken_for_transparency(tmp_path: Path) -> None:
    pixels = BANDS[..., :4].astype(np.uint8)
    path = raster(tmp_path / "a.tif", pixels, photometric="rgb")
    tag, other = (struct.pack("<HH", number, 3) for number in (338, 337))  # no ExtraSamples
    path.write_bytes(path.read_bytes().replace(tag, other))
    with pytest.raises(DataError, match="TIFF of 4 bands"):
        read_image(path)
    assert np.array_equal(read_image(path, DatasetInfo(bands=[3]))[0], pixels[..., 3])


XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-synta'
    'x-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{}"/>'
    "</rdf:RDF></x:xmpmeta>"
)


def with_chunk(path: Path, kind: bytes, content: bytes, late: bool) -> None:
    """Insert a chunk before or after the pixels of a PNG."""
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    chunk, data = struct.pack(">I", len(content)) + kind + content + checksum, path.read_bytes()
    place = (data.rindex(b"IEND") if late else data.index(b"IDAT")) - 4
    path.write_bytes(data[:place] + chunk + data[place:])


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def write_turned(path: Path, image: Image.Image, turn: int) -> None:
    """Write an image with an orientation at the place that the file's name says."""
    kind, _, when = path.stem.removeprefix("a.").partition("-")
    if path.suffix == ".png":
        image.save(path)
        xmp = b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.format(turn).encode()
        chunk = (b"iTXt", xmp) if kind == "xmp" else (b"eXIf", exif_of(turn).tobytes()[6:])
        with_chunk(path, *chunk, late=when == "late")
    elif kind == "deep":
        tags = [(274, "H", 1, turn, True)]
        raster(path, np.asarray(image).astype(np.uint16), photometric="rgb", extratags=tags)
    elif path.suffix == ".tif":
        image.save(path, tiffinfo={274: turn})
    else:
        image.save(path, exif=exif_of(turn), quality=100)


PLACES = ["jpg", "webp", "avif", "tif", "deep.tif"]
PLACES += [f"{kind}-{when}.png" for kind in ("exif", "xmp") for when in ("early", "late")]


@pytest.mark.parametrize("orientation", [0, *range(1, 9), 9])
@pytest.mark.parametrize("place", PLACES)
def test_every_reader_agrees_on_size_and_orientation(
    tmp_path: Path, place: str, orientation: int
) -> None:
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :8], pixels[8:, :8] = 255, 128
    write_turned(path := tmp_path / f"a.{place}", Image.fromarray(pixels), orientation)
    turned = orientation if orientation in range(1, 9) else 1
    expected = upright(pixels, turned)
    info = DatasetInfo(value_range=[0, 255]) if "deep" in place else DatasetInfo()
    image = read_image(path, info).permute(1, 2, 0).numpy()
    assert np.abs(image.astype(int) - expected).max() <= (30 if place in ("avif", "webp") else 3)
    assert image_size(path) == expected.shape[1::-1]
    assert images.orientation(path) == turned
    if "deep" not in place:
        with Image.open(path) as opened:
            oracle = ImageOps.exif_transpose(opened)
        assert oracle is not None
        assert np.array_equal(image, oracle.convert("RGB"))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize(
    "damage", [b"", b"garbage!", bytes(8), b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08\0\x01"]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's
def test_an_image_with_damaged_exif_is_read_as_it_is_stored(
    tmp_path: Path, suffix: str, damage: bytes
) -> None:
    image = Image.new("RGB", (24, 16), (90, 90, 90))
    image.save(path := tmp_path / f"a.{suffix}", exif=b"Exif\0\0" + damage, dpi=(72, 72))
    assert (read_image(path) == 90).all()
    assert (image_size(path), images.orientation(path)) == ((24, 16), 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_turned_like_its_image(tmp_path: Path, orientation: int) -> None:
    labels = np.random.default_rng(0).integers(0, 5, (6, 9)).astype(np.uint8)
    image = tmp_path / "image.png"
    Image.fromarray(labels * 50).save(image, exif=exif_of(orientation))
    stored = labels if orientation >= 5 else upright(labels, orientation)
    pair = Pair("a", image, save(tmp_path / "mask.png", stored))
    pixels, target = SegmentationDataset([pair], DatasetInfo(classes=CLASSES), "one")[0]
    assert torch.equal(pixels[0] // 50, target)
    with Image.open(image) as opened:
        assert np.array_equal(target, np.asarray(ImageOps.exif_transpose(opened)) // 50)


def test_prepare_data_names_masks_that_exif_turns_or_may_turn(
    cases: Path, tiny_voc: TinyVOC, command: Callable[..., Any], tmp_path: Path
) -> None:
    run = ("processes=1", f"hydra.run.dir={tmp_path}/out", "overwrite=true")
    notes = command("prepare_data", "data=folder", f"data.root={cases / 'exif'}", *run)["warnings"]
    turned = [note for note in notes if "masks, which are not, are turned" in note]
    assert [note.split(" images")[0] for note in turned] == ["train: 3", "val: 2"]
    Image.new("RGB", (50, 50)).save(tiny_voc.image("t0"), exif=exif_of(8))
    save(tiny_voc.mask("t0"), np.eye(50) * 2)
    notes = command("prepare_data", *tiny_voc.overrides(), *run)["warnings"]
    assert any("train: 1 images such as" in n and "does not tell" in n for n in notes)


def test_the_predictor_takes_files_and_arrays_of_its_own_channels_and_range(tmp_path: Path) -> None:
    info = DatasetInfo(CLASSES, value_range=[0, 4095], bands=[0, 3, 2, 1])
    checkpoint.write_safetensors(
        tmp_path / "m.safetensors", random_model(in_channels=4), checkpoint.info_metadata(info)
    )
    predictor = fcn.Predictor(tmp_path / "m.safetensors", "cpu")
    deep = np.random.default_rng(0).integers(0, 4096, (40, 50, 6)).astype(np.uint16)
    expected = predictor(raster(tmp_path / "six.tif", deep))
    assert len(np.unique(expected)) > 1
    chosen = deep[..., [0, 3, 2, 1]]
    tensor = torch.from_numpy(chosen).permute(2, 0, 1)
    for image in (chosen, chosen.astype(np.float32), tensor, tensor.float()):
        np.testing.assert_array_equal(predictor(image), expected)
    with pytest.raises(ValueError, match=r"\(H, W, 4\)"):
        predictor(chosen[..., :3])
    with pytest.raises(DataError, match=r"no band 3"):
        predictor(save(tmp_path / "rgb.png", np.zeros((8, 8, 3))))


def test_four_channels_train_export_predict_and_evaluate(
    tiny_voc: TinyVOC, command: Callable[..., Any], tmp_path: Path
) -> None:
    for name in ("t0", "t1", "t2", "t3", "v0", "v1"):
        with Image.open(tiny_voc.image(name)) as image:
            rgb = np.asarray(image)
        nir = rgb[..., :1]
        raster(tiny_voc.image(name), np.concatenate([rgb, nir, nir // 2, nir // 3], axis=2))
    run, onnx, masks = tmp_path / "run", tmp_path / "m.onnx", tmp_path / "masks"
    command("train", *tiny_voc.overrides(), "data.bands=[0,1,2,3]", "backbone.width=4",
            "backbone.head_width=8", "logger=none", "trainer.accelerator=cpu", "recipe.crop=32",
            "recipe.batch_size=2", "trainer.max_steps=2", f"hydra.run.dir={run}")  # fmt: skip
    model, info = fcn.load(run), checkpoint.read(run).info
    assert (model.in_channels, tuple(model.mean.shape), info.bands) == (4, (4, 1, 1), [0, 1, 2, 3])
    command("export", f"checkpoint={run}", f"output={onnx}", "size=[48,64]")
    command("predict", f"checkpoint={run}", f"input={tiny_voc.image('t1')}", f"output={masks}")
    with Image.open(masks / "t1.png") as mask:
        predicted = np.asarray(mask)
    image = read_image(tiny_voc.image("t1"), info)
    with torch.inference_mode():
        assert np.array_equal(predicted, model(image[None])[0].argmax(0))
    network = cv2.dnn.readNetFromONNX(str(onnx))
    network.setInput((image[None] / 255).numpy())
    assert (network.forward()[0].argmax(0) == predicted).mean() > 0.999
    command("evaluate", f"checkpoint={run}", *tiny_voc.overrides(), f"hydra.run.dir={tmp_path}/e")


def test_in_channels_takes_that_many_bands(
    tiny_voc: TinyVOC, error_line: Callable[..., str], tmp_path: Path
) -> None:
    settings = [*tiny_voc.overrides(), f"hydra.run.dir={tmp_path}/run", "trainer.max_steps=1"]
    line = error_line("train", *settings, "model.in_channels=4")
    assert "no band 3; the image has 3 bands (red, green, blue)" in line


def test_raw_masks_are_grey_labels(tmp_path: Path, command: Callable[..., Any]) -> None:
    model = tmp_path / "m.safetensors"
    checkpoint.write_safetensors(model, random_model(), {"classes": CLASSES})
    photo = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (40, 50, 3)))
    common = (f"checkpoint={model}", f"input={photo}", "overlays=false")
    command("predict", *common, f"output={tmp_path}/raw", "raw=true")
    command("predict", *common, f"output={tmp_path}/colours")
    raw, coloured = (Image.open(tmp_path / name / "a.png") for name in ("raw", "colours"))
    assert (raw.mode, coloured.mode) == ("L", "P")
    assert np.array_equal(raw, coloured)
    as_opencv_reads = cv2.imread(str(tmp_path / "raw" / "a.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(raw, as_opencv_reads)
    assert len(np.unique(raw)) > 1


def test_heic_is_read_where_pillow_heif_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    Image.init()
    for registry in ("ID", "OPEN", "SAVE", "EXTENSION", "MIME"):  # other tests do without
        monkeypatch.setattr(Image, registry, copy(getattr(Image, registry)))
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :8], pixels[8:, :8] = 255, 128
    file, path = pillow_heif.from_bytes("RGB", (24, 16), pixels.tobytes()), tmp_path / "a.HEIC"
    file.save(path, quality=-1, chroma=444, exif=exif_of(6).tobytes())
    assert is_image(path)
    assert not unread_note([path])
    image = read_image(path)
    assert image.shape == (3, 24, 16)
    assert image_size(path) == (16, 24)
    assert images.orientation(path) == 1
    assert np.abs(image[0].numpy().astype(int) - upright(pixels, 6)[..., 0]).max() <= 3


def test_a_heic_file_says_what_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    with pytest.raises(DataError, match=r'a\.HEIC: .*pip install "fcn-segmentation\[heif\]"'):
        read_image(tmp_path / "a.HEIC")
