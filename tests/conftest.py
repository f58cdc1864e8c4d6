import os
import shlex
import shutil

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side: a thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """Without a C compiler layers run eagerly, and the tests of the kernels in C have nothing to test."""
    if shutil.which(shlex.split(os.environ.get("CC", "cc"))[0]) is None:
        for item in items:
            if item.get_closest_marker("compiler"):
                item.add_marker(pytest.mark.skip(reason="no C compiler"))
