"""Shapes of every annotation tool become the pixels that one counts by hand."""

import base64
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcn.convert.drawing import Shape, draw
from fcn.errors import ConfigError, DataError
from fcn.pictures.visualize import voc_palette
from tests.export_files import (
    CLASSES,
    Sample,
    Shapes,
    coco_shapes,
    converted,
    cvat_shapes,
    info,
    label_studio,
    label_studio_bitmasks,
    label_studio_min,
    labelme_shapes,
    noise,
    put,
    supervisely_shapes,
    yolo,
)
from tests.export_files import WRITERS as MASK_WRITERS

ROAD = [[2, 3], [20, 3], [20, 15], [2, 15]]
POND = [[10, 8], [24, 8], [24, 16], [10, 16]]
POLYGONS: Shapes = [("pond", "polygon", POND), ("road", "polygon", ROAD)]  # the smaller one first
Write = Callable[[Path, dict[str, Shapes]], None]
WRITERS = [
    labelme_shapes, yolo, label_studio, label_studio_min, cvat_shapes, supervisely_shapes,
    coco_shapes,
]  # fmt: skip
SMALL_ON_TOP = (yolo, coco_shapes)
OPEN = (cvat_shapes, coco_shapes)  # do not cover the right and lower outline
IDS: Any = lambda value: getattr(value, "__name__", None)  # noqa: E731


def by_class(mask: np.ndarray, to: Path, name: str) -> np.ndarray:
    return mask == info(to)["classes"].index(name)


def two(shapes: Shapes) -> dict[str, Shapes]:
    return {"a": shapes, "b": shapes}


