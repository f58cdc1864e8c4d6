"""What the chosen networks get right and wrong on the test images: as the page draws it, as tables, with pictures."""

from collections.abc import Iterator
from typing import Any

from oncequant.answers import Answers
from oncequant.data import Data
from oncequant.report.contents import Contents
from oncequant.report.thumbnails import answered_images, data_uris, images_of

DRAWN = 100  # classes at most of a confusion matrix that is drawn
LISTED = 50  # confusions of a network with more classes that the page has, most frequent first
MISTAKES = 12  # the surest ones of each network


def answers_data(run: Contents) -> dict[str, Any] | None:
    """What the page's script draws, without pictures; None if no answers are kept."""
    classes = class_names(run)
    networks = [_network(name, answers, run.test_names) for name, (_, answers) in run.answers.items()]
    if not networks:
        return None
    return {"classes": classes, "drawn": DRAWN, "networks": networks, "thumbnails": {}, "note": ""}


def class_names(run: Contents) -> list[str]:
    """Those of run.json; numbers where it has none or too few."""
    known = list(map(str, run.info.get("data", {}).get("classes", [])))
    count = max((answers.classes for _, answers in run.answers.values()), default=0)
    return known if len(known) >= count else list(map(str, range(count)))


def _network(name: str, answers: Answers, names: list[str]) -> dict[str, Any]:
    """Counts by class, what each is mostly taken for as [answer, images], confusions as [true class, answer, images],
    mistakes as [image, true class, answer, probability, name of the picture]."""
    said, right, confused = [0] * answers.classes, [0] * answers.classes, []
    for true, answer, count in answers.pairs():
        said[answer] += count
        if true == answer:
            right[true] = count
        else:
            confused.append([true, answer, count])
    confused.sort(key=lambda row: -row[2])
    mostly: list[list[int] | None] = [None] * answers.classes
    for true, answer, count in reversed(confused):
        mostly[true] = [answer, count]
    mistakes = [
        [
            index,
            int(answers.labels[index]),
            int(answers.predicted[index]),
            round(float(answers.probability[index]), 6),
            names[index] if len(names) == len(answers) else "",
        ]
        for index in answers.surest_mistakes(MISTAKES)
    ]
    return {
        "name": name,
        "top1": answers.accuracy.top1,
        "balanced": answers.accuracy.balanced,
        "wrong": len(answers) - sum(right),
        "images": answers.images,
        "right": right,
        "said": said,
        "mostly": mostly,
        "confused": confused if answers.classes <= DRAWN else confused[:LISTED],
        "mistakes": mistakes,
        "shown": False,
    }


def with_pictures(found: dict[str, Any], run: Contents, data: Data | None, moved: str | None = None) -> dict[str, Any]:
    """`answers_data` with small pictures of the mistakes, or with a note that says why there are none. Without `data`
    the images of the run are read again, from where they were or where they have `moved` to."""
    if not any(network["mistakes"] for network in found["networks"]):
        return found
    why = ""
    if data is None:
        data, why = images_of(run.folder, moved)
    networks = [n | {"shown": answered_images(run.answers[n["name"]][0], data)} for n in found["networks"]]
    if data is None:
        return found | {"note": f"The pictures cannot be shown: {why}"}
    if not all(network["shown"] for network in networks):
        why = "Pictures are left out where the test images have changed since the network was measured."
    indices = [row[0] for network in networks if network["shown"] for row in network["mistakes"]]
    return found | {"networks": networks, "thumbnails": data_uris(data, indices), "note": why}


def class_rows(run: Contents) -> Iterator[dict[str, Any]]:
    """A row for each class of each network; nothing where there is nothing to divide by."""
    names = class_names(run)
    for network, (_, answers) in run.answers.items():
        for name, images, recall, precision in zip(names, answers.images, answers.recall, answers.precision):
            yield {"network": network, "class": name, "images": images, "recall": recall, "precision": precision}


def confusion_rows(run: Contents) -> Iterator[dict[str, Any]]:
    """A row for each cell of each network's confusion matrix that is not zero."""
    names = class_names(run)
    for network, (_, answers) in run.answers.items():
        for true, said, count in answers.pairs():
            yield {"network": network, "true": names[true], "answer": names[said], "images": count}
