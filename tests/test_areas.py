"""areas.csv, and masks of GeoTIFFs: the same pixels and the same place on the map."""

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcn.data.georeference import read_georeference
from fcn.inference.predictor import Predictor
from tests.conftest import write_random_model

tifffile = pytest.importorskip("tifffile")

CLASSES = ["background", "cat", "dog", "a, b", "ä"]
UTM = (1, 1, 0, 3, 1024, 0, 1, 1, 3072, 0, 1, 32633, 3076, 0, 1, 9001)
DEGREES = (1, 1, 0, 2, 1024, 0, 1, 2, 2048, 0, 1, 4326)
MERCATOR = (1, 1, 0, 3, 1024, 0, 1, 1, 3072, 0, 1, 3857, 3076, 0, 1, 9001)
FEET = (1, 1, 0, 4, 1024, 0, 1, 1, 3072, 0, 1, 2263, 1026, 34737, 6, 0, 3076, 0, 1, 9003)
FURLONGS = (1, 1, 0, 3, 1024, 0, 1, 1, 3072, 0, 1, 9999, 3076, 0, 1, 9033)
HALF_METRE = {33550: (0.5, 0.5, 0.0), 33922: (0.0, 0.0, 0.0, 5e5, 5.4e6, 0.0)}
TURNED = {34264: (0.3, 0.4, 0, 5e5, 0.4, -0.3, 0, 5.4e6, 0, 0, 0, 0, 0, 0, 0, 1.0)}
POINTS = {33922: (0.0, 0.0, 0.0, 5e5, 5.4e6, 0.0, 9.0, 9.0, 0.0, 5e5 + 9, 5.4e6, 0.0)}


def write_geotiff(path: Path, keys: tuple[int, ...], place: dict[int, Any], **options: Any) -> None:
    tags = [(34735, "H", len(keys), keys, True), (34737, "s", 0, "names|", True)]
    tags += [(number, "d", len(values), values, True) for number, values in place.items()]
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (5, 7, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(pixels).resize((70, 50)))
    options = {"photometric": "rgb", "compression": "zlib"} | options
    tifffile.imwrite(path, pixels, extratags=tags, **options)


def tags(path: Path | str) -> dict[int, Any]:
    with tifffile.TiffFile(path) as file:
        return {tag.code: tag.value for tag in file.pages[0].tags}