@pytest.mark.parametrize("write", [*WRITERS, *MASK_WRITERS], ids=IDS)
@pytest.mark.parametrize("kind", ["relative", "link"])
def test_a_folder_gives_the_same_by_whatever_path(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch, write: Any, kind: str
) -> None:
    if write in WRITERS:
        write(tmp_path / "a/train", {"a": POLYGONS, "b": POLYGONS})
        write(tmp_path / "a/val", {"c": POLYGONS})
    else:
        write(tmp_path / "a", samples, CLASSES, voc_palette())
    expected, notes = converted(tmp_path / "a", tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    if kind == "link":
        (tmp_path / "linked").mkdir()
        (tmp_path / "linked/a").symlink_to(tmp_path / "a")
    root = Path("a") if kind == "relative" else tmp_path / "linked/a"
    masks, printed = converted(root, tmp_path / "other/new")
    assert {name: mask.tobytes() for name, mask in masks.items()} == {
        name: mask.tobytes() for name, mask in expected.items()
    }
    assert re.sub(r"\S*/", "", printed) == re.sub(r"\S*/", "", notes)
    with pytest.raises(ConfigError, match="is in no image's name"):
        converted(root, tmp_path / "x", group=tmp_path.name)  # a folder above the export


@pytest.mark.parametrize("given", ["photos", "a/photos", "linked/photos", "../a/photos"])
def test_a_folder_of_images_is_the_same_by_whatever_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    labelme_shapes(tmp_path / "a/photos", two(POLYGONS))
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    for number, root in enumerate((Path("a"), Path("linked"), tmp_path / "a")):
        masks, printed = converted(root, tmp_path / f"{number}", images=given)
        assert len(masks) == 2
        assert "left out" not in printed


CAMERAS = {f"{camera}/{n}": POLYGONS for camera in ("left", "right") for n in "ab"}


@pytest.mark.parametrize("write", [coco_shapes, cvat_shapes, yolo], ids=IDS)
@pytest.mark.parametrize("missing", ["right/a.png", "right/*.png"])
def test_an_image_of_another_folder_does_not_take_the_place_of_a_missing_one(
    tmp_path: Path, write: Write, missing: str
) -> None:
    write(tmp_path / "a", CAMERAS | {"left/c": POLYGONS})
    for path in [*(tmp_path / "a").rglob(missing)]:
        path.unlink()
    masks, printed = converted(tmp_path / "a", tmp_path / "new")
    assert len(masks) == (4 if missing == "right/a.png" else 3)
    assert "of 5 images are not there and are left out, such as " in printed


@pytest.mark.parametrize("write", [coco_shapes, cvat_shapes, yolo], ids=IDS)
@pytest.mark.parametrize("others", [{}, {"val/d": POLYGONS}], ids=["no", "other"])
def test_an_image_of_another_split_does_not_take_the_place_of_a_missing_one(
    tmp_path: Path, write: Write, others: dict[str, Shapes]
) -> None:
    write(tmp_path / "a", {"train/a": POLYGONS, "train/b": POLYGONS, "val/c": POLYGONS} | others)
    path = next((tmp_path / "a").rglob("val/c.png"))
    path.rename(path.parents[1] / "train/c.png")
    masks, printed = converted(tmp_path / "a", tmp_path / "new")
    # Without another image of val, c can mean no other image.
    assert sorted(name[-1] for name in masks) == ["a", "b", *("d" if others else "c")]
    assert ("images are not there and are left out, such as " in printed) == bool(others)


@pytest.mark.parametrize("write", [coco_shapes, cvat_shapes, yolo, labelme_shapes], ids=IDS)
@pytest.mark.parametrize("above", ["x", "C:/Users/me/Desktop/test", "home/dev/pics", "train"])
@pytest.mark.parametrize("file", ["training_data", "my-test"])
def test_the_folder_of_an_image_is_its_split_if_all_annotations_say_the_same_one(
    tmp_path: Path, write: Write, above: str, file: str
) -> None:
    write(tmp_path / "a", {f"{above}/{name}": POLYGONS for name in "abcd"})
    for number, path in enumerate(sorted((tmp_path / "a").rglob("*.png"))):
        split = ("train", "val")[number % 2]
        path.rename(put(tmp_path / f"a/pictures/{split}/{path.name}", b""))
    for path in [p for p in (tmp_path / "a").iterdir() if p.stem == "annotations"]:
        path.rename(path.with_stem(file))
    masks, _ = converted(tmp_path / "a", tmp_path / "new")
    assert sorted(masks) == ["train/a", "train/c", "val/b", "val/d"]


@pytest.mark.parametrize("place", ["photos/{0}.png", "raw/day_{0}/{0}.png", "ds2/img/{0}.png"])
def test_images_of_supervisely_may_lie_elsewhere_but_are_not_those_of_another_data_set(
    tmp_path: Path, place: str
) -> None:
    supervisely_shapes(tmp_path / "a", two(POLYGONS))
    for path in [*(tmp_path / "a/ds/img").iterdir()]:
        path.rename(put(tmp_path / "a" / place.format(path.stem), b""))
    assert len(converted(tmp_path / "a", tmp_path / "1")[0]) == 2
    if "ds2" in place:
        shutil.copytree(tmp_path / "a/ds/ann", tmp_path / "a/ds2/ann")
        masks, printed = converted(tmp_path / "a", tmp_path / "2")
        assert len(masks) == 2
        assert "2 of 4 images are not there and are left out, such as ds/img/" in printed


FOLDERS = ["annotations", "Road.v1i.coco-segmentation", "images_to_label/seg 1", "masks"]


@pytest.mark.parametrize("write", WRITERS, ids=IDS)
@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("beside", [True, False], ids=["beside", "apart"])
def test_a_word_for_masks_in_the_name_of_a_folder_hides_no_photographs(
    tmp_path: Path, write: Write, name: str, beside: bool
) -> None:
    write(tmp_path / "a" / (name if beside else "."), two(POLYGONS))
    for path in [] if beside else [*(tmp_path / "a").rglob("*.png")]:
        path.rename(put(tmp_path / f"a/{name}/{path.name}", b""))
    noise(tmp_path / "a/preview.png")
    masks, _ = converted(tmp_path / "a", tmp_path / "1")
    assert len(masks) == 2
    masks, _ = converted(tmp_path / "a", tmp_path / "2", images=name.split("/")[0])
    assert len(masks) == 2


@pytest.mark.parametrize("write", WRITERS, ids=IDS)
def test_a_picture_in_a_folder_of_masks_is_no_photograph(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "a", {"a": POLYGONS, "seg_b": POLYGONS, "c": POLYGONS})
    for name in ("a", "seg_b", "c"):
        put(tmp_path / f"a/masks/{name}.png", np.zeros((24, 32), np.uint8))
    next(path for path in (tmp_path / "a").rglob("c.png") if path.parent.name != "masks").unlink()
    masks, printed = converted(tmp_path / "a", tmp_path / "new")
    assert sorted(name.split("/")[-1].removeprefix("0123abcd-") for name in masks) == ["a", "seg_b"]
    assert "1 of 3 images are not there" in printed
    for path in (tmp_path / "new/images").rglob("*.png"):
        assert np.asarray(Image.open(path)).any()


def test_a_name_may_say_a_folder_of_masks(tmp_path: Path) -> None:
    coco_shapes(tmp_path / "a", {"labels/a": POLYGONS, "labels/b": POLYGONS})
    assert len(converted(tmp_path / "a", tmp_path / "new")[0]) == 2


@pytest.mark.parametrize("write", WRITERS, ids=IDS)
def test_polygons_are_drawn_in_the_order_of_the_tool(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "a", two(POLYGONS))
    masks, printed = converted(tmp_path / "a", tmp_path / "new")
    end = 0 if write in OPEN else 1
    road, pond = np.zeros((2, 24, 32), bool)
    road[3 : 15 + end, 2 : 20 + end] = True
    pond[8 : 16 + end, 10 : 24 + end] = True
    both = (7 + end) * (10 + end)
    assert int((road & pond).sum()) == both
    assert f"{2 * both} pixels ({100 * both / 768:.2f} %) of 2 images" in printed
    assert len(masks) == 2
    for mask in masks.values():
        on_top, below = (pond, road) if write in SMALL_ON_TOP else (road, pond)
        name, other = ("pond", "road") if write in SMALL_ON_TOP else ("road", "pond")
        np.testing.assert_array_equal(by_class(mask, tmp_path / "new", name), on_top)
        np.testing.assert_array_equal(by_class(mask, tmp_path / "new", other), below & ~on_top)
        np.testing.assert_array_equal(mask == 0, ~(road | pond))


@pytest.mark.parametrize(
    "write", [label_studio_bitmasks, *(w for w in WRITERS if w is not yolo)], ids=IDS
)
def test_masks_are_kept_to_the_pixel_and_given_classes_are_all(
    tmp_path: Path, write: Write
) -> None:
    road = np.zeros((24, 32), bool)
    road[4:9, 5:7] = road[8, 5:20] = road[11, 11] = True
    write(tmp_path / "a", two([("road", "mask", road)]))
    given = {"classes": ["background", "road"]}  # of a tool that may list others
    masks, _ = converted(tmp_path / "a", tmp_path / "new", data=given)
    assert info(tmp_path / "new")["classes"] == given["classes"]
    assert len(masks) == 2
    for mask in masks.values():
        np.testing.assert_array_equal(mask, road)


SHOWN = [[1, 1, 1], [2, 2, 2], [3, 3, 3]]


@pytest.mark.parametrize("write", WRITERS, ids=IDS)
def test_settings_choose_and_colour_classes_and_never_rename_them(
    tmp_path: Path, write: Write
) -> None:
    write(tmp_path / "a", two(POLYGONS))
    plain, _ = converted(tmp_path / "a", tmp_path / "plain")
    own = np.array(info(tmp_path / "plain")["classes"])
    for number, chosen in enumerate((["road", "pond"], ["pond", "background", "road"])):
        for colours in ([], SHOWN[: len(chosen)]):
            to, given = (
                tmp_path / f"{number}{len(colours)}",
                {"classes": chosen, "colours": colours},
            )
            masks, _ = converted(tmp_path / "a", to, data=given)
            new = info(to)
            added = ["background"] if "background" not in chosen else []
            assert new["classes"] == [*added, *chosen]
            if colours:
                assert new["colours"] == [[0, 0, 0]] * len(added) + colours
            for name, mask in masks.items():
                np.testing.assert_array_equal(np.array(new["classes"])[mask], own[plain[name]])
    more = {"classes": ["pond", "road", "background", "horse"]}  # no shape of the last so far
    _, printed = converted(tmp_path / "a", tmp_path / "more", data=more)
    assert info(tmp_path / "more")["classes"] == more["classes"]
    assert "in no mask: horse" in printed
    masks, _ = converted(
        tmp_path / "a",
        tmp_path / "b",
        data={"classes": ["road", "pond"]},
        merge={"background": None},
    )
    assert {*np.unique(list(masks.values()))} == {0, 1, 255}
    for settings in (
        {"labels": {0: "pond", 1: "road"}},
        {"data": {"ignore_index": 1}},
        {"data": {"colours": SHOWN[:2]}},
        {"data": {"classes": ["background", "horse"], "colours": SHOWN[:2]}},
    ):
        with pytest.raises(ConfigError):
            converted(tmp_path / "a", tmp_path / "refused", **settings)


@pytest.mark.parametrize("write", WRITERS, ids=IDS)
def test_shapes_of_a_larger_image_are_resized_or_refused(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "a", two(POLYGONS))
    whole, _ = converted(tmp_path / "a", tmp_path / "whole")
    for photo in (p for p in (tmp_path / "a").rglob("*.png") if p.stem in ("a", "b")):
        Image.open(photo).resize((16, 12)).save(photo)
    if write is not yolo:  # whose corners are shares of the image
        with pytest.raises(DataError, match=r"the mask is 32 x 24, but its image .* 16 x 12"):
            converted(tmp_path / "a", tmp_path / "new")
    masks, _ = converted(tmp_path / "a", tmp_path / "new", resize=True)
    for name, mask in masks.items():
        assert np.mean(mask != whole[name][1::2, 1::2]) < 0.15


@pytest.mark.parametrize("write", WRITERS, ids=IDS)
def test_an_empty_annotation_is_background_and_none_is_left_out(
    tmp_path: Path, write: Write
) -> None:
    write(tmp_path / "a", {"a": POLYGONS, "b": POLYGONS, "empty": []})
    folder = next((tmp_path / "a").rglob("a.png")).parent
    noise(folder / "bare.png")
    (folder / "b.png").unlink()  # annotated, but not there
    masks, printed = converted(tmp_path / "a", tmp_path / "new")
    found = {Path(name).name.removeprefix("0123abcd-"): mask for name, mask in masks.items()}
    assert set(found) == {"a", "empty"}
    assert not found["empty"].any()
    assert "1 images without annotations are all background" in printed
    assert re.search("1 images without annotations of .* are left out, such as", printed)
    assert "of 3 images are not there and are left out, such as" in printed
    for path in (tmp_path / "a").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"images are not there, such as .*; set images=FOLDER"):
        converted(tmp_path / "a", tmp_path / "x")


