"""What users bring: networks of others, layouts of data, faults."""

from .cells import Read, Row, fixed, joined, markdown, one, percent, where


def own_networks(read: Read) -> str:
    """Networks of torchvision and timm."""
    lines = []
    for row in read("own-networks_cpu_202611"):
        name = f"{row['network']} ({row['library']})"
        if row["refused"]:
            lines.append([name, f"refused: {row['refused'].partition(';')[0]}", *[""] * 5])
            continue
        equal = f"{row['bit_equal_images']} of {row['images']}"
        sizes = [fixed(row.number(column), 0) for column in ("float_kb", "onnx_kb")]
        in_c = "yes" if row["in_c"] == "yes" else "no " + row["in_c"].partition(": no kernel for ")[2]
        lines.append([name, row["layers"], row["largest_difference"], equal, *sizes, in_c])
    return markdown(["network", "layers", "difference", "equal", "kB in float", "kB", "C"], lines)


def field_layouts(read: Read) -> str:
    """Digits in four layouts."""
    names = {
        "two-labels": "CIFAR-100's columns: `img`, `fine_label`, `coarse_label`",
        "kaggle": "Kaggle: `train/`, `trainLabels.csv`, `test/` without labels",
        "csv-beside-folder": "CSV with a column of splits beside a folder",
        "hub-converted": "parquet as the hub converts it: `default/train/0000.parquet`, ...",
    }
    lines = []
    for layout, name in names.items():
        rows = where(read("field-layouts_cpu_202611"), layout=layout)
        images = joined(fixed(rows[0].number(split), 0) for split in ("train", "validation", "test"))

        def sizes(stage: str, rows: list[Row] = rows) -> str:
            found = (row for size in "SML" for row in rows if row["name"] == f"{stage}-{size}")
            return joined(percent(row, "top1_test", 1) for row in found)  # a run may have no M

        minutes = fixed(rows[0].number("seconds_of_run") / 60, 1)
        largest = percent(one(rows, name="float-max"), "top1_test", 1)
        lines.append([name, images, largest, *map(sizes, ("4bit", "3bit", "2bit")), minutes])
    head = ["images: train / validation / test", "float", "4 bits S / M / L", "3 bits", "2 bits", "minutes"]
    return markdown(["layout", *head], lines)


def faults(read: Read) -> str:
    """What became of each fault."""
    names = {
        "kill": "SIGKILL in train, search, export, report; half by time, half before the n-th operation on files; "
        "some twice",
        "disk": "disk full (a tmpfs), then more space",
        "damage": "damaged input: {files} files, by bytes or as JSON",
        "memory": "200 megapixels or a bomb, with 1 GiB of address space",
    }
    lines = []
    for what, name in names.items():
        rows = where(read("faults_cpu_202611"), part=what)
        outcomes = [row["outcome"].partition(":")[0] for row in rows]
        bad = [outcomes.count(outcome) for outcome in ("undetectable", "silent")]
        files = len({row["moment"].partition(":")[0] for row in rows})
        counts = [len(rows), len(rows) - sum(bad)]
        shown = [str(count) if what == "damage" else "–" for count in bad]
        lines.append([name.format(files=files), *map(str, counts), *shown])
    return markdown(["fault", "tried", "survived", "undetectable", "silent"], lines)
