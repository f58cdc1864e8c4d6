"""The commands of docs/deploy.md, in their order, from a folder of pictures to what a board is given."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import TRAINING, call
from PIL import Image
from sklearn.datasets import load_digits

from oncequant.files import read_json

PAGE = (Path(__file__).parent.parent / "docs" / "deploy.md").read_text()
pytestmark = pytest.mark.usefixtures("one_thread_and_quickly_compiled")


def test_every_command_from_pictures_to_a_board(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images[:300], digits.target)):
        folder = tmp_path / "pictures" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype("uint8")).save(folder / f"{i}.png")
    (program,) = re.findall(r"```c\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "main.c").write_text(program)
    lines = "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).splitlines()
    ran = []
    for line in lines:
        command, *words = shlex.split(line)
        if command == "oncequant":
            call(monkeypatch, *words, *(TRAINING if words[0] == "run" else ()))  # for a minute less
        elif shutil.which(command):
            found = subprocess.run([command, *words], capture_output=True, text=True, check=True)
            assert command != "make" or "20 of 20 pictures equal" in found.stdout
            if command.endswith("size"):
                text = int(found.stdout.splitlines()[1].split()[0])
        ran.append(command)
    assert ran.count("oncequant") >= 4 and "make" in ran
    members = {member["name"]: member for member in read_json(tmp_path / "runs/pictures/family.json")}
    costs = members["2bit-cortex-m4"]["costs"]
    assert costs["ram_bytes"] <= 60 * 1024 and costs["flash_bytes"] <= 120 * 1024
    assert shutil.which("arm-none-eabi-size") is None or text <= costs["flash_bytes"]
    assert members["2bit-flash_bytes60k-nano-33-ble"]["costs"]["flash_bytes"] <= 60_000
    files = Path("runs/pictures/exports/2bit-cortex-m4")
    built = ["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", f"-I{files}", "main.c"]
    subprocess.run([*built, str(files / "network.c"), "-o", "program"], check=True)
    assert subprocess.run(["./program"], capture_output=True, text=True, check=True).stdout.strip() in map(
        str, range(10)
    )
