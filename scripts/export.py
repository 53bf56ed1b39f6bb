"""Write a checkpoint as ONNX, .pt2 or safetensors, checked against the model."""

from fcn.cli import run

if __name__ == "__main__":
    run("export")
