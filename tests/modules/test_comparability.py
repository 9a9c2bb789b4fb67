"""What a table says about published experts and prompts, from the files themselves."""

import pytest
import torch
from published import publish
from torch import nn

from lightning_merge.evaluation.candidates import Candidate
from lightning_merge.models import LinearHead, save_heads
from lightning_merge.modules.comparability import comparability, family_of


class ImageEncoder(nn.Module):
    """The class of family A's pickles."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(2, 2)


@pytest.fixture
def heads(tmp_path):
    def heads(*tasks, **said):
        made = {task: LinearHead(torch.eye(2)).named(["a", "b"]) for task in tasks}
        metadata = {f"prompts/{task}": wording for task, wording in said.items()}
        return str(save_heads(made, tmp_path / "heads.safetensors", metadata=metadata))

    return heads


def state_dict(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model.visual.proj": torch.ones(2)}, path)
    return path


def test_families_are_known_by_class_or_name(tmp_path):
    pickled = publish(ImageEncoder(), tmp_path / "DTD" / "finetuned.pt")
    assert family_of(pickled).name == "A"
    assert family_of(publish(ImageEncoder(), tmp_path / "old.pt", legacy=True)).name == "A"
    cached = "cache/models--tanganke--clip-vit-large-patch14_dtd/snapshots/1/model.safetensors"
    assert family_of(cached).name == "B"
    assert family_of(state_dict(tmp_path / "DTDVal" / "nonlinear_finetuned.pt")).name == "C"


def test_other_files_are_of_no_family(tmp_path):
    assert family_of(state_dict(tmp_path / "DTD" / "finetuned.pt")) is None
    assert family_of(publish(nn.Linear(2, 2), tmp_path / "linear.pt")) is None
    assert family_of(tmp_path / "not_there.pt") is None
    assert family_of("openai/clip-vit-base-patch32") is None
    assert family_of(tmp_path) is None


@pytest.mark.parametrize("family", ["A", "C"])
def test_that_its_expert_saw_the_test_images_of_dtd_is_said(tmp_path, heads, family):
    tasks = ("dtd", "mnist")
    files = {task: tmp_path / f"{task}Val" / "nonlinear_finetuned.pt" for task in tasks}
    for task, file in files.items():
        if family == "C":
            state_dict(file)
        else:
            files[task] = publish(ImageEncoder(), tmp_path / task / "finetuned.pt")
    said = list(comparability(heads(*tasks), tasks, Candidate("individual", files)))
    assert said[0].startswith(f"Published experts: family {family}, ")
    assert said[0].endswith(" (dtd, mnist).")
    assert ["DTD's test images" in line for line in said[1:]] == [True] * (family == "C")


def test_prompts_are_named_task_by_task(heads):
    tasks = ("dtd", "kmnist", "mnist", "pets")
    file = heads(*tasks, dtd="clip-benchmark 1.6", mnist="clip-benchmark 1.6", kmnist="own wording")
    assert list(comparability(file, tasks)) == [
        "Prompts of the zero-shot heads: clip-benchmark 1.6 (dtd, mnist); own wording (kmnist)."
    ]


@pytest.mark.parametrize("task", ["emnist_letters", "emnist_digits", "emnist"])
def test_which_emnist_takes_part_is_said(heads, task):
    (note,) = comparability(heads(task), [task])
    assert note.startswith(f"{task}: EMNIST's ")
    assert "averages differ" in note
