"""Supervisely's masks: obj_class_to_machine_color.json, DATASET/img/NAME, DATASET/masks_machine."""

from dataclasses import replace

from fcn.convert.export import Export, Reading
from fcn.convert.export_folder import ExportFolder
from fcn.convert.formats.class_lists import colour_list, json_files, listed_export


def read(folder: ExportFolder, reading: Reading) -> Export | None:
    black = {"background": [0, 0, 0]}
    lists = [
        colour_list(path, [*(black | rows).items()])
        for path, rows in json_files(folder.named("obj_class_to_machine_color.json"))
    ]
    if not lists:
        return None
    export = listed_export("Supervisely masks", folder, lists, replace(reading, colours=True))
    return replace(export, colours=black | class_colours(folder))


def class_colours(folder: ExportFolder) -> dict[str, list[int]]:
    """Return the classes of a project and the colours that people see."""
    entries = [
        entry
        for _, content in json_files(folder.named("meta.json"), '"classes"')
        for entry in content["classes"]
    ]
    return {entry["title"]: list(bytes.fromhex(entry["color"].lstrip("#"))) for entry in entries}
