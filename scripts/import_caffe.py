"""Convert the FCN authors' published Caffe weights."""

from fcn.cli import run

if __name__ == "__main__":
    run("import_caffe")
