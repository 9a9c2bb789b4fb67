"""Rows of the task table for texts with answers of their own; prompts are in our own words."""

from lightning_merge.data.layouts import HubLayout
from lightning_merge.data.spec import TaskSpec
from lightning_merge.data.text.common import FROM_HUB, SUPER_GLUE, VALIDATION
from lightning_merge.data.text.layouts import TableLayout, TextForm

_LETTERS = "ABCDEFGH"

ROWS = (
    TaskSpec(
        "winogrande",
        title="WinoGrande",
        classes=2,
        text=TextForm((), 'What does "_" stand for here?\n{sentence}', ("{option1}", "{option2}")),
        table=TableLayout(
            ("train_m.jsonl",),
            ("dev.jsonl",),
            fields={name: f"{{{name}}}" for name in ("sentence", "option1", "option2")},
            label="{answer}",
            classes={"1": "first", "2": "second"},
            group="{qID}",
            group_until="-",
        ),
        hub=HubLayout(
            "allenai/winogrande",
            "winogrande_xl",
            label="answer",
            **VALIDATION,
            classes=("first", "second"),
            labels=("1", "2"),
        ),
        obtain="train_m.jsonl and dev.jsonl of WinoGrande. " + FROM_HUB,
    ),
    TaskSpec(
        "wsc",
        title="Definite pronouns (WSC)",
        classes=2,
        text=TextForm(
            (), 'What does "{pronoun}" stand for here?\n{sentence}', ("{first}", "{second}")
        ),
        table=TableLayout(
            ("train.c.txt",),
            ("test.c.txt",),
            pattern=r"(?P<sentence>.+)\n(?P<pronoun>.+)\n(?P<first>[^,\n]+),(?P<second>.+)\n"
            r"(?P<answer>.+)(?:\n|$)",
            label="{answer}",
            group="{first},{second}",
        ),
        aliases=("dpr",),
        obtain="train.c.txt and test.c.txt of Rahman and Ng's definite pronouns.",
    ),
    TaskSpec(
        "copa",
        title="COPA",
        classes=2,
        text=TextForm(
            (), "{premise}\nWhat was the {question} of this?", ("{choice1}", "{choice2}")
        ),
        table=TableLayout(
            ("train.jsonl", "dev32.jsonl"),
            ("val.jsonl",),
            classes={"0": "first", "1": "second"},
            group="{premise}",
        ),
        hub=HubLayout(SUPER_GLUE, "copa", **VALIDATION, classes=("first", "second")),
        obtain="train.jsonl and val.jsonl of SuperGLUE. " + FROM_HUB,
    ),
    TaskSpec(
        "qasc",
        title="QASC",
        classes=8,
        text=TextForm(
            (),
            "{question}\nChoose: " + ", ".join(f"{{choices.text.{i}}}" for i in range(8)),
            tuple(f"{{choices.text.{i}}}" for i in range(8)),
        ),
        hub=HubLayout("allenai/qasc", label="answerKey", **VALIDATION, classes=tuple(_LETTERS)),
        obtain=FROM_HUB,
    ),
    TaskSpec(
        "quartz",
        title="QuaRTz",
        classes=2,
        text=TextForm((), "{para}\n{question}", tuple(f"{{choices.text.{i}}}" for i in range(2))),
        hub=HubLayout(
            "allenai/quartz", label="answerKey", **VALIDATION, classes=tuple(_LETTERS[:2])
        ),
        obtain=FROM_HUB,
    ),
    TaskSpec(
        "story_cloze",
        title="Story Cloze",
        classes=2,
        text=TextForm(
            (),
            " ".join(f"{{input_sentence_{i}}}" for i in range(1, 5)) + "\nHow does it end?",
            ("{sentence_quiz1}", "{sentence_quiz2}"),
        ),
        hub=HubLayout(
            "LSDSem/story_cloze",
            "2016",
            label="answer_right_ending",
            train="validation",
            classes=("first", "second"),
            labels=("1", "2"),
        ),
        obtain="Ask its authors for the files of 2016; the library datasets reads them.",
    ),
    TaskSpec(
        "hellaswag",
        title="HellaSwag",
        classes=4,
        text=TextForm(
            (), "How does this go on?\n{ctx}", tuple(f"{{endings.{i}}}" for i in range(4))
        ),
        hub=HubLayout("Rowan/hellaswag", **VALIDATION, classes=tuple("0123"), group="{source_id}"),
        obtain=FROM_HUB,
    ),
)
