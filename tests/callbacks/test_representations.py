"""Features of candidates: their distance from the base's, and their picture."""

import shutil

import pytest
import torch
from PIL import Image
from tiny_zoo import ENCODER, TASKS

from lightning_merge.callbacks import MergeCallback, Representations
from lightning_merge.core.errors import InputError
from lightning_merge.data import MergeDataModule
from lightning_merge.evaluation.representations import feature_distance, in_a_plane
from lightning_merge.evaluation.results import Results
from lightning_merge.methods import EMR
from lightning_merge.models.mini_vit import MiniViT
from lightning_merge.modules import Evaluate, StatsMerging
from lightning_merge.modules.compare import compare


def test_the_distance_is_that_of_the_definition():
    base = torch.randn(50, 8, dtype=torch.float64)
    moved = base + torch.tensor([3.0, 4.0, *[0.0] * 6])
    assert feature_distance(moved, base) == pytest.approx(5)
    with pytest.raises(InputError, match="of the same images"):
        feature_distance(base[:3], base)


def test_principal_components_keep_the_greatest_variance():
    points = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 2])
    basis = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1))).Q
    plane = in_a_plane(points @ basis[:2])
    distances = torch.cdist(points.double(), points.double())
    torch.testing.assert_close(torch.cdist(plane, plane), distances, rtol=1e-4, atol=1e-4)
    assert plane.var(0)[0] > plane.var(0)[1]


def test_neighbours_stay_neighbours_in_t_sne():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 2
    features = torch.randn(30, 5, generator=generator) + 50 * labels[:, None]
    plane = in_a_plane(features, "tsne")
    assert torch.equal(plane, in_a_plane(features, "tsne"))
    nearest = torch.cdist(plane, plane).fill_diagonal_(torch.inf).argmin(1)
    assert torch.equal(labels[nearest], labels)


@pytest.mark.parametrize(("images", "projection"), [(3, "pca"), (8, "umap")])
def test_bad_options_are_refused(images, projection):
    with pytest.raises(InputError, match=r"images=3|projection='umap'"):
        Representations(images, projection)


def test_all_candidates_are_compared_with_the_base(trainer, encoder, zoo, files, root, tmp_path):
    other = shutil.copytree(root, tmp_path / "data")
    shutil.move(other / "shapes", other / "apart")
    for file in other.glob("apart/*/*/*.png"):
        Image.open(file).rotate(90).save(file)
    shutil.copytree(root / "shapes", other / "shapes")
    from lightning_merge.models.head_files import load_heads, save_heads

    heads = load_heads(files.heads)
    zoo = type(zoo)(zoo.base, zoo.experts, str(tmp_path / "heads.safetensors"))
    save_heads(heads | {"apart": heads["shapes"]}, zoo.heads)
    data = MergeDataModule(str(other), tasks=list(TASKS), out_of_domain=["apart"], batch_size=8)
    callbacks = [MergeCallback(EMR(), "emr"), Representations(images=12)]
    run = trainer(max_epochs=1, callbacks=callbacks)
    module = StatsMerging(encoder, zoo, hidden=8)
    run.fit(module, datamodule=data)
    folder = tmp_path / "run"
    evaluate = Evaluate(MiniViT(**ENCODER), zoo.heads, zoo.base)
    results = compare(run, evaluate, data, module.candidates, folder, seed=0)
    distance = {name: row.distance for name, row in results.candidates.items()}
    assert distance["base"] == {"reds": 0, "shapes": 0, "apart": 0}
    assert all(value > 0 for value in distance["individual"].values())
    assert set(distance) == {"base", "individual", "sml", "emr"}
    rows = torch.randperm(21, generator=generator_of("apart"))[:12]
    images = encoder.preprocess.finish(data.inputs("apart", "test")[rows.tolist()].inputs)
    with torch.no_grad():
        features = {
            file: MiniViT(**ENCODER).load(file)(images)
            for file in [zoo.base, *files.expert.values()]
        }
    by_hand = [(f - features[zoo.base]).norm(dim=1).mean().item() for f in features.values()][1:]
    assert distance["individual"]["apart"] == pytest.approx(sum(by_hand) / 2, rel=1e-4)
    drawn = {file.name for file in (folder / "figures").iterdir()}
    assert {"features_base.png", "features_emr.png", "features_sml.png"} <= drawn
    assert Results.from_json(folder / "results.json") == results
    assert "| distance | distance out of domain |" in (folder / "results.md").read_text()


def generator_of(task):
    from lightning_merge.core.seeding import generator_for

    return generator_for(0, "representations", task)