@pytest.mark.parametrize("write", WRITERS, ids=IDS)
def test_an_image_that_only_points_or_boxes_annotate_is_left_out(
    tmp_path: Path, write: Write
) -> None:
    bare: Shapes = [("road", "points", [[16, 12], [4, 3]])]  # of YOLO a box, of COCO no outline
    write(tmp_path / "a", two(POLYGONS) | {"bare": bare, "empty": []})
    masks, printed = converted(tmp_path / "a", tmp_path / "new")
    names = sorted(Path(name).name.removeprefix("0123abcd-") for name in masks)
    assert names == ["a", "b", "empty"]
    assert "1 shapes without an area are left out" in printed
    assert re.search(
        r"1 images that only such shapes annotate are left out, such .*bare\.png", printed
    )
    assert "1 images without annotations are all background" in printed
    assert "without annotations of" not in printed


NAMED = [coco_shapes, cvat_shapes, label_studio, label_studio_min]


@pytest.mark.parametrize("write", NAMED, ids=IDS)
def test_the_name_of_a_file_with_all_annotations_may_say_a_split(
    tmp_path: Path, write: Write
) -> None:
    for split, names in (("train", "ab"), ("val", "c")):
        write(tmp_path / "a", dict.fromkeys(names, POLYGONS))
        (path,) = (p for p in (tmp_path / "a").iterdir() if p.name[:5] in ("annot", "proje"))
        path.rename(path.with_stem(f"my_{split}2017"))
    masks, _ = converted(tmp_path / "a", tmp_path / "new")
    assert sorted(masks) == ["train/a", "train/b", "val/c"]


def test_annotations_that_are_not_used_are_named(tmp_path: Path) -> None:
    coco_shapes(tmp_path / "a/one", two(POLYGONS))
    cvat_shapes(tmp_path / "a/two", {"c": POLYGONS})
    yolo(tmp_path / "a/three", {"d": POLYGONS})
    put(tmp_path / "a/README.txt", "1 2 3 of them")
    _, printed = converted(tmp_path / "a", tmp_path / "new")
    assert re.search(
        r"annotations that are not used: \S+d\.txt, \S+annotations\.xml$", printed, re.M
    )
    assert "2 images without annotations of COCO are left out" in printed


def test_files_of_coco_beside_instances_count_if_they_have_images_of_their_own(
    tmp_path: Path,
) -> None:
    coco_shapes(tmp_path / "a/one", two(POLYGONS))
    coco_shapes(tmp_path / "a/two", {"a": POLYGONS, "c": POLYGONS})  # another picture called a
    file = tmp_path / "a/one/annotations.json"
    put(tmp_path / "a/one/person_keypoints.json", file.read_text())
    file.rename(file.with_name("instances_default.json"))
    masks, printed = converted(tmp_path / "a", tmp_path / "1")
    assert sorted(name.split("/")[1] for name in masks) == ["b", "c", "one_a", "two_a"]
    assert re.search(r"not used: \S+/a/one/person_keypoints\.json$", printed, re.M)
    coco_shapes(tmp_path / "a/one", two([]) | {"d": POLYGONS})
    masks, _ = converted(tmp_path / "a", tmp_path / "2")
    assert sorted(name[-1] for name in masks) == ["a", "a", "b", "c", "d"]
    assert all(mask.any() for mask in masks.values())


