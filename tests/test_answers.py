"""What a network answers: figures as scikit-learn has them, a file that comes back, the surest mistakes."""

import json
import warnings

import numpy as np
import pytest
import torch
from commands import call
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, precision_recall_fscore_support

from oncequant.answers import Accuracy, Answers, answered, answers_of, joined, read_answers, write_answers
from oncequant.files import FileError


def answers(labels, predicted, classes, probability=None):
    values = torch.full((len(labels),), 0.5) if probability is None else torch.tensor(probability)
    return Answers(torch.tensor(labels), torch.tensor(predicted), values, classes)


def test_figures_by_hand():
    """Ten cats, of which nine are found, and two dogs, of which one is; no fox is there, though one is seen."""
    found = answers([0] * 10 + [1] * 2, [0] * 9 + [1] + [1] + [2], 3)
    assert found.accuracy == Accuracy(10 / 12, (0.9 + 0.5) / 2) and found.accuracy.by("balanced") == 0.7
    assert found.images == [10, 2, 0] and found.recall == [0.9, 0.5, None] and found.precision == [1.0, 0.5, 0.0]
    assert found.pairs() == [(0, 0, 9), (0, 1, 1), (1, 1, 1), (1, 2, 1)]


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 30))
    shares = rng.dirichlet(np.full(classes, 0.3))  # some classes have no images
    labels = rng.choice(classes, 200, p=shares)
    said = np.where(rng.random(200) < 0.6, labels, rng.choice(classes, 200))
    found, every = answers(labels.tolist(), said.tolist(), classes), list(range(classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes that are answered and not there
        assert found.accuracy.balanced == pytest.approx(balanced_accuracy_score(labels, said), abs=1e-12)
        precision, recall, _, images = precision_recall_fscore_support(labels, said, labels=every, zero_division=np.nan)
    assert found.accuracy.top1 == (labels == said).mean() and found.images == images.tolist()
    for ours, theirs in ((found.recall, recall), (found.precision, precision)):
        np.testing.assert_allclose([np.nan if value is None else value for value in ours], theirs)
    matrix = np.zeros((classes, classes), int)
    for true, answer, count in found.pairs():
        matrix[true, answer] = count
    assert (matrix == confusion_matrix(labels, said, labels=every)).all()


def test_logits_become_answers_batch_by_batch():
    logits, labels = torch.randn(10, 4), torch.arange(10) % 4
    batches = [answered(logits[part], labels[part]) for part in (slice(0, 7), slice(7, 10))]
    found = answers_of(batches, 4)
    assert torch.equal(found.predicted, logits.argmax(1)) and torch.equal(found.labels, labels)
    torch.testing.assert_close(found.probability, logits.softmax(1).max(1).values)
    again = joined([answers_of(batches[:1], 4), answers_of(batches[1:], 4)])
    assert torch.equal(again.predicted, found.predicted) and len(again) == 10


def test_the_surest_mistakes_come_first():
    found = answers([0, 1, 0, 1, 0], [0, 0, 1, 0, 1], 2, [0.99, 0.7, 0.9, 0.7, 0.8])
    assert found.surest_mistakes(10) == [2, 4, 1, 3] and found.surest_mistakes(2) == [2, 4]


def test_answers_come_back_from_their_file(tmp_path):
    found, path = answers([0, 1, 1], [1, 1, 0], 2, [0.5, 0.25, 1.0]), tmp_path / "answers" / "4bit-0.safetensors"
    assert read_answers(path) is None
    write_answers(path, found, "these")
    first = path.read_bytes()
    back = read_answers(path, "these")
    assert back.pairs() == found.pairs() and torch.equal(back.probability, found.probability) and back.classes == 2
    assert read_answers(path, "others") is None  # answers to other images
    write_answers(path, back, "these")
    assert path.read_bytes() == first
    path.write_bytes(first[:-1] + bytes([first[-1] ^ 1]))
    with pytest.raises(FileError, match="4bit-0.safetensors"):
        read_answers(path)


def test_what_cannot_be_answers_is_refused(tmp_path):
    for labels, predicted, classes, says in (
        ([0, 2], [0, 0], 2, "labels must be classes from 0 to 1, not 0 to 2"),
        ([0, 1], [0, -1], 2, "predicted must be classes"),
        ([], [], 2, "no images"),
        ([0, 1], [0], 2, "one value for each image"),
        ([0, 1], [0, 1], 10**12, "classes 1000000000000: there can be 1 to 1,000,000"),
    ):
        with pytest.raises(ValueError, match=says):
            answers(labels, predicted, classes)
    with pytest.raises(ValueError, match="no images"):
        answers_of([], 2)
    path = tmp_path / "a.safetensors"
    write_answers(path, answers([0, 1], [0, 1], 2), "these")
    path.write_bytes(path.read_bytes().replace(b"oncequant answers 1", b"oncequant answers 2"))
    with pytest.raises(FileError, match=r"a\.safetensors"):
        read_answers(path)


def test_evaluate_tells_what_is_taken_for_what(digits_run, monkeypatch, capsys):
    family = json.loads((digits_run / "family.json").read_text())
    member = next(entry for entry in family if entry["stage"] != "float")
    call(monkeypatch, "evaluate", digits_run, member["name"], "--split", "test")
    said = capsys.readouterr().out
    found = json.loads(said)
    assert said.count("\n") == 1 and found["top1"] == member["top1_test"]
    assert found["balanced"] == member["balanced_test"]
    recalls = [row["recall"] for row in found["by_class"].values()]
    assert found["balanced"] == pytest.approx(np.mean(recalls)) and list(found["by_class"]) == list("0123456789")
    right = sum(row.get(name, 0) for name, row in found["confusion"].items())
    assert right / found["images"] == pytest.approx(found["top1"])
    assert sum(sum(row.values()) for row in found["confusion"].values()) == found["images"]


def test_what_chosen_networks_answer_to_test_images_is_kept(digits_run, monkeypatch, capsys):
    from oncequant.answers import answers_path
    from oncequant.records import Member, read_records

    for member in read_records(digits_run / "family.json", Member):
        kept = read_answers(answers_path(digits_run, member.stage, member.arch))
        assert kept.accuracy == Accuracy(member.top1_test, member.balanced_test) and len(kept) == 359
    call(monkeypatch, "info", digits_run)
    said = capsys.readouterr().out
    assert "balanced" in said and f"{100 * member.balanced_test:.2f}" in said
