"""What a user may get wrong, in one table: each is refused in one line that says what to do.

What is refused leaves nothing behind, and changes nothing that was there.
"""

import copy
import io
import math
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from fcn.checks.training import check
from fcn.checks.values import check_values
from fcn.config import REPOSITORY, SCHEMAS, ConfigError
from fcn.inference import checkpoint
from fcn.messages import explain
from fcn.models.fcn import FCN
from tests.conftest import TinyVOC, refusal
from tests.test_config import composed
from tests.test_scripts import QUICK, script

DATA = ["data=voc2012", "data.name=tiny", "data.root=.", "data.folder=tiny"]
DATA += ["data.classes=[background,cat,dog]", "data.num_workers=0"]
BASE = {  # what a row's arguments are added to, or take the place of
    "train": [*DATA, *QUICK],
    "evaluate": [*DATA, "checkpoint=m.safetensors"],
    "predict": ["checkpoint=m.safetensors", "input=photos", "output=out"],
    "export": ["checkpoint=m.safetensors", "output=net.onnx"],
    "import_caffe": ["caffemodel=file", "output=net.safetensors"],
    "prepare_data": [*DATA, "processes=1"],
    "explain": ["explain=matrix"],
    "ablate": ["models=[fcn32s]", "upsamplings=[fixed]", "seeds=[0]"],
    "report": ["runs=[run]"],
    "benchmark": [*DATA, "backbone=mini", "quick=true", "hydra.run.dir=speed"],
}
UNFIT = "tiny/SegmentationClass/v0.png: label 255 is out of range: 3 classes are 0..2, void is 1"