FORMS: dict[str, Callable[[Any], Any]] = {
    "flat": lambda corners: np.ravel(corners).tolist(),
    "pairs": lambda corners: corners,
    "a list of pairs": lambda corners: [corners],
    "two lists of pairs": lambda corners: [corners, corners],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("corners", [POND[:3], POND, [*POND, [9, 12], [9, 10]]])
def test_polygons_of_coco_are_written_in_several_ways(
    tmp_path: Path, form: Callable[[Any], Any], corners: Any
) -> None:
    coco_shapes(tmp_path / "a", two([("pond", "polygon", corners)]))
    expected, _ = converted(tmp_path / "a", tmp_path / "1")
    path = tmp_path / "a/annotations.json"
    content = json.loads(path.read_text())
    for entry in content["annotations"]:
        entry["segmentation"] = form(corners)
    path.write_text(json.dumps(content))
    masks, _ = converted(tmp_path / "a", tmp_path / "2")
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, expected[name])


CLASS_LISTS = {
    "class_names.txt": "__ignore__\nroad\npond\n",
    "labelmap.txt": "road\npond\n",
    "label_colors.txt": "1 2 3 road\n4 5 6 pond\n",
    "_classes.csv": "Pixel Value, Class\n0, background\n1, road\n",
    "obj_class_to_machine_color.json": '{"road": [1, 1, 1], "pond": [2, 2, 2]}',
}


@pytest.mark.parametrize("name", CLASS_LISTS)
@pytest.mark.parametrize("write", [labelme_shapes, coco_shapes], ids=IDS)
def test_a_list_of_classes_beside_shapes_hides_none(
    tmp_path: Path, write: Write, name: str
) -> None:
    write(tmp_path / "a", two(POLYGONS))
    put(tmp_path / "a" / name, CLASS_LISTS[name])
    assert len(converted(tmp_path / "a", tmp_path / "new")[0]) == 2


OTHER_FILES: dict[str, bytes] = {
    "README.txt": "Café".encode("latin-1"),
    "notes.json": b"{'no': JSON}",
    "old.json": '{"a": "Café"}'.encode("utf-16"),
    "index.xml": b"<a><b></a>",
    "latin.xml": "<a>Café</a>".encode("latin-1"),
}


@pytest.mark.parametrize("write", WRITERS, ids=IDS)
def test_other_files_are_no_annotations_whatever_they_hold(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "a", two(POLYGONS))
    for name, content in OTHER_FILES.items():
        put(tmp_path / "a" / name, content)
    assert len(converted(tmp_path / "a", tmp_path / "new")[0]) == 2


@pytest.mark.parametrize("write", [w for w in WRITERS if w is not yolo], ids=IDS)
def test_a_damaged_file_of_annotations_is_named(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "a", two(POLYGONS))
    files = [p for p in (tmp_path / "a").rglob("*") if p.suffix in (".json", ".xml")]
    path = max(files, key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=rf"{path.name}: unreadable file"):
        converted(tmp_path / "a", tmp_path / "x")


@pytest.mark.parametrize("write", [labelme_shapes, coco_shapes], ids=IDS)
def test_an_archive_is_opened_and_left_as_it_is(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "a", two(POLYGONS))
    archive = tmp_path / "export.ZIP"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (path for path in (tmp_path / "a").rglob("*") if path.is_file()):
            file.write(path, Path("top", path.relative_to(tmp_path / "a")))
    before = archive.read_bytes()
    folder, _ = converted(tmp_path / "a", tmp_path / "1")
    masks, _ = converted(archive, tmp_path / "2")
    assert archive.read_bytes() == before
    assert {name: mask.tobytes() for name, mask in masks.items()} == {
        name: mask.tobytes() for name, mask in folder.items()
    }
    with pytest.raises(ConfigError, match="link=true"):
        converted(archive, tmp_path / "3", link=True)
    archive.write_bytes(before[:100])
    with pytest.raises(DataError, match=r"export\.ZIP: unreadable archive"):
        converted(archive, tmp_path / "3")
    zipfile.ZipFile(tmp_path / "a.zip", "w").close()
    with pytest.raises(DataError, match=r"a\.zip"):
        converted(tmp_path / "a.zip", tmp_path / "3")


CORNERS = [(labelme_shapes, "x"), (labelme_shapes, "10"), (supervisely_shapes, np.nan)]
CORNERS += [(coco_shapes, "x"), (coco_shapes, np.nan)]


@pytest.mark.parametrize(("write", "corner"), CORNERS, ids=IDS)
def test_a_corner_that_is_no_number_is_an_error(tmp_path: Path, write: Write, corner: Any) -> None:
    pond = [[10 if corner != "10" else "10", 8], *POND[1:]]
    write(tmp_path / "a", two([("pond", "polygon", pond)]))
    if corner == "10":  # a number in quotes is one
        assert len(converted(tmp_path / "a", tmp_path / "new")[0]) == 2
        return
    for path in (tmp_path / "a").rglob("*.json"):
        path.write_text(path.read_text().replace("[10, 8", f"[{json.dumps(corner)}, 8"))
    with pytest.raises(DataError, match=r"\.json: .*no outline .*; export it again"):
        converted(tmp_path / "a", tmp_path / "x")


KINDS: dict[str, tuple[Any, Any]] = {  # points; a box of rows and columns that is covered
    "rectangle": ([[9, 8], [5, 4]], np.s_[4:9, 5:10]),
    "line": ([[0, 12], [31, 12]], np.s_[8:18, :]),  # 10 pixels wide
    "linestrip": ([[0, 12], [15, 12], [31, 12]], np.s_[8:18, :]),
    "rotation": (POND, np.s_[8:17, 10:25]),
    "circle": ([[16, 12], [17, 12]], np.s_[[12, 12, 12, 11, 13], [15, 16, 17, 16, 16]]),  # a cross
}


