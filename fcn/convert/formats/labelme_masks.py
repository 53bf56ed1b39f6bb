"""What labelme2voc writes: class_names.txt, JPEGImages, masks in PNG, or in .npy with -1: ignored."""

from fcn.convert.export import Export, Reading
from fcn.convert.export_folder import ExportFolder
from fcn.convert.formats.class_lists import ClassList, listed_export
from fcn.data.dataset import read_list


def read(folder: ExportFolder, reading: Reading) -> Export | None:
    lists = []
    for path in folder.named("class_names.txt"):
        names = [name for name in read_list(path) if name != "__ignore__"]  # the first, of -1
        lists.append(ClassList(path, dict(enumerate(names))))
    if not lists:
        return None
    folder.masks = [path for path in folder.masks if path.suffix != ".npy"] or folder.masks
    return listed_export("labelme's VOC export", folder, lists, reading)