# By script: arguments (a list where one holds a space), and what the message must contain.
TABLE: dict[str, list[tuple[str | list[str], str]]] = {
    "train": [
        # the command line itself
        ("nonsense", "'nonsense' is no setting; give key=value"),
        (["recipe.lr", "=0.1"], "'recipe.lr' is no setting; give key=value, without spaces"),
        (["recipe.lr=", "0.1"], "'0.1' is no setting"),
        ([""], "'' is no setting"),
        ("--nonsense", "unrecognized arguments: --nonsense; flags come before or after all"),
        ("-m seed=1,2", "unrecognized arguments: seed=1,2; flags come before or after all"),
        ("--cfg all_of_it", "--cfg/-c: invalid choice: 'all_of_it'"),
        ("data.root=[a", "cannot read data.root=[a; close every bracket and quote"),
        (["data.root='a b"], """quote the value whole: 'data.root="a b"'"""),
        ("data.root=it's", "cannot read data.root=it's"),
        ("data.root=a=b", """cannot read data.root=a=b; .* 'data.root="a=b"'"""),
        ("data.root=\N{SLIGHTLY SMILING FACE}", "quote the value whole"),
        ("recipe.lr=0.1,0.2", "Ambiguous value for argument 'recipe.lr=0.1,0.2'"),
        ("model.strid=8", "unknown key model.strid: did you mean model.stride? choices: model."),
        ("modle=fcn8s", "unknown key modle: did you mean model?"),
        ("recipe.learning_rate=1", "unknown key recipe.learning_rate: .*recipe.lr,"),
        ("trainer.max_epochs=3", "unknown key trainer.max_epochs: did you mean trainer.max_steps?"),
        ("+recipe.lrr=1", "unknown key recipe.lrr: did you mean recipe.lr?"),
        ("+nonsense=1", "unknown key nonsense: choices: data, seed"),
        ("hydra.run.dri=x", "unknown key hydra.run.dri: did you mean hydra.run.dir?"),
        ("~recipe.lr", "recipe.lr: cannot be left out"),
        ("~recipe", "recipe.name: .* missing mandatory value"),
        ("model=fcn9s", "model=fcn9s: there is no such choice; did you mean fcn8s? choices: fcn16"),
        ("upsampling=bicubic", "upsampling=bicubic: there is no such choice; choices: cvpr15, fix"),
        ("backbone=vgg12", "choices: mini, vgg11"),
        ("data=coco", "data=coco: there is no such choice; choices: folder, sbd, shapes"),
        ("recipe=heavvy", "did you mean heavy?"),
        ("experiment=voc_minni", "did you mean voc_mini?"),
        ("experiment=key --config-dir=mine", "experiment/key: unknown key recipe.lrr: did you"),
        ("experiment=type --config-dir=mine", "experiment/type: recipe.lr: Value 'fast' of type"),
        ("experiment=tab --config-dir=mine", "not readable as YAML: .*tab.yaml\", line 3"),
        ("--multirun resume=last", "resume goes on with one run; leave out --multirun"),
        # types and ranges
        ("recipe.lr=", "recipe.lr: Value '' of type 'str' could not be converted to Float"),
        ("recipe.max_steps=many", "recipe.max_steps: Value 'many' of type 'str' could not be conv"),
        ("recipe.flip=7.5", "recipe.flip: Value '7.5' is not a valid bool"),
        ("data.root=null", "data.root: cannot be null"),
        ("data.root=", "data.root is empty; give it a value, or leave it out"),
        ("data.classes=background", "data.classes: wants a list: [a,b]"),
        ("recipe.lr=nan", "recipe.lr must be a finite number, got nan"),
        ("recipe.lr=null", "recipe=sample has no learning rate for model fcn8s; set recipe.lr"),
        ("recipe.max_steps=0", "recipe.max_steps must be at least 1, got 0"),
        ("recipe.scale=[0,1]", "recipe.scale must be [from, to] with 0 < from <= to, got [0.0, 1."),
        ("recipe.crop=null", "recipe.scale resizes crops: set recipe.crop, or leave whole images"),
        # what does not fit together
        ("recipe.loss_reduction=sum", "recipe.lr=0.003 does not fit recipe.loss_reduction=sum"),
        ("recipe=heavy recipe.loss_reduction=mean", "recipe.lr=1e-14 does not fit"),
        ("recipe=heavy", "model=fcn8s straight from VGG does not fit recipe=heavy: .*fcn8s_atonce"),
        ("recipe=heavy model.name=mine", "no learning rate for model mine; set recipe.lr"),
        ("recipe=heavy model=fcn32s recipe.accumulate=2", "does not fit recipe.accumulate > 1"),
        ("recipe=heavy model=fcn32s recipe.precision=16-mixed", "a sum .* overflows float16"),
        ("recipe=heavy model=fcn32s trainer.devices=2", "sum does not fit several processes"),
        # Lightning's trainer
        ("trainer.precision=16-mixed", "trainer.precision=16-mixed wants a GPU; use bf16-mixed"),
        ("trainer.devices=0", "trainer.devices must be auto, how many, -1 for all, or which"),
        ("trainer.devices=[7]", "trainer.*, as Lightning has it: `devices` selected with `CPUAcce"),
        ("trainer.strategy=ddpp", "trainer.*, as Lightning has it: .*`strategy='ddpp'`"),
        ("trainer.profiler=fast", "trainer.*, as Lightning has it: .*`profiler`.*'simple'"),
        ("trainer.limit_val_batches=1.5", "trainer.limit_val_batches must be .*got 1.5"),
        # the net and its weights
        ("model.stride=12", "model.stride must be one of 32, 16, 8, got 12"),
        ("+model.skip_scales.pool3=nan", "model.skip_scales.pool3 must be a finite number"),
        ("+model.skip_scales.pool2=1", "skip_scales names ['pool2'], which stride 8 lacks"),
        ("model.skip_scales.pool3=1", "+model.skip_scales.pool3=VALUE adds it"),
        ("backbone.width=0", "backbone.width must be at least 1, got 0"),
        ("backbone.weights=imagenet", "backbone.weights=imagenet: the mini backbone has none"),
        ("backbone=vgg11 backbone.weights=V9", "backbone.weights must be a file or .* IMAGENET1K_"),
        ("backbone.weights=nowhere.pth", "nowhere.pth: no such weights file"),
        ("backbone.weights=vgg.pth", "vgg.pth: no features.0.bias in it, which backbone.conv1_1"),
        ("model.init_from=notes.ckpt", "notes.ckpt: damaged, or not a checkpoint of this project"),
        ("model.init_from=vgg.pth", "vgg.pth: not a checkpoint of this project"),
        # data
        ("data.root=nowhere", "nowhere/tiny: no such data set; .*set data.root to the folder that"),
        (["data.root='my data, v=2'"], "my data, v=2/tiny: no such data set"),
        ("data=shapes data.root=file", "data.root=file: the sample cannot be drawn there"),
        ("data=shards data.root=empty", "empty/train.json: no such index"),
        ("data=folder data.root=empty", "empty/images/train: no such folder; data=folder wants"),
        ("data=sbd data.root=empty", "train.txt: no such list; unpack SBD's benchmark.tgz"),
        ("data=voc2012 data.root=empty", "empty/VOCdevkit/VOC2012: no such data set; unpack"),
        ("data.masks=Masks", "tiny/Masks: no such folder; data=tiny needs it"),
        ("data.train_split=trian", "trian.txt: no such list; splits there: empty, "),
        ("data.val_split=empty", "empty.txt): no images listed; name one a line"),
        ("data.train_split=twice", "t0 is listed twice; a list must name each image once"),
        ("data.train_split=gone", "JPEGImages/gone.jpg: image not found; put it there or take it"),
        ("data.val_split=train", "4 images are in both .*; take them off one of the lists"),
        ("data.classes=[a,b,a]", "data.classes must name each one once, got a 2 times"),
        ("data.num_workers=100000", "got 100000"),
        ("data.url=elsewhere/", "data.url says where to fetch from; add data.download=true"),
        ("data.checksum=md5:1", "data.checksum is of the archive at data.url; give that too"),
        ("data.download=true data.url=a data.checksum=md5:1", "data.checksum must be md5:, sha1:"),
        ("data.download=true", "nothing is known to fetch for data=tiny"),
        # run folders, stages, going on
        ("hydra.run.dir=", "hydra.run.dir is empty; name a folder, or leave it out"),
        ("hydra.run.dir=file", "hydra.run.dir: no folder can be made there (file: File exists)"),
        ("hydra.run.dir=run", "run holds a run already; resume=last goes on with it, another"),
        ("resume=nowhere.ckpt", "resume=nowhere.ckpt: no checkpoint at nowhere.ckpt; name RUN/ch"),
        ("resume=run", "resume=run: no checkpoint at run; name RUN/checkpoints/last.ckpt"),
        ("resume=last", "resume=last: no run with a checkpoint below outputs/train; give a path"),
        ("resume=last hydra.run.dir=new", "new/checkpoints; name another run"),
        ("resume=last hydra.run.dir=run recipe.lr=-1", "recipe.lr must be positive"),
        ("resume=run/checkpoints/last.ckpt model=fcn16s", "its model differs in stride; use init"),
        ("resume=run/checkpoints/last.ckpt data.classes=[a,b,c]", "trained with data.classes=['b"),
        ("resume=run/checkpoints/last.ckpt recipe.optimizer=sgd", "optimizer=adamw, not sgd"),
        ("resume=run/checkpoints/last.ckpt model.init_from=a", "leave out model.init_from"),
        ("resume=m.safetensors model=fcn32s", "weights alone, without the optimiser's state"),
        ("resume=cut.ckpt", "cut.ckpt: damaged, or not a checkpoint of this project"),
        ("stages=[fcn32s,fcn4s]", "stages: no model fcn4s; choices: fcn16s, fcn32s, fcn8s"),
        ("stages=[fcn16s,fcn32s]", "stages go from coarse to fine, each stride once"),
        ("stages=[fcn32s,fcn16s] resume=a/b.ckpt", "stages go on with resume=last hydra.run.dir="),
    ],
    "evaluate": [
        ("checkpoint=null", "give checkpoint=PATH, a .ckpt or .safetensors of this project"),
        ("checkpoint=", "checkpoint is empty"),
        ("checkpoint=nowhere.ckpt", "nowhere.ckpt: no such checkpoint"),
        ("checkpoint=empty", "empty: no such checkpoint"),
        ("checkpoint=notes.ckpt", "notes.ckpt: damaged, or not a checkpoint of this project"),
        ("checkpoint=photos/a.jpg", "photos/a.jpg: damaged, or not a checkpoint"),
        ("checkpoint=cut.safetensors", "cut.safetensors: damaged, or not a checkpoint"),
        ("checkpoint=vgg.pth", "vgg.pth: not a checkpoint of this project (it describes no model)"),
        ("data.classes=[a,b,c]", "scores background, cat, dog; data=tiny has a, b, c; choose the"),
        ("data.split=tset", "tset.txt: no such list; splits there: empty, "),
        ("data.ignore_index=1", UNFIT),
        ("batch_size=0", "batch_size must be at least 1, got 0"),
        ("device=quantum", "device must be one of auto, cpu, cuda, mps, got 'quantum'"),
        ("device=cuda:99", "device=cuda:99: not to be had here"),
        ("precision=fp8", "precision must be one of auto, 32-true, bf16-mixed, got 'fp8'"),
        ("submission=true", "submission=true is for Pascal VOC's server, not data=tiny"),
        ("hydra.run.dir=file", "hydra.run.dir: no folder can be made there"),
        ("split=val", "unknown key split: choices: data, "),
    ],
    "predict": [
        ("checkpoint=null", "give checkpoint=PATH"),
        ("input=null", "give input=FILE, FOLDER, PATTERN or -, and output=FOLDER to write to"),
        ("output=", "output is empty; give it a value, or leave it out"),
        ("checkpoint=none.ckpt", "none.ckpt: no such checkpoint"),
        ("input=nowhere", "input=nowhere: no such file or folder"),
        ("input=empty", "input=empty: no image there of an ending that Pillow reads"),
        ("input=photos/*.tif", "input=photos/*.tif: no image there"),
        ("input=-", "input=-: no paths on standard input; give one a line"),
        ("output=photos", "output=photos is the input folder itself; choose another"),
        ("output=file", "output: nothing can be written to file (file: not a directory)"),
        ("output=file/masks", "output: nothing can be written to file/masks ("),
        ("tile=100", "tile=100 is too small: .*give at least"),
        ("tile=-1", "tile=-1 is too small"),
        ("tile=huge", "tile must be auto, null or a number of pixels, got huge"),
        ("scales=[]", "scales must be positive factors, got []"),
        ("scales=[1,0]", "scales must be positive factors, got [1.0, 0.0]"),
        ("scales=[nan]", "scales[0] must be a finite number, got nan"),
        ("scales=1", "scales: wants a list: [a,b]"),
        ("flip=often", "flip: Value 'often' is not a valid bool"),
        ("precision=fp8", "precision must be one of auto, 32-true, bf16-mixed"),
        ("device=abacus", "device must be one of auto, cpu, cuda, mps, got 'abacus'"),
        ("batch_size=0", "batch_size must be at least 1, got 0"),
        ("overlay=false", "unknown key overlay: did you mean overlays?"),
    ],
    "export": [
        ("output=null", "give checkpoint=PATH to export and output=FILE to write"),
        ("checkpoint=notes.ckpt", "notes.ckpt: damaged, or not a checkpoint"),
        ("format=tflite", "format must be one of onnx, torch_export, safetensors, got 'tflite'"),
        ("input=int8", "input must be one of float, uint8, got 'int8'"),
        ("output=a.pt2", "output must end in .onnx for format=onnx, got a.pt2"),
        ("format=safetensors output=m.safetensors", "the checkpoint itself; name a new file"),
        ("format=safetensors output=a.safetensors argmax=true", "holds weights, no graph"),
        ("output=file/net.onnx", "output: nothing can be written to file (file: not a directory)"),
    ],
    "import_caffe": [
        ("caffemodel=null", "give caffemodel=FILE to import and output=FILE.safetensors to write"),
        ("caffemodel=nowhere", "nowhere: no such caffemodel"),
        ("", "file: cut short, damaged or no .caffemodel, at byte 0"),
        ("output=b.pth", "output must be a file that ends in .safetensors, got b.pth"),
        ("output=file/b.safetensors", "output: nothing can be written to file"),
        ("model=alexnet", "model=alexnet: there is no such choice; choices: fcn16s, fcn32s"),
        ("model.name=alexnet", "model.name must be one of fcn32s, fcn16s, fcn8s, fcn8s_atonce, v"),
        ("mean_bgr=[1]", "mean_bgr must be three numbers, got [1.0]"),
        ("mean_bgr=[1,2,nan]", "mean_bgr[2] must be a finite number"),
        ("classes=[a,a]", "classes must name each one once, got a 2 times"),
    ],
    "prepare_data": [
        ("processes=0", "processes must be in 1.."),
        ("data.download=true", "nothing is known to fetch for data=tiny"),
        ("shards=file", "shards: nothing can be written to file (file: not a directory)"),
        (["data.val_split='my val'", "shards=new"], "'my val' cannot name a split of shards"),
        ("data.num_workers=-1", "data.num_workers must be in 0.."),
        ("data.classes=[a]", "data.classes must name 2..255"),
    ],
    "explain": [
        ("explain=magic", "explain must be one of all, matrix, arithmetic, operators, .*'magic'"),
        ("steps=0", "steps must be at least 1, got 0"),
        ("seed=-1", "seed must be in 0..4294967295, got -1"),
        ("data=voc2012", "data=voc2012 needs checkpoint=, a net trained on it"),
        ("image=a", "image=a is for topics about a net, not explain=matrix"),
        ("checkpoint=nowhere.ckpt", "nowhere.ckpt: no such checkpoint"),
        ([*DATA, "checkpoint=m.safetensors", "image=a"], "image=a: no such id in tiny val.*has v0"),
        ([*DATA, "checkpoint=m.safetensors", "data.classes=[a,b]"], "m.safetensors scores backgr"),
    ],
    "ablate": [
        ("models=[fcn64s]", "models must be one of fcn16s, fcn32s, fcn8s, fcn8s_atonce, got 'fcn6"),
        ("models=[]", "models must name at least one, and none twice, got []"),
        ("upsamplings=[fixed,fixed]", "upsamplings must name at least one, and none twice"),
        ("seeds=[1,1]", "seeds must name at least one, and none twice, got [1, 1]"),
        ("seeds=[-1]", "seeds must be in 0..4294967295, got -1"),
        ("jobs=0", "jobs must be in 1.."),
        ("time_rounds=-1", "time_rounds must be at least 0, got -1"),
        ("overrides=['seed=3']", "overrides: seed=3 is the grid's own to set"),
        ("overrides=['recipe.lrr=3']", "overrides: unknown key recipe.lrr: did you mean recipe.lr"),
        ("overrides=['recipe.lr=-3']", "overrides: recipe.lr must be positive, got -3.0"),
        ("overrides=['data=coco']", "overrides: data=coco: there is no such choice"),
        ("overrides=[nonsense]", "overrides: 'nonsense' is no setting; give key=value"),
    ],
    "report": [
        ("runs=[]", "give runs=[FOLDER,...], folders that train.py or evaluate.py left"),
        ("runs=run", "runs: wants a list: [a,b]"),
        ("runs=[nowhere]", "nowhere/metrics.json: not found; a run is a folder that train.py or"),
        ("runs=[run,run]", "runs names a folder twice: run, run"),
        ("output=page.pdf", "output must be a file that ends in .html, got page.pdf"),
        ("output=file/page.html", "output: nothing can be written to file"),
        ("images=0", "images must be at least 1, got 0"),
        ("device=quantum", "device must be one of auto, cpu, cuda, mps, got 'quantum'"),
        ("data.root=nowhere", "nowhere/tiny: no such data set"),
        ("run=[a]", "unknown key run: did you mean runs?"),
    ],
    "benchmark": [
        ("parts=[]", "parts must name at least one, and none twice, got []"),
        ("parts=[nets,nets]", "parts must name at least one, and none twice"),
        ("parts=[nets,speed]", "parts must be one of nets, sizes, .*got 'speed'"),
        ("part=[nets]", "unknown key part: did you mean parts?"),
        ("--fast", "unrecognized arguments: --fast"),
        ("size=[375]", "size must be [height, width], got [375]"),
        ("size=[375,8]", "size must be at least 64, got 8"),
        ("sides=[128,0]", "sides must be at least 64, got 0"),
        ("sides=[]", "sides must name at least one"),
        ("batches=[0]", "batches must be at least 1, got 0"),
        ("num_classes=1", "num_classes must be in 2..255, got 1"),
        ("rounds=0", "rounds must be at least 1, got 0"),
        ("seconds=0", "seconds must be positive, got 0.0"),
        ("precision=fp8", "precision must be one of auto, 32-true, bf16-mixed, got 'fp8'"),
        ("device=quantum", "device must be one of auto, cpu, cuda, mps, got 'quantum'"),
        ("recipe.optimizer=lion", "recipe.optimizer must be one of sgd, adamw, got 'lion'"),
        ("recipe.lr=null", "recipe=modern has no learning rate for model fcn8s; set recipe.lr"),
        ("backbone.name=vgg12", "backbone must be one of vgg11, .*got 'vgg12'"),
        ("data.root=nowhere", "nowhere/tiny: no such data set"),
        ("data.split=nowhere", "nowhere.txt: no such list"),
    ],
}  # fmt: skip