@pytest.mark.parametrize("kind", KINDS)
def test_labelme_draws_all_kinds_of_shapes(tmp_path: Path, kind: str) -> None:
    points, box = KINDS[kind]
    bare = (None, "polygon", ROAD)
    labelme_shapes(tmp_path / "a", two([("road", kind, points), ("pond", "point", [[1, 1]]), bare]))
    masks, printed = converted(tmp_path / "a", tmp_path / "new")
    expected = np.zeros((24, 32), np.uint8)
    expected[box] = 1
    for mask in masks.values():
        np.testing.assert_array_equal(mask, expected)
    assert "4 shapes without an area are left out: 2 point, 2 shape without a label" in printed


def test_labelme_erases_and_ignores_by_class_and_unpacks_images(tmp_path: Path) -> None:
    inner, last = [[4, 5], [6, 5], [6, 7], [4, 7]], [[0, 23], [31, 23], [31, 23]]
    shapes: Shapes = [
        ("road", "polygon", ROAD),
        ("_background_", "polygon", inner),
        ("__ignore__", "polygon", last),
    ]
    labelme_shapes(tmp_path / "a", two(shapes))
    for name, path in (("a", "..\\images\\a.png"), ("b", "elsewhere/b.png")):
        file = tmp_path / f"a/{name}.json"
        content = json.loads(file.read_text()) | {"imagePath": path}
        if name == "b":  # the image is in the file alone
            stored = (tmp_path / "a/b.png").read_bytes()
            content["imageData"] = base64.b64encode(stored).decode()
            (tmp_path / "a/b.png").rename(tmp_path / "a/masks.png")
            for mask in "ab":
                put(tmp_path / f"a/masks/{mask}.png", np.zeros((24, 32), np.uint8))
        file.write_text(json.dumps(content))
    masks, _ = converted(tmp_path / "a", tmp_path / "new")
    assert info(tmp_path / "new")["classes"] == ["_background_", "road"]
    expected = np.zeros((24, 32), np.uint8)
    expected[3:16, 2:21], expected[5:8, 4:7], expected[23] = 1, 0, 255
    assert len(masks) == 2
    for mask in masks.values():
        np.testing.assert_array_equal(mask, expected)
    (copy,) = (tmp_path / "new").glob("images/*/b.png")
    assert copy.read_bytes() == stored


@pytest.mark.parametrize(
    ("file", "names", "first"),
    [
        ("data.yaml", "[road, pond]", "road"),
        ("dataset.yaml", "{0: road, 1: pond}", "road"),
        ("data.yaml", "[yes, pond]", "yes"),  # text, also where YAML has other values
    ],
)
def test_names_and_splits_of_yolo_are_those_of_its_yaml(
    tmp_path: Path, file: str, names: str, first: str
) -> None:
    yolo(tmp_path / "a", {"one/a": POLYGONS, "one/b": POLYGONS, "two/c": POLYGONS})
    (tmp_path / "a/data.yaml").unlink()
    text = f"train: ../images/one\nval: images/two\ntest: # optional\nnames: {names}\n"
    put(tmp_path / "a" / file, text)
    masks, _ = converted(tmp_path / "a", tmp_path / "new")
    assert sorted(masks) == ["train/a", "train/b", "val/c"]
    assert info(tmp_path / "new")["classes"] == ["background", first, "pond"]


