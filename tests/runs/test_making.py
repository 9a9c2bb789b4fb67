"""Which of the zoos a message speaks of, before any file is opened."""

import pytest

from lightning_merge.core.errors import InputError
from lightning_merge.models import MiniViT
from lightning_merge.modules.zoo import Teachers, Zoo
from lightning_merge.runs.making import ZooMaker


@pytest.mark.parametrize(
    ("own", "theirs", "message"),
    [
        ({"dtd": "s.pt"}, "{task}.pt", r"^zoo\.experts has no file for task 'mnist'"),
        (
            "{task}.pt",
            {"dtd": "t.pt"},
            r"^zoo\.teachers: zoo\.experts has no file for task 'mnist'",
        ),
    ],
)
def test_the_zoo_that_lacks_an_expert_is_named(own, theirs, message):
    teachers = Teachers(MiniViT(), Zoo("teachers.pt", theirs, "heads.pt"))
    zoo = Zoo("base.pt", own, "heads.pt", teachers=teachers)
    config = {"encoder": {}, "zoo": {"teachers": {"encoder": {}, "zoo": {}}}}
    with pytest.raises(InputError, match=message):
        ZooMaker(zoo, MiniViT(), config, ["mnist", "dtd"])