# Of train.py: values that each of these keys must refuse.
RANGES: dict[str, list[Any]] = {
    "seed": [-1, 2**32],
    "data.layout": ["coco"],
    "data.classes": [["background"], ["a", "b", "a"], ["a", ["b"]], ["a"] * 256],
    "data.ignore_index": [-1, 256],
    "data.num_workers": [-1, 10_000],
    "data.checksum": ["md5:1"],
    "model.stride": [0, 12, 64],
    "model.padding": [-1, 50, "same"],
    "model.dropout": [-0.1, 1.0],
    "model.skip_scales": [{"pool4": 0.0}, {"pool4": -1.0}],
    "backbone.width": [0, -1],
    "backbone.head_width": [0, -1],
    "recipe.lr": [0.0, -1.0],
    "recipe.optimizer": ["adam"],
    "recipe.schedule": ["step"],
    "recipe.loss_reduction": ["none"],
    "recipe.precision": ["half", "16", "16-true"],
    "recipe.momentum": [-0.1, 1.0],
    "recipe.ema_decay": [-0.1, 1.0],
    "recipe.weight_decay": [-0.1],
    "recipe.bias_lr_factor": [-0.1],
    "recipe.jitter": [-0.1, 1.1],
    "recipe.warmup_steps": [-1],
    "recipe.max_steps": [0],
    "recipe.val_every": [0],
    "recipe.batch_size": [0],
    "recipe.accumulate": [0],
    "recipe.crop": [0],
    "recipe.scale": [[0.0, 1.0], [2.0, 1.0], [1.0], []],
    "trainer.accelerator": ["tpu"],
    "trainer.precision": ["foo", "16"],
    "trainer.devices": [0, -2, 1.5, "some", [], [0, 0], [-1], ["a"], True],
    "trainer.num_nodes": [0],
    "trainer.max_steps": [0, -1],
    "trainer.accumulate_grad_batches": [0],
    "trainer.gradient_clip_val": [0.0, -1.0],
    "trainer.val_check_interval": [0],
    "trainer.limit_val_batches": [-1, 1.5, -0.5],
    "trainer.num_sanity_val_steps": [-2],
    "trainer.log_every_n_steps": [-1],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, a short run, and files of the kinds that a user may mix up."""
    root = tmp_path_factory.mktemp("errors")
    data = TinyVOC(root)
    model = FCN(stride=32, num_classes=3, backbone="mini", width=4, head_width=8)
    checkpoint.write_safetensors(root / "m.safetensors", model, {"classes": data.classes})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run_script(patch, "train", [*BASE["train"], "hydra.run.dir=run"])
    for source in ("m.safetensors", "run/checkpoints/last.ckpt"):
        content = (root / source).read_bytes()
        (root / f"cut{Path(source).suffix}").write_bytes(content[: len(content) // 2])
    torch.save({"features.0.weight": torch.zeros(4, 3, 3, 3)}, root / "vgg.pth")  # torchvision's
    (root / "notes.ckpt").write_text("not a checkpoint")
    (root / "file").write_text("a file")
    (root / "empty").mkdir()
    (root / "photos").mkdir()
    shutil.copy(data.image("t0"), root / "photos" / "a.jpg")
    for split, ids in {"empty": "\n", "twice": "t0\nt0\n", "gone": "t0\ngone\n"}.items():
        data.listing(split).write_text(ids)
    (root / "mine" / "experiment").mkdir(parents=True)
    for name, line in {"key": "  lrr: 1", "type": "  lr: fast", "tab": "\tlr: 1"}.items():
        file = root / "mine" / "experiment" / f"{name}.yaml"
        file.write_text(f"# @package _global_\nrecipe:\n{line}\n")
    return root


def run_script(patch: pytest.MonkeyPatch, name: str, arguments: list[str]) -> None:
    """Runs scripts/NAME.py in this process, as Python would by itself."""
    GlobalHydra.instance().clear()
    patch.setattr(sys, "argv", [f"{name}.py", *arguments])
    runpy.run_path(str(REPOSITORY / "scripts" / f"{name}.py"), run_name="__main__")


def command_line(name: str, arguments: str | list[str]) -> list[str]:
    """A row's arguments, after those of BASE that they do not replace."""
    given = arguments.split() if isinstance(arguments, str) else arguments
    keys = {argument.partition("=")[0] for argument in given}
    base = [argument for argument in BASE[name] if argument.partition("=")[0] not in keys]
    if "data" in keys:
        base = [argument for argument in base if not argument.startswith("data.")]
    return [*base, *given]


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file's bytes, and every folder."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


ROWS = [(name, *row) for name, rows in TABLE.items() for row in rows]


@pytest.mark.parametrize(("name", "arguments", "words"), ROWS, ids=lambda value: str(value)[:50])
def test_it_is_refused_in_one_line_and_leaves_nothing(
    root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    arguments: str | list[str],
    words: str,
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    # Hydra composes all settings twice, first only to learn of its own mode: once will do here.
    monkeypatch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)
    before = contents(root)
    error = refusal(capsys, name, *command_line(name, arguments))
    assert re.search(".*".join(map(re.escape, words.split(".*"))), error), error
    assert "Error" not in error.partition(":")[0]
    assert contents(root) == before


@pytest.mark.parametrize("given", ["debug=true", "debug=Yes", "debug=1"])
def test_debug_shows_where(root: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.chdir(root)
    with pytest.raises(ConfigError, match="give checkpoint=PATH"):
        run_script(monkeypatch, "predict", [given])


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("train", ["modle=fcn8s"], "unknown key modle: did you mean model?"),
        ("train", ["--nonsense"], "unrecognized arguments: --nonsense"),
        ("train", ["data.root=caf\udce9"], "cannot read data.root=caf"),
        ("predict", [], "give checkpoint=PATH"),
        ("export", ["checkpoint=a", "output=file/a.onnx"], "output: nothing can be written to"),
        ("report", ["runs=[a]", "images=0"], "images must be at least 1, got 0"),
    ],
)
def test_in_a_process_of_its_own_too(
    root: Path, name: str, arguments: list[str], words: str
) -> None:
    done = script(name, *arguments, folder=root)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"error: .*{re.escape(words)}.*\n", done.stderr), done.stderr


