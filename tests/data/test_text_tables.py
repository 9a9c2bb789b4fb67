import pytest
import torch
from tiny_texts import records, sentences, table, tasks, tokenizer

from lightning_merge.core.errors import InputError
from lightning_merge.data import TextTables, task_spec
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.data.order import bucketed
from lightning_merge.data.splits import draw_few
from lightning_merge.data.tasks import TASKS
from lightning_merge.models import TextPreprocess
from lightning_merge.models.texts import Texts

ROWS = [("a joy", "good"), ("a bore", "bad"), ("warm, very", "good")]


def loaded(root, task="films", split="train"):
    return TextTables(str(root)).load(task, split)


def texts(examples):
    return [(examples.item(i).texts, examples.classes[y]) for i, y in enumerate(examples.labels)]


def data(root, **options):
    return MergeDataModule(str(root), source="tables", **options)


EXPECTED = [((text,), label) for text, label in ROWS]


@pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl"])
def test_a_users_own_tables(tmp_path, suffix):
    file = tmp_path / "films" / f"train.{suffix}"
    if suffix == "jsonl":
        records(file, [{"text": text, "label": label} for text, label in ROWS])
    elif suffix == "csv":
        file.parent.mkdir()
        file.write_text('label,text\ngood,a joy\nbad,a bore\ngood,"warm, very"\n')
    else:
        table(file, ["text", "label"], ROWS)
    assert TextTables(str(tmp_path)).tasks() == ["films"]
    assert texts(loaded(tmp_path)) == EXPECTED


