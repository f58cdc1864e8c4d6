"""What other tools make of exported ONNX files: their size, and whether ONNX Runtime still gives the same logits.

python recipes/other_tools.py runs/A/exports/*/model.onnx

A row for each file and tool that is installed here: `pip install onnxsim onnxslim`, in an environment of its own. It
needs of this package nothing, so `python recipes/other_tools.py --load FILES` also runs where an older ONNX Runtime is.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

IMAGES = 200


def logits_of(path, seed=0):
    """Logits of random pixels, (IMAGES, classes)."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    _, channels, side, _ = session.get_inputs()[0].shape
    pixels = np.random.default_rng(seed).integers(0, 256, (IMAGES, channels, side, side)).astype(np.float32)
    return session.run(None, {session.get_inputs()[0].name: pixels})[0]


def simplified(path, out):
    """By onnxsim, as its command does."""
    import onnx
    import onnxsim

    model, _ = onnxsim.simplify(onnx.load(path))
    onnx.save(model, out)


def slimmed(path, out):
    """By onnxslim, as its command does."""
    import onnxslim

    onnxslim.slim(str(path), str(out))


def main(paths):
    """Print a row for each file and tool."""
    print(f"ONNX Runtime {onnxruntime.__version__}")
    load_only = "--load" in paths
    for path in (path for path in paths if path != "--load"):
        try:
            before = logits_of(path)
        except Exception as error:  # of whatever kind the runtime has for it
            print(f"{path}: does not load: {str(error).splitlines()[0][:150]}")
            continue
        print(f"{path}: {Path(path).stat().st_size} bytes, loads")
        for name, tool in {} if load_only else {"onnxsim": simplified, "onnxslim": slimmed}.items():
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "model.onnx"
                try:
                    tool(path, out)
                    after = logits_of(out)
                except Exception as error:
                    print(f"  {name}: fails: {type(error).__name__}: {str(error).splitlines()[0][:150]}")
                    continue
                equal, same = (after == before).all(1).mean(), (after.argmax(1) == before.argmax(1)).mean()
                shown = f"{out.stat().st_size} bytes, equal logits {equal:.1%}, equal answers {same:.1%}"
                print(f"  {name}: {shown}, largest difference {np.abs(after - before).max():.3g}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