@pytest.fixture
def predict(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """Predict photos/ into out/; return what was printed."""
    monkeypatch.chdir(tmp_path)
    write_random_model(Path("m.safetensors"), CLASSES)
    Path("photos/sub").mkdir(parents=True)

    def run(*arguments: str) -> str:
        capsys.readouterr()
        command("predict", "checkpoint=m.safetensors", "input=photos", "output=out", *arguments)
        return capsys.readouterr().out

    return run


def table(path: str = "out/areas.csv") -> dict[str, list[dict[str, str]]]:
    """The rows of each mask."""
    found: dict[str, list[dict[str, str]]] = {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["mask"], []).append(row)
    return found


def photograph(path: str, seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    Image.fromarray(pixels).resize((60, 40)).save(path)


def check(masks: list[str]) -> None:
    """The table has these masks, with as many pixels of each class as their files."""
    found = table()
    assert list(found) == masks
    for mask, rows in found.items():
        labels = np.array(Image.open(f"out/{mask}"))
        counts = np.bincount(labels.ravel(), minlength=len(CLASSES))
        assert [row["class"] for row in rows] == CLASSES
        assert [int(row["pixels"]) for row in rows] == counts.tolist()
        shares = [float(row["share"]) for row in rows]
        assert shares == pytest.approx(counts / labels.size, abs=1e-6)


def test_the_table_follows_the_masks_of_its_folder(predict: Callable[..., str]) -> None:
    photograph("photos/b.png")
    photograph("photos/sub/a, c.png", 1)
    predict()
    check(["b.png", "sub/a, c.png"])
    assert {row["square_metres"] for rows in table().values() for row in rows} == {""}
    before = Path("out/areas.csv").stat()
    predict()
    assert Path("out/areas.csv").stat() == before
    # Another input keeps the rows of the masks that are there.
    Path("more").mkdir()
    photograph("more/c.png", 2)
    predict("input=more")
    predict("input=more", "overwrite=true")
    check(["b.png", "c.png", "sub/a, c.png"])
    Path("out/b.png").unlink()
    assert "1 images predicted, 1 were done before" in predict()
    check(["b.png", "c.png", "sub/a, c.png"])
    # A mask that is none any more.
    Image.open("out/c.png").convert("RGB").save("out/c.png")
    assert "out/c.png: a mask must be" in predict()
    check(["b.png", "sub/a, c.png"])
    # Masks of other settings do not count.
    Path("photos/b.png").unlink()
    predict("flip=true", "overwrite=true")
    check(["sub/a, c.png"])


@pytest.mark.parametrize("seconds", [-1e4, 0, 1e4])
@pytest.mark.parametrize("source", ["photos", "more"])
def test_the_table_counts_masks_of_any_age(
    predict: Callable[..., str], source: str, seconds: float
) -> None:
    """Those of this call and of another, such as corrections and copies that were put back."""
    Path("more").mkdir()
    photograph("photos/a.png")
    photograph("more/b.png", 1)
    for folder in ("photos", "more"):
        predict(f"input={folder}")
    for mask in ("a", "b"):
        Image.fromarray(np.zeros((40, 60), np.uint8)).save(f"out/{mask}.png")
    now = Path("out/areas.csv").stat().st_mtime
    for file in ("a.png", "b.png", "predict.json"):
        os.utime(f"out/{file}", (now + seconds, now + seconds))
    predict(f"input={source}")
    check(["a.png", "b.png"])


def test_a_table_that_a_spreadsheet_has_saved_is_read(predict: Callable[..., str]) -> None:
    photograph("photos/ä, b.png")
    predict()
    written, empty = Path("out/areas.csv").read_text("utf-8"), ",,,,\r\n\r\n"
    Path("out/areas.csv").write_text(written + empty, "utf-8-sig", newline="")
    Path("more").mkdir()
    photograph("more/c.png", 1)
    predict("input=more")
    check(["c.png", "ä, b.png"])


@pytest.mark.parametrize(
    ("encoding", "separator"), [("utf-8", ";"), ("cp1252", ","), ("utf-16", ",")]
)
def test_a_table_of_other_columns_is_kept(
    predict: Callable[..., str], error_line: Callable[..., str], encoding: str, separator: str
) -> None:
    photograph("photos/a.png")
    predict()
    text = Path("out/areas.csv").read_text("utf-8").replace(",", separator)
    Path("out/areas.csv").write_text(text, encoding)
    before = Path("out/areas.csv").read_bytes()
    arguments = ("checkpoint=m.safetensors", "input=photos", "output=out")
    assert "areas.csv: other columns" in error_line("predict", *arguments)
    assert Path("out/areas.csv").read_bytes() == before


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("bands", [{}, {"photometric": "minisblack", "planarconfig": "contig"}])
def test_the_mask_of_a_geotiff_lies_where_its_image_does(
    predict: Callable[..., str], raw: bool, bands: dict[str, str]
) -> None:
    """Also of one that tifffile reads, and not Pillow."""
    write_geotiff(Path("photos/utm.tif"), UTM, HALF_METRE, **bands)
    write_geotiff(Path("photos/sub/turned.TIFF"), FEET, TURNED)
    photograph("photos/plain.tif")
    settings = ("raw=true",) if raw else ()
    predict(*settings)
    assert not list(Path("out").rglob("*.part"))
    for image, mask in (("utm.tif", "utm.tif"), ("sub/turned.TIFF", "sub/turned.tif")):
        source, written = tags(f"photos/{image}"), tags(f"out/{mask}")
        geographic = {33550, 33922, 34264, 34735, 34737}
        assert source.keys() & geographic == written.keys() & geographic
        assert all(source[number] == written[number] for number in source.keys() & geographic)
        labels = tifffile.imread(f"out/{mask}")
        np.testing.assert_array_equal(labels, Predictor("m.safetensors")(f"photos/{image}"))
        assert written[262] == (1 if raw else 3)  # grey, palette
    with Image.open("out/plain.png") as picture:
        assert picture.format == "PNG"
    assert "0 images predicted, 3 were done before" in predict(*settings)
    check(["plain.png", "sub/turned.tif", "utm.tif"])
    areas = {"utm.tif": 0.25, "sub/turned.tif": 0.25 * (1200 / 3937) ** 2, "plain.png": np.nan}
    for name, rows in table().items():
        metres = [float(row["square_metres"] or "nan") for row in rows]
        expected = [int(row["pixels"]) * areas[name] for row in rows]
        assert metres == pytest.approx(expected, rel=1e-11, nan_ok=True)


@pytest.mark.parametrize(
    ("keys", "place", "area", "reason"),
    [
        (UTM, HALF_METRE, 0.25, ""),
        (UTM, TURNED, 0.25, ""),
        (FEET, HALF_METRE, 0.25 * (1200 / 3937) ** 2, ""),
        (DEGREES, HALF_METRE, None, "degrees"),
        (MERCATOR, HALF_METRE, None, "Web Mercator"),
        (FURLONGS, HALF_METRE, None, "unknown unit"),
        (UTM, POINTS, None, "ground control points"),
    ],
)
def test_a_pixel_has_an_area_where_the_map_is_true_to_scale(
    tmp_path: Path, keys: tuple[int, ...], place: dict[int, Any], area: float | None, reason: str
) -> None:
    write_geotiff(tmp_path / "image.tif", keys, place)
    found = read_georeference(tmp_path / "image.tif")
    assert found is not None
    metres, why = found.pixel_area()
    assert metres == (None if area is None else pytest.approx(area, rel=1e-12))
    assert reason in why
    assert bool(why) == (area is None)


def test_why_there_are_no_square_metres_is_said_once(predict: Callable[..., str]) -> None:
    for name in ("a", "b", "c"):
        write_geotiff(Path(f"photos/{name}.tif"), DEGREES, HALF_METRE)
    assert predict().count("no square metres for 3 GeoTIFFs with coordinates in degrees") == 1
    assert "note" not in predict()


def test_only_an_upright_tiff_with_geographic_keys_has_a_place(tmp_path: Path) -> None:
    photograph(str(tmp_path / "plain.tif"))
    (tmp_path / "damaged.tif").write_bytes(b"II*\0 not an image")
    on_its_side = [(34735, "H", len(UTM), UTM, True), (274, "H", 1, 6, True)]
    tifffile.imwrite(tmp_path / "turned.tif", np.zeros((4, 5), np.uint8), extratags=on_its_side)
    for name in ("plain.tif", "damaged.tif", "missing.tif", "turned.tif", "photo.jpg"):
        assert read_georeference(tmp_path / name) is None