def test_a_users_own_files_by_class(tmp_path):
    for name, own in {"good": "a joy\nwarm, very\n", "bad": "a bore\r\n\r\n"}.items():
        (tmp_path / "films" / "train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "films" / "train" / f"{name}.txt").write_text(own, newline="")
    assert sorted(texts(loaded(tmp_path))) == sorted(EXPECTED)


def test_a_column_text_pair_makes_pairs(tmp_path):
    rows = [("a", "b", 1), ("c", "d", 0)]
    table(tmp_path / "same" / "train.tsv", ["text", "text_pair", "label"], rows)
    pairs = loaded(tmp_path, "same")
    assert pairs.parts == 2
    assert texts(pairs) == [(("a", "b"), "1"), (("c", "d"), "0")]


def test_quotes_are_text_in_tsv_and_marks_in_csv(tmp_path):
    table(tmp_path / "films" / "train.tsv", ["text", "label"], [('"a" joy', "good"), ("b", "bad")])
    assert loaded(tmp_path).item(0).texts == ('"a" joy',)


def test_files_of_the_table_are_read_as_published(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode("latin-1"))

    write("trec/TREC.train", "NUM:dist How far is it ?\nHUM:desc Who was Ren\xe9 ?\n")
    write("cr/custrev.neg", "dull .\nbad .\ncold .\nmess .\nbore .\n")
    write("cr/custrev.pos", "warm .\njoy .\nbright .\ngem .\ngood .\n")
    write("emotion/train_text.txt", "so sad\nso glad\n")
    write("emotion/train_labels.txt", "3\n1\n")
    columns = "\xef\xbb\xbfQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    write(
        "mrpc/msr_paraphrase_train.txt", f'{columns}1\t7\t8\tHe "left".\tHe went.\n0\t1\t2\tA\tB\n'
    )
    block = "Al hit Bo because he fell.\nhe\n{}\n{}\n\n"
    write("wsc/train.c.txt", block.format("Al,Bo", "bo") + block.format("Al,Bo", "Al"))
    assert texts(loaded(tmp_path, "trec")) == [
        (("How far is it ?",), "number"),
        (("Who was Ren\xe9 ?",), "human"),
    ]
    assert texts(loaded(tmp_path, "emotion")) == [(("so sad",), "sadness"), (("so glad",), "joy")]
    assert sorted(texts(loaded(tmp_path, "mrpc"))) == [
        (("A", "B"), "not_equivalent"),
        (('He "left".', "He went."), "equivalent"),
    ]
    wsc = loaded(tmp_path, "wsc")
    assert wsc.labels.tolist() == [1, 0]
    assert wsc.item(0).answers == ("Al", "Bo")
    assert wsc.groups.tolist() == [0, 0]
    train, test = (loaded(tmp_path, "cr", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (8, 2)
    assert set(texts(train)).isdisjoint(texts(test))
    assert test.labels.bincount().tolist() == [1, 1]
    assert TextTables(str(tmp_path)).own_split("cr")


def test_classes_are_balanced_where_the_row_says_so(tmp_path):
    rows = [(f"Q{i // 4}", "why?", "D", "T", i, f"so {i}", int(i % 4 == 0)) for i in range(40)]
    columns = ["QuestionID", "Question", "DocumentID", "DocumentTitle", "SentenceID"]
    table(tmp_path / "wikiqa" / "WikiQA-train.tsv", [*columns, "Sentence", "Label"], rows)
    balanced = loaded(tmp_path, "wikiqa")
    assert balanced.labels.bincount().tolist() == [10, 10]
    assert balanced.groups is not None


def test_every_row_of_text_has_an_answer_for_each_class():
    rows = [row for row in TASKS.values() if row.text is not None]
    assert len(rows) == 29
    for row in rows:
        assert len(row.text.answers) == row.classes, row.name
        assert len(row.text.texts) <= 2
        assert row.table or row.hub.path
        if row.table and row.table.classes:
            assert len(row.table.classes) == row.classes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"films/train\.tsv is empty"),
        ("text\tlabel\ncaf\xe9\tgood\n".encode("latin-1"), r"is not UTF-8 \(byte 14 is 0xe9\)"),
        (b"text\tlabel\na joy\n", "row 2 has 1 columns, and there should be 2"),
        (b"sentence\tlabel\na joy\tgood\n", "no column 'text', only .*sentence, label"),
        (b"text\topinion\na joy\tgood\n", "no column 'label', only file, text, opinion"),
        (b"text\tlabel\n\tgood\n", "example 1 has an empty text"),
        (b"text\tlabel\n", "has no examples"),
    ],
)
def test_broken_tables_are_one_error(tmp_path, content, message):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "train.tsv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"sst2/train.tsv": "a joy\t1\na bore\t2\n"}, "labels '2', which are no classes"),
        ({"sst2/other.tsv": "a joy\t1\n"}, r"train\.tsv is not a file"),
        (
            {"trec/TREC.train": "NUM:dist How far ?\nnonsense\n"},
            "line 2 is not an example: .nonsense",
        ),
        ({"cb/train.jsonl": "{}\n", "cb/dev32.jsonl": "x\n"}, "line 1 is not JSON"),
        ({"cb/train.jsonl": "[1]\n", "cb/dev32.jsonl": "{}\n"}, "is not an object with columns"),
        (
            {"emotion/train_text.txt": "a\nb\n", "emotion/train_labels.txt": "1\n"},
            r"differ in their number of lines \(train_text\.txt: 2, train_labels\.txt: 1\)",
        ),
        ({"films/train.tsv": "a\n", "films/train.csv": "a\n"}, "keep one file per split"),
    ],
)
def test_broken_files_of_the_table_are_one_error(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        loaded(tmp_path, next(iter(files)).partition("/")[0])


def test_examples_of_a_group_stay_on_one_side(tmp_path):
    rows = [(text, label, i // 3) for i, (text, label) in enumerate(sentences(60, 0))]
    for split in ("train", "test"):
        table(tmp_path / "films" / f"{split}.tsv", ["text", "label", "group"], rows)
        rows = [(f"again {text}", label, group) for text, label, group in rows]
    divided = data(tmp_path, tasks=["films"], validation_fraction=0.3)
    divided.load()
    examples, held_out = divided.division.part("films", "validation")
    _, trained = divided.division.part("films", "train")
    sides = [set(examples.groups[rows].tolist()) for rows in (trained, held_out)]
    assert sides[0].isdisjoint(sides[1])
    assert 0.2 < len(held_out) / 60 < 0.4


def test_copies_between_tasks_are_an_error_or_are_dropped(tmp_path):
    root = tasks(tmp_path)
    copy = sentences(48, 1)[5][0]  # a test text of films
    with (root / "books" / "train.tsv").open("a") as file:
        file.write(f"{copy.upper()} !\tgood\n")
    with pytest.raises(InputError, match=r"'books': 1 example.* test examples of 'films'"):
        data(root, tasks=["films", "books"]).load()
    dropped = data(root, tasks=["films", "books"], duplicates="drop")
    dropped.load()
    assert dropped.record["books"]["left_out"] == 1
    assert dropped.record["films"]["left_out"] == 0
    alone = data(root, tasks=["books"], duplicates="drop", apart_from=["films", "books"])
    alone.load()
    assert alone.record["books"] == dropped.record["books"]
    unaware = data(root, tasks=["books"], duplicates="drop")
    unaware.load()
    assert unaware.record["books"]["left_out"] == 0


@pytest.fixture
def preprocess(tmp_path):
    tokenizer(tmp_path / "tokenizer")
    return TextPreprocess.of(tmp_path / "tokenizer", max_length=24)


def test_batches_have_texts_of_similar_length_and_all_of_them(tmp_path, preprocess):
    own = data(tasks(tmp_path / "data", 64), tasks=["films"], eval_batch_size=4)
    own.preprocess = preprocess
    own.load()
    batches = [*own.shares("films", "test")]
    whole = own.inputs("films", "test").rows_at(torch.arange(64))
    assert sorted(i for batch in batches for i in batch.index.tolist()) == [*range(64)]
    for batch in batches:
        width = batch.inputs.shape[1]
        assert torch.equal(batch.inputs, whole[batch.index][:, :width])
        assert (whole[batch.index][:, width:] == 0).all()
        assert (batch.inputs[:, -1] != 0).any()
    padding = sum((batch.inputs == 0).sum() for batch in batches)
    plain = sum(
        (own.inputs("films", "test")[[*range(i, i + 4)]].inputs == 0).sum() for i in range(0, 64, 4)
    )
    assert padding < plain / 2


def test_buckets_keep_whole_steps_and_shuffle_them(tmp_path):
    sizes = torch.randint(1, 90, (1000,), generator=torch.Generator().manual_seed(0))
    positions = torch.randperm(1000, generator=torch.Generator().manual_seed(1))
    ordered = bucketed(positions, sizes, 12, torch.Generator().manual_seed(2))
    assert torch.equal(ordered.sort().values, torch.arange(1000))
    spread = [own.max() - own.min() for own in sizes[ordered].split(12)]
    assert sum(spread) / len(spread) < 12
    means = torch.stack([own.float().mean() for own in sizes[ordered].split(12)[:16]])
    assert not torch.equal(means, means.sort().values)
    assert len(ordered.split(12)[-1]) == 1000 % 12


def test_images_are_refused_by_an_encoder_of_text_and_the_reverse(tmp_path, preprocess):
    images = MergeDataModule(source="drawn", tasks=["drawn_hues"])
    images.preprocess = preprocess
    with pytest.raises(InputError, match="has images, and the encoder takes texts"):
        images.inputs("drawn_hues", "train")


def test_choices_are_refused_by_an_encoder_of_text(tmp_path, preprocess):
    rows = [
        {"premise": f"p {i}", "choice1": "a", "choice2": "b", "question": "cause", "label": i % 2}
        for i in range(8)
    ]
    for split in ("train", "dev32", "val"):
        records(tmp_path / "copa" / f"{split}.jsonl", rows)
        rows = [{**row, "premise": row["premise"] + split} for row in rows]
    own = data(tmp_path, tasks=["copa"])
    own.preprocess = preprocess
    with pytest.raises(InputError, match="need T5Encoder"):
        own.inputs("copa", "train")
    assert own.division.part("copa", "train")[0].item(0) == Texts(
        (), "p 0\nWhat was the cause of this?", ("a", "b")
    )


def test_long_texts_are_counted_once(tmp_path, preprocess):
    own = data(tasks(tmp_path / "data"), tasks=["films"])
    own.preprocess = TextPreprocess.of(preprocess.folder, max_length=5)
    own.inputs("films", "train").prepare()
    assert own.kept.remark.startswith("3")
    assert "of films train" in own.kept.remark


def test_the_task_table_names_text_tasks_by_their_aliases():
    assert task_spec("glue-rte").name == "rte"
    assert task_spec("wiki_qa").metric == "auc"


def test_a_record_sees_what_copies_do_not(tmp_path):
    """Case and punctuation make no other copy, but other data."""
    digests, lefts = [], []
    for spell in (str, str.upper):
        root = tasks(tmp_path / spell.__name__)
        for split in ("train", "test"):
            rows = [(spell(text), label) for text, label in sentences(48, int(split == "test"))]
            table(root / "films" / f"{split}.tsv", ["text", "label"], rows)
        one = data(root, tasks=["films"])
        one.load()
        digests.append(one.digest("films"))
        lefts.append(one.division.hashes("films", "train"))
    assert digests[0] != digests[1]
    assert lefts[0] == lefts[1]


def test_few_examples_are_of_all_classes_and_stay_when_one_more_is_left_out():
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    rows = torch.arange(100)
    some = draw_few(rows, labels, 30, seed=0)
    assert labels[some].bincount().tolist() == [21, 6, 3]
    other = draw_few(rows[rows != some[0]], labels, 30, seed=0)
    assert len(set(some.tolist()) & set(other.tolist())) >= 28
    assert len(draw_few(rows, labels, 2, seed=0)) == 2
    assert torch.equal(draw_few(rows, labels, 100, seed=0), rows)


def test_answers_of_every_row_are_in_the_order_of_its_classes():
    """Whatever the source, whose classes have the same names in the same order."""
    for row in TASKS.values():
        if row.table and row.table.classes and row.hub.classes and row.name != "winogrande":
            assert tuple(row.table.classes.values()) == row.hub.classes, row.name


def test_a_cell_may_be_as_long_as_a_book(tmp_path):
    (tmp_path / "films").mkdir()
    book = "joy " * 50_000
    (tmp_path / "films" / "train.csv").write_text(f"text,label\n{book},good\n")
    assert loaded(tmp_path).item(0).texts == (book.strip(),)
