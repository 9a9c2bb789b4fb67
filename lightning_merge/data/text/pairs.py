"""Rows of the task table for pairs of texts; prompts are in our own words."""

from lightning_merge.data.layouts import HubLayout
from lightning_merge.data.spec import TaskSpec
from lightning_merge.data.text.common import FROM_HUB, GLUE, SUPER_GLUE, VALIDATION
from lightning_merge.data.text.layouts import TableLayout, TextForm

_PAIR = ("{sentence1}", "{sentence2}")
_NLI = ("{premise}", "{hypothesis}")
_YES_NO = ("no", "yes")
_ENTAILMENT = ("entailment", "neutral", "contradiction")
_NLI_ANSWERS = ("yes", "maybe", "no")
_NLI_PROMPT = (
    "{premise}\nDoes it follow that the next sentence is true: yes, maybe or no?\n{hypothesis}"
)

ROWS = (
    TaskSpec(
        "mrpc",
        title="MRPC",
        classes=2,
        metric="f1",
        text=TextForm(
            _PAIR,
            "Do these two sentences mean the same, yes or no?\n{sentence1}\n{sentence2}",
            _YES_NO,
        ),
        table=TableLayout(
            ("msr_paraphrase_train.txt",),
            ("msr_paraphrase_test.txt",),
            kind=".tsv",
            fields={"sentence1": "{#1 String}", "sentence2": "{#2 String}"},
            label="{Quality}",
            classes={"0": "not_equivalent", "1": "equivalent"},
            balanced=True,
        ),
        hub=HubLayout(GLUE, "mrpc", **VALIDATION, classes=("not_equivalent", "equivalent")),
        aliases=("glue-mrpc",),
        note="MRPC from files: as many pairs that mean the same as others",
        obtain="msr_paraphrase_train.txt and msr_paraphrase_test.txt of Microsoft. " + FROM_HUB,
    ),
    TaskSpec(
        "wikiqa",
        title="WikiQA",
        classes=2,
        metric="auc",
        text=TextForm(
            ("{question}", "{answer}"),
            "Question: {question}\nDoes this sentence answer it, no or yes?\n{answer}",
            _YES_NO,
        ),
        table=TableLayout(
            ("WikiQA-train.tsv",),
            ("WikiQA-test.tsv",),
            fields={"question": "{Question}", "answer": "{Sentence}"},
            label="{Label}",
            classes={"0": "no answer", "1": "answer"},
            group="{QuestionID}",
            balanced=True,
        ),
        hub=HubLayout("microsoft/wiki_qa", group="{question_id}", classes=("no answer", "answer")),
        aliases=("wiki_qa",),
        note="WikiQA from files: as many sentences that answer as others",
        obtain="WikiQA-train.tsv and WikiQA-test.tsv of Microsoft. " + FROM_HUB,
    ),
    TaskSpec(
        "rte",
        title="RTE",
        classes=2,
        text=TextForm(
            _PAIR,
            "{sentence1}\nDoes it follow that the next sentence is true: yes or no?\n{sentence2}",
            ("yes", "no"),
        ),
        table=TableLayout(
            ("train.tsv",),
            ("dev.tsv",),
            classes={"entailment": "entailment", "not_entailment": "not_entailment"},
        ),
        hub=HubLayout(GLUE, "rte", **VALIDATION, classes=("entailment", "not_entailment")),
        aliases=("glue-rte",),
        obtain="train.tsv and dev.tsv of GLUE. " + FROM_HUB,
    ),
    TaskSpec(
        "cb",
        title="CB",
        classes=3,
        text=TextForm(_NLI, _NLI_PROMPT, ("yes", "no", "maybe")),
        table=TableLayout(
            ("train.jsonl", "dev32.jsonl"),
            ("val.jsonl",),
            classes={n: n for n in ("entailment", "contradiction", "neutral")},
        ),
        hub=HubLayout(
            SUPER_GLUE, "cb", **VALIDATION, classes=("entailment", "contradiction", "neutral")
        ),
        obtain="train.jsonl and val.jsonl of SuperGLUE. " + FROM_HUB,
    ),
    TaskSpec(
        "wic",
        title="WiC",
        classes=2,
        text=TextForm(
            ("{word}: {sentence1}", "{word}: {sentence2}"),
            'Does "{word}" mean the same in both sentences, no or yes?\n{sentence1}\n{sentence2}',
            _YES_NO,
        ),
        table=TableLayout(
            ("train.jsonl", "dev32.jsonl"),
            ("val.jsonl",),
            classes={"false": "different", "true": "same"},
            group="{word}",
        ),
        hub=HubLayout(SUPER_GLUE, "wic", **VALIDATION, classes=("different", "same")),
        obtain="train.jsonl and val.jsonl of SuperGLUE. " + FROM_HUB,
    ),
    TaskSpec(
        "paws",
        title="PAWS",
        classes=2,
        text=TextForm(
            _PAIR,
            "Do these two sentences mean the same, no or yes?\n{sentence1}\n{sentence2}",
            _YES_NO,
        ),
        hub=HubLayout(
            "google-research-datasets/paws",
            "labeled_final",
            **VALIDATION,
            classes=("different", "paraphrase"),
        ),
        obtain=FROM_HUB,
    ),
    TaskSpec(
        "wsc_fixed",
        title="WSC",
        classes=2,
        text=TextForm(
            ("{text}", "{span2_text}: {span1_text}"),
            '{text}\nDoes "{span2_text}" stand for "{span1_text}" here, no or yes?',
            _YES_NO,
        ),
        hub=HubLayout(SUPER_GLUE, "wsc.fixed", **VALIDATION, classes=("other", "same")),
        obtain=FROM_HUB,
    ),
    TaskSpec(
        "qnli",
        title="QNLI",
        classes=2,
        text=TextForm(
            ("{question}", "{sentence}"),
            "Question: {question}\nDoes this sentence answer it, yes or no?\n{sentence}",
            ("yes", "no"),
        ),
        hub=HubLayout(GLUE, "qnli", **VALIDATION, classes=("entailment", "not_entailment")),
        aliases=("glue-qnli",),
        obtain=FROM_HUB,
    ),
    TaskSpec(
        "qqp",
        title="QQP",
        classes=2,
        metric="f1",
        text=TextForm(
            ("{question1}", "{question2}"),
            "Do these two questions ask the same, no or yes?\n{question1}\n{question2}",
            _YES_NO,
        ),
        hub=HubLayout(GLUE, "qqp", **VALIDATION, classes=("not_duplicate", "duplicate")),
        aliases=("glue-qqp",),
        obtain=FROM_HUB,
    ),
    TaskSpec(
        "mnli",
        title="MNLI",
        classes=3,
        text=TextForm(_NLI, _NLI_PROMPT, _NLI_ANSWERS),
        hub=HubLayout(GLUE, "mnli", test="validation_matched", classes=_ENTAILMENT),
        aliases=("glue-mnli",),
        note="MNLI: the matched validation split",
        obtain=FROM_HUB,
    ),
    TaskSpec(
        "stsb",
        title="STS-B",
        classes=26,
        metric="spearman",
        text=TextForm(
            _PAIR,
            "How similar are these sentences, from 0.0 to 5.0?\n{sentence1}\n{sentence2}",
            tuple(f"{score / 5:.1f}" for score in range(26)),
        ),
        hub=HubLayout(
            GLUE,
            "stsb",
            **VALIDATION,
            classes=tuple(f"{score / 5:.1f}" for score in range(26)),
            step=0.2,
        ),
        aliases=("glue-stsb",),
        note="STS-B: scores are rounded to steps of 0.2, as T5 writes them",
        obtain=FROM_HUB,
    ),
    *(
        TaskSpec(
            f"anli_r{number}",
            title=f"ANLI r{number}",
            classes=3,
            text=TextForm(_NLI, _NLI_PROMPT, _NLI_ANSWERS),
            hub=HubLayout(
                "facebook/anli",
                train=f"train_r{number}",
                test=f"test_r{number}",
                classes=_ENTAILMENT,
            ),
            aliases=(f"anli-r{number}",),
            obtain=FROM_HUB,
        )
        for number in (1, 2, 3)
    ),
)
