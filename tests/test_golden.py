"""The golden runs come out as they did."""

import json

import pytest
import torch
from golden_runs import RUNS, digest, machine, read, run


@pytest.mark.slow  # for changes that must not change results
@pytest.mark.parametrize("name", RUNS)
def test_golden_run(name, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(name, tmp_path / name)
        found, expected = json.loads(json.dumps(digest(tmp_path / name))), read(name)
    finally:
        torch.set_num_threads(threads)
    if expected["machine"] == machine():
        for part in expected:
            assert found[part] == expected[part], part
        return
    shapes = [
        {net: {key: shape for key, (shape, _) in tensors.items()} for net, tensors in of["tensors"].items()}
        for of in (found, expected)
    ]
    assert shapes[0].items() >= {k: v for k, v in shapes[1].items() if "samples" not in k}.items()
    for path, rows in expected["metrics"].items():
        if "samples" not in path:  # which networks are drawn depends on rounding
            assert [row["loss"] for row in found["metrics"][path]] == pytest.approx(
                [row["loss"] for row in rows], rel=0.3
            )
    costs = [{json.dumps(m["arch"]): m["costs"] for m in of["measurements"]} for of in (found, expected)]
    assert all(costs[0][arch] == costs[1][arch] for arch in costs[0].keys() & costs[1].keys())
