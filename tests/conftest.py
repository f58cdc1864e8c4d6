import os
import shlex
import shutil
import tempfile

import pytest

CACHE = tempfile.TemporaryDirectory(prefix="oncequant-cache-")  # of these tests, also of commands that they start
os.environ["ONCEQUANT_CACHE"] = CACHE.name
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side: a thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """Without a C compiler layers run eagerly, and the tests of the kernels in C have nothing to test."""
    if shutil.which(shlex.split(os.environ.get("CC", "cc"))[0]) is None:
        for item in items:
            if item.get_closest_marker("compiler"):
                item.add_marker(pytest.mark.skip(reason="no C compiler"))


@pytest.fixture(scope="session", autouse=True)
def float32_is_faster():
    """Runs that tests compare compute alike: for networks this small, which type is faster changes from run to run."""
    from oncequant import runs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "faster", lambda model, device: "float32")
        yield


# Trained once for all files that look at them. The imports wait until the lines above have set the threads.


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """The folder of `oncequant run` on digits, small and short."""
    from commands import DIGITS, call

    folder = tmp_path_factory.mktemp("digits") / "run"
    with pytest.MonkeyPatch.context() as patch:
        call(patch, "run", "--run", folder, *DIGITS)
    return folder


@pytest.fixture(scope="session")
def analysed_run(digits_run, tmp_path_factory):
    """A copy of `digits_run` with its analysis, in a folder whose name is no HTML."""
    from commands import call

    run = tmp_path_factory.mktemp("analysed") / "my <run>"
    shutil.copytree(digits_run, run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oncequant.analysis.statistics.DRAWS", 200)  # fewer, for speed
        call(patch, "analyse", run, "--evaluations", "20", "--images", "100")
    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of an OQAT training of a few steps."""
    from small_training import CONFIG, TINY, digits

    from oncequant.methods import oqat
    from oncequant.run_folder import Run

    run_dir = tmp_path_factory.mktemp("run")
    oqat.train(CONFIG, Run(run_dir, TINY, digits()))
    return run_dir


@pytest.fixture(scope="module")
def one_thread():
    """Faster for tensors of small networks, above all on busy machines."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def one_thread_and_quickly_compiled(one_thread):
    """And C is compiled with -O1."""
    from oncequant.export.compiled import FLAGS

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oncequant.export.compiled.FLAGS", ("-O1", *(flag for flag in FLAGS if flag != "-O3")))
        yield
