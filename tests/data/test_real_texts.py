"""The original files of sixteen tasks of text, read by the layouts of the task table."""

import pytest

from lightning_merge.data import TASKS, TextTables
from lightning_merge.data.datamodule import MergeDataModule

TEXTS = {
    **{"sst2": (6920, 1821), "trec": (5452, 500), "cr": (3017, 754), "mpqa": (5298, 1324)},
    **{"subj": (8000, 2000), "mrpc": (2646, 1156), "wikiqa": (2080, 586), "emotion": (3257, 1421)},
    **{"agnews": (6080, 1520), "rte": (2490, 277), "cola": (8551, 1043), "cb": (64, 56)},
    **{"wic": (64, 638), "winogrande": (2558, 1267), "wsc": (1316, 564), "copa": (64, 100)},
}
"""Task -> examples of train and test."""


@pytest.mark.parametrize("task", TEXTS)
def test_all_examples_are_read(shared, task):
    root = shared / "data" / "text"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    source = TextTables(str(root))
    assert task in source.tasks()
    found = [source.load(task, split) for split in ("train", "test")]
    assert tuple(map(len, found)) == TEXTS[task]
    for examples in found:
        assert len(examples.classes) == TASKS[task].classes
        assert examples.labels.unique().tolist() == [*range(len(examples.classes))]


def test_sentences_of_subj_stand_in_sst2(shared):
    """As the data's README says, though it counts other spellings than we do."""
    root = shared / "data" / "text"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    data = MergeDataModule(str(root), source="tables", tasks=["sst2", "subj"], duplicates="drop")
    data.load()
    assert data.record["sst2"]["left_out"] > 300
    assert data.record["subj"]["left_out"] > 300