def test_in_a_process_debug_shows_the_traceback(root: Path) -> None:
    done = script("predict", "debug=true", folder=root)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert "ConfigError: give checkpoint=PATH" in done.stderr


def test_values_out_of_range_are_refused_by_name() -> None:
    sound = composed("model=fcn8s_atonce", "data.url=a/", "data.download=true")
    check(sound)
    for key, values in RANGES.items():
        *parents, name = key.split(".")
        for value in values:
            settings: Any = copy.deepcopy(sound)
            vars(reduce(getattr, parents, settings))[name] = value
            with pytest.raises(ConfigError, match=rf"{key}[.\w]* must (be|name) "):
                check(settings)


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_of_any_script_may_be_infinite_or_none(name: str, value: float) -> None:
    """Every float key there is, found by its type."""
    for key, settings in with_every_float(SCHEMAS[name], value):
        with pytest.raises(ConfigError, match=re.escape(f"{key} must be a finite number")):
            check_values(settings)


def with_every_float(schema: Any, value: float) -> Iterator[tuple[str, Any]]:
    """The schema's defaults with one float, or one item of a list or dictionary, set to value."""
    for field in fields(schema):
        if is_dataclass(field.type):
            for key, inner in with_every_float(field.type, value):
                yield f"{field.name}.{key}", replace(schema(), **{field.name: inner})
        elif "float" in str(field.type):
            for kind, put, part in (("list", [value], "[0]"), ("dict", {"a": value}, ".a")):
                if kind in str(field.type):
                    yield field.name + part, replace(schema(), **{field.name: put})
                    break
            else:
                yield field.name, replace(schema(), **{field.name: value})


def test_a_run_that_fails_after_its_start_keeps_its_settings(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label that no class has shows only when its mask is read."""
    monkeypatch.chdir(root)
    arguments = command_line("train", "data.classes=[background,cat] hydra.run.dir=unfit")
    error = refusal(capsys, "train", *arguments)
    assert "label 2 is out of range: 2 classes are 0..1, void is 255 (data.classes" in error
    recorded = (root / "unfit" / ".hydra" / "overrides.yaml").read_text()
    assert "data.classes=[background,cat]" in recorded
    shutil.rmtree(root / "unfit")


def test_a_sweep_counts_its_failures(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    error = refusal(capsys, "evaluate", "checkpoint=none.ckpt,no.ckpt,null", "--multirun")
    assert error == "error: none.ckpt: no such checkpoint (and 2 more runs failed)\n"


def test_memory_that_does_not_suffice_is_named_as_such() -> None:
    with pytest.raises(RuntimeError) as failure:
        torch.empty(2**60)
    words = "out of memory; give a smaller recipe.batch_size or recipe.crop ("
    assert explain(failure.value, "train").startswith(words)