# What data.yaml says, the split of each image, and which key names a folder or file again.
SPLITS: dict[str, tuple[str, list[str], str]] = {
    "train and val": ("train: images/one\nval: images/one\n", [], "val"),
    "val and test": (
        "test: images/two\nval: images/two\ntrain: images/one\n",
        ["train/a", "train/b", "val/c"],
        "test",
    ),
    "a folder in another": (
        "train: images\nval: images/two\n", ["train/a", "train/b", "val/c"], ""
    ),
    "lists": ("train: first.txt\nval: second.txt\n", ["train/a", "train/c", "val/b"], ""),
    "lists of the other split": (
        "path: .\ntrain: ./val.txt\nval: train.txt\n", ["train/a", "train/b", "val/c"], ""
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("linked", [True, False], ids=["linked", ""])
def test_splits_of_yolo_are_those_that_its_yaml_names(
    tmp_path: Path, name: str, linked: bool
) -> None:
    text, expected, again = SPLITS[name]
    yolo(tmp_path / "a", {"one/a": POLYGONS, "one/b": POLYGONS, "two/c": POLYGONS})
    put(tmp_path / "a/data.yaml", f"{text}names: [road, pond]\n")
    if "list" in name:
        put(tmp_path / "a/first.txt", "./images/one/a.png\n./images/two/c.png\n")
        put(tmp_path / "a/second.txt", "/home/me/images/one/b.png\n")
        put(tmp_path / "a/val.txt", "images/one/a.png\nimages/one/b.png\n")
        put(tmp_path / "a/train.txt", "images/two/c.png\n")
    if linked:
        (tmp_path / "store").mkdir()
        for path in (tmp_path / "a/images").rglob("*.png"):
            path.rename(tmp_path / "store" / path.name)
            path.symlink_to(tmp_path / "store" / path.name)
    masks, printed = converted(tmp_path / "a", tmp_path / "new")
    assert not expected or sorted(masks) == expected
    assert "".join(re.findall(r"yaml: (\w+) names \S+ too, whose images", printed)) == again
    assert ("no validation split" in printed) == (not expected)


YOLO_MISTAKES = {
    "boxes": ("0 0.5 0.5 0.1 0.1\n", "a.txt: boxes without outlines"),
    "no name": ("7 0.1 0.1 0.5 0.1 0.5 0.5\n", "a.txt: the class 7 has no name"),
    "pixels": ("0 0.1 0.1 0.5 0.1 0.5 0.5\n0 10 10 50 10 50 50\n", "a.txt: line 2 is not"),
    "odd": ("0 0.1 0.1 0.5 0.1 0.5 0.5\n0 0.1 0.1 0.5 0.1 0.5\n", "a.txt: line 2 is not"),
    "all": ("0 10 10 50 10 50 50\n", "a.txt: line 1 is not"),
}


@pytest.mark.parametrize(("text", "message"), YOLO_MISTAKES.values(), ids=YOLO_MISTAKES)
def test_mistakes_in_files_of_yolo_are_named(tmp_path: Path, text: str, message: str) -> None:
    yolo(tmp_path / "a", {"a": [], "b": [] if "boxes" in message else POLYGONS})
    put(tmp_path / "a/labels/a.txt", text)
    with pytest.raises(DataError, match=message):
        converted(tmp_path / "a", tmp_path / "new")


def test_yolo_without_a_yaml_takes_names_from_a_list_or_from_settings(tmp_path: Path) -> None:
    yolo(tmp_path / "a", two(POLYGONS))
    (tmp_path / "a/data.yaml").unlink()
    with pytest.raises(DataError, match=r"data\.classes=\[background,NAME,\.\.\.\]"):
        converted(tmp_path / "a", tmp_path / "x")
    names = ["background", "road", "pond"]
    given, _ = converted(tmp_path / "a", tmp_path / "1", data={"classes": names})
    put(tmp_path / "a/classes.txt", "road\npond\n")
    listed, _ = converted(tmp_path / "a", tmp_path / "2")
    assert info(tmp_path / "1")["classes"] == info(tmp_path / "2")["classes"] == names
    assert all((listed[name] == mask).all() for name, mask in given.items())


NAMES = {
    "upload": ("/data/upload/7/0123abcd-a%20b.png", "a b.png"),
    "upload kept": ("/data/upload/7/0123abcd-a%20b.png", "0123abcd-a b.png"),
    "local files": ("/data/local-files/?d=photos/a%20b.png", "a b.png"),
    "address": ("https://host/x/a%20b.png?token=1", "a b.png"),
    "bucket": ("s3://bucket/a%20b.png", "a b.png"),
    "name": ("a b.png", "a b.png"),
}


@pytest.mark.parametrize(("image", "file"), NAMES.values(), ids=NAMES)
def test_label_studio_names_images_in_many_ways(tmp_path: Path, image: str, file: str) -> None:
    label_studio(tmp_path / "a", two(POLYGONS))
    (tmp_path / "a/photos/a.png").rename(tmp_path / "a/photos" / file)
    path = tmp_path / "a/project-1.json"
    path.write_text(path.read_text().replace("/data/upload/1/0123abcd-a.png", image))
    assert len(converted(tmp_path / "a", tmp_path / "new")[0]) == 2


@pytest.mark.parametrize(
    ("data", "to_name", "taken"),
    [
        ({"rgb": "a.png", "nir": "b.png"}, "nir", "b"),
        ({"rgb": "a.png", "nir": "b.png"}, "image", None),
        ({"rgb": "a.png", "nir": "gone.png"}, "image", "a"),
        ({"text": "a", "image": "a.png"}, "img", "a"),
    ],
)
def test_the_image_that_label_studio_annotates_is_known_or_asked_for(
    tmp_path: Path, data: dict[str, str], to_name: str, taken: str | None
) -> None:
    label_studio(tmp_path / "a", {"a": POLYGONS, "b": POLYGONS, "c": POLYGONS})
    path = tmp_path / "a/project-1.json"
    first, _, third = json.loads(path.read_text())
    first["data"] = data
    for result in first["annotations"][0]["result"]:
        result["to_name"] = to_name
    first["annotations"][0]["result"].append(
        {"id": "k", "original_width": 32, "original_height": 24, "to_name": to_name,
         "value": {"x": 5, "y": 5, "width": 1, "keypointlabels": ["eye"]}}
    )  # fmt: skip
    for value in ({"curve": [], "splinelabels": ["road"]}, {"choices": ["day"]}):  # a new kind
        first["annotations"][0]["result"].append({"to_name": to_name, "value": value})
    path.write_text(json.dumps([first, third]))
    if taken is None:
        with pytest.raises(DataError, match=r"several images \(a\.png, b\.png\)"):
            converted(tmp_path / "a", tmp_path / "new")
        return
    masks, printed = converted(tmp_path / "a", tmp_path / "new")
    assert {Path(name).name for name in masks} == {taken, "c"}
    assert "2 shapes without an area are left out: 1 keypoint, 1 spline" in printed


def test_label_studio_takes_the_newest_annotation_that_is_not_cancelled(tmp_path: Path) -> None:
    label_studio(tmp_path / "a", dict.fromkeys("abc", POLYGONS))
    path = tmp_path / "a/project-1.json"
    tasks = json.loads(path.read_text())
    (old,) = tasks[0]["annotations"]
    square = {"x": 50, "y": 50, "width": 25, "height": 12.5, "rotation": 90}
    value = square | {"rectanglelabels": ["pond"]}
    size = {"original_width": 32, "original_height": 24}
    new = {"result": [{"value": value} | size], "updated_at": "2026-02-01"}
    cancelled = old | {"was_cancelled": True, "updated_at": "2026-03-01"}
    tasks[0]["annotations"] = [new, old | {"updated_at": "2026-01-01"}, cancelled]
    tasks[2] |= {"annotations": [], "predictions": [old]}
    path.write_text(json.dumps(tasks))
    masks, printed = converted(tmp_path / "a", tmp_path / "new")
    (mask,) = (mask for name, mask in masks.items() if name.endswith("a"))
    expected = np.zeros((24, 32), bool)
    expected[12:21, 13:17] = True  # turned about its upper left corner, (16, 12)
    np.testing.assert_array_equal(mask > 0, expected)
    assert "1 tasks without a submitted annotation" in printed
    assert "1 tasks have several annotations, of which the newest counts" in printed
    label_studio_min(tmp_path / "b", dict.fromkeys("abc", POLYGONS))
    path = tmp_path / "b/project-1.json"
    rows = json.loads(path.read_text())
    again = rows[0] | {"tag": rows[0]["tag"][:1], "updated_at": "2026-02-01"}
    path.write_text(json.dumps([again, *rows]))  # a row for each annotator
    masks, printed = converted(tmp_path / "b", tmp_path / "min")
    (mask,) = (mask for name, mask in masks.items() if name.endswith("a"))
    assert len(masks) == 3
    assert {*np.unique(mask)} == {0, 1}
    assert "1 tasks have several annotations, of which the newest counts" in printed
    path = tmp_path / "a/project-1.json"
    path.write_text(json.dumps(tasks[2:]))
    with pytest.raises(DataError, match="no task has an annotation; submit predictions first"):
        converted(tmp_path / "a", tmp_path / "x")


def test_pngs_of_label_studio_need_its_json(tmp_path: Path) -> None:
    label_studio(tmp_path / "a", two(POLYGONS))
    name = "task-1-annotation-1-by-1-tag-road-0.png"
    put(tmp_path / "a/photos" / name, np.zeros((24, 32), np.uint8))
    masks, printed = converted(tmp_path / "a", tmp_path / "new")
    assert len(masks) == 2
    assert name not in printed
    (tmp_path / "a/project-1.json").unlink()
    with pytest.raises(DataError, match="which image it belongs to: export JSON"):
        converted(tmp_path / "a", tmp_path / "x")


def test_cvat_draws_boxes_ellipses_and_lines_by_their_layer(tmp_path: Path) -> None:
    cvat_shapes(tmp_path / "a", two([]))
    path = tmp_path / "a/annotations.xml"
    shapes = (
        '<box label="road" xtl="4" ytl="4" xbr="8" ybr="6" rotation="90" z_order="2"/>'
        '<ellipse label="pond" cx="6" cy="5" rx="4" ry="4" z_order="1"/>'
        '<polyline label="pond" points="0,20;31,20" z_order="0"/></image>'
    )
    path.write_text(path.read_text().replace("</image>", shapes))
    y, x = np.mgrid[:24, :32]
    pond = (x + 0.5 - 6) ** 2 + (y + 0.5 - 5) ** 2 <= 16
    expected = np.where((x >= 5) & (x < 7) & (y >= 3) & (y < 7), 2, pond)
    for width in (None, 2):
        masks, printed = converted(tmp_path / "a", tmp_path / f"{width}", line_width=width)
        classes = info(tmp_path / f"{width}")["classes"]
        assert classes == ["background", "pond", "road"]
        for mask in masks.values():
            np.testing.assert_array_equal(mask[:15], expected[:15])
            assert mask[15:].sum() == (64 if width else 0)
        assert ("2 line; line_width=10" in printed) == (width is None)


def test_objects_of_supervisely_without_an_area_are_counted(tmp_path: Path) -> None:
    supervisely_shapes(tmp_path / "a", two(POLYGONS))
    for path in (tmp_path / "a").rglob("ann/*.json"):
        content = json.loads(path.read_text())
        nodes = {"classTitle": "road", "geometryType": "graph", "nodes": {}}
        cuboid = {"classTitle": "road", "geometryType": "cuboid", "points": [[1, 2]], "faces": []}
        path.write_text(json.dumps(content | {"objects": [*content["objects"], nodes, cuboid]}))
    masks, printed = converted(tmp_path / "a", tmp_path / "new")
    assert len(masks) == 2
    assert "4 shapes without an area are left out: 2 cuboid, 2 graph" in printed


def test_holes_of_supervisely_are_cut_out(tmp_path: Path) -> None:
    supervisely_shapes(tmp_path / "a", two([("road", "polygon", ROAD)]))
    for path in (tmp_path / "a").rglob("ann/*.json"):
        text = path.read_text().replace('"interior": []', '"interior": [[[5,5],[9,5],[9,9],[5,9]]]')
        path.write_text(text)
    masks, _ = converted(tmp_path / "a", tmp_path / "new")
    expected = np.zeros((24, 32), np.uint8)
    expected[3:16, 2:21], expected[5:10, 5:10] = 1, 0
    for mask in masks.values():
        np.testing.assert_array_equal(mask, expected)
    assert info(tmp_path / "new")["colours"][1] == [10, 11, 12]


def test_segments_of_coco_panoptic_are_their_categories(tmp_path: Path) -> None:
    rows = [{"id": 3, "name": "sky", "isthing": 0}, {"id": 8, "name": "car", "isthing": 1}]
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": rows}
    ids = np.zeros((24, 32), int)
    ids[:8], ids[8:16, :9], ids[8:16, 9:] = 70000, 300, 5  # and a rest without a segment
    colours = np.dstack([ids % 256, ids // 256 % 256, ids // 65536]).astype(np.uint8)
    for number in range(2):
        noise(tmp_path / f"a/val2017/{number}.png")  # called as its PNG of segments
        put(tmp_path / f"a/annotations/panoptic_val2017/{number}.png", colours)
        content["images"].append({"id": number, "file_name": f"{number}.png"})
        parts = [(70000, 3), (300, 8), (5, 8)]
        segments = [{"id": number, "category_id": category} for number, category in parts]
        entry = {"image_id": number, "file_name": f"{number}.png", "segments_info": segments}
        content["annotations"].append(entry)
    path = put(tmp_path / "a/annotations/panoptic_val2017.json", json.dumps(content))
    masks, printed = converted(tmp_path / "a", tmp_path / "new")
    assert info(tmp_path / "new")["classes"] == ["sky", "car"]
    assert len(masks) == 2
    for mask in masks.values():
        np.testing.assert_array_equal(mask, np.select([ids == 70000, ids > 0], [0, 1], 255))
    assert "left out" not in printed
    path.write_text(path.read_text().replace("70000", "70001"))
    with pytest.raises(DataError, match="has no segment 70000"):
        converted(tmp_path / "a", tmp_path / "x")


def test_kitti_has_the_classes_of_cityscapes(tmp_path: Path) -> None:
    for number in range(2):
        name = f"{number:06}_10.png"
        noise(tmp_path / "a/training/image_2" / name)
        put(tmp_path / "a/training/semantic" / name, np.repeat(np.uint8([[7, 26, 1]]), 8, 0))
        put(tmp_path / "a/training/semantic_rgb" / name, np.zeros((8, 3, 3), np.uint8))
        put(tmp_path / "a/training/instance" / name, np.zeros((8, 3), np.uint16))
        noise(tmp_path / "a/testing/image_2" / name)
        Image.open(tmp_path / "a/training/image_2" / name).crop((0, 0, 3, 8)).save(
            tmp_path / "a/training/image_2" / name
        )
    masks, _ = converted(tmp_path / "a", tmp_path / "new")
    classes = info(tmp_path / "new")["classes"]
    for mask in masks.values():
        assert [classes[mask[0, 0]], classes[mask[0, 1]], mask[0, 2]] == ["road", "car", 255]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("named", [True, False])
def test_tables_of_images_and_labels_are_read(tmp_path: Path, kind: str, named: bool) -> None:
    datasets = pytest.importorskip("datasets")
    rng, labels = np.random.default_rng(0), np.zeros((3, 24, 32), np.uint8)
    labels[:, 3:9], labels[:, 5, 5] = 1, 2
    pictures = [Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)) for _ in labels]
    rows = {"picture": pictures, "scene": [0, 1, 0]}
    features = {"picture": datasets.Image(), "scene": datasets.ClassLabel(names=["town", "sea"])}
    if named:
        rows["label"] = labels.tolist()
        label = datasets.ClassLabel(names=["background", "road", "pond"])
        features["label"] = datasets.List(datasets.List(label))
    else:
        rows["label"] = [Image.fromarray(mask) for mask in labels]
        features["label"] = datasets.Image()
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    if kind == "arrow":
        datasets.DatasetDict(train=table, validation=table).save_to_disk(tmp_path / "a")
    else:
        (tmp_path / "a").mkdir()
        for split in ("train", "validation"):
            table.to_parquet(tmp_path / f"a/{split}-00000-of-00001.parquet")
    classes = {} if named else {"data": {"classes": ["background", "road", "pond"]}}
    masks, _ = converted(tmp_path / "a", tmp_path / "new", **classes)
    assert info(tmp_path / "new")["classes"] == ["background", "road", "pond"]
    assert sorted(name.split("/")[0] for name in masks) == ["train"] * 3 + ["val"] * 3
    for mask in masks.values():
        np.testing.assert_array_equal(mask, labels[0])
    with pytest.raises(DataError, match="its columns are picture, scene, label; say which"):
        converted(tmp_path / "a", tmp_path / "x", masks="mask")


FOREIGN = {
    "via.json": ('{"a": {"regions": [{"shape_attributes": {}}]}}', "VIA's own file"),
    "export.ndjson": ('{"data_row": {}}', "Labelbox's file"),
    "a.json": ('{"item": {}, "annotations": []}', "V7 Darwin's own file"),
    "a.geojson": ('{"type": "FeatureCollection"}', "as QuPath writes it"),
    "annotations.xml": ("<annotations><track/></annotations>", "CVAT for video"),
    "a.xml": ("<annotation><object><bndbox/></object></annotation>", "Pascal VOC's boxes"),
    "old.xml": ("<annotation><object><polygon/></object></annotation>", "LabelMe's old XML"),
    "_annotations.csv": ("filename,class,xmin,ymin,xmax,ymax\n", "a table of boxes"),
    "data.yaml": ("names: [a]\nkpt_shape: [17, 3]\n", "keypoints"),
    "notes.txt": ("nothing", "no annotations of a known tool, and no masks by the names"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_formats_that_cannot_be_read_are_named(tmp_path: Path, name: str) -> None:
    content, message = FOREIGN[name]
    noise(tmp_path / "a/photo.png")
    put(tmp_path / "a" / name, content)
    with pytest.raises(DataError, match=message):
        converted(tmp_path / "a", tmp_path / "new")


def test_classes_that_differ_in_case_alone_are_an_error(tmp_path: Path) -> None:
    labelme_shapes(tmp_path / "a", two([("Road", "polygon", ROAD), ("road", "polygon", POND)]))
    with pytest.raises(DataError, match=r'Road and road differ .*"merge=\{road: Road\}"'):
        converted(tmp_path / "a", tmp_path / "x")
    converted(tmp_path / "a", tmp_path / "new", merge={"road": "Road"})
    assert info(tmp_path / "new")["classes"] == ["background", "Road"]


@pytest.mark.parametrize("name", ["labels.json", "obj.names"])
def test_lists_of_classes_in_other_forms_are_named(tmp_path: Path, name: str) -> None:
    for number in range(2):
        noise(tmp_path / f"a/images/{number}.png")
        noise(tmp_path / f"a/overlays/{number}.png")
        put(tmp_path / f"a/masks/{number}.png", np.uint8(np.eye(24, 32)))
    put(tmp_path / "a" / name, "road\npond\n")
    with pytest.raises(DataError, match="name their classes"):
        converted(tmp_path / "a", tmp_path / "x")
    labels = {0: "background", 1: "road"}
    masks, printed = converted(tmp_path / "a", tmp_path / "new", data={"classes": ["a", "b"]})
    assert len(masks) == 2
    assert "2 pictures are called like images in use and left out" in printed
    assert "without a mask" not in printed
    assert converted(tmp_path / "a", tmp_path / "2", labels=labels)[0]


def test_masks_that_are_given_count_more_than_shapes(tmp_path: Path) -> None:
    labelme_shapes(tmp_path / "a", two(POLYGONS))
    for name in "ab":
        put(tmp_path / f"a/masks/{name}.png", np.uint8(np.eye(24, 32)))
    _, printed = converted(tmp_path / "a", tmp_path / "1")
    assert "2 pictures that look like masks are left out" in printed
    settings = {"masks": "masks", "data": {"classes": ["background", "line"]}}
    masks, _ = converted(tmp_path / "a", tmp_path / "2", **settings)
    assert all((mask == np.eye(24, 32)).all() for mask in masks.values())


def test_what_lies_outside_the_image_is_cut_off() -> None:
    full = Shape("a", "mask", [(-2, 20)], mask=lambda: np.ones((9, 4), bool))
    away = Shape("a", "mask", [(40, 30)], mask=lambda: np.ones((9, 4), bool))
    corner = Shape("b", "polygon", [(28, -5), (50, -5), (50, 1), (28, 1)])
    mask, shared = draw([full, away, corner], {"a": 1, "b": 2}, (32, 24))
    expected = np.zeros((24, 32), int)
    expected[20:, :2], expected[:2, 28:] = 1, 2
    np.testing.assert_array_equal(mask, expected)
    assert shared == 0
