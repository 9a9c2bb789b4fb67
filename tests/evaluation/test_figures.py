import pytest
import torch
from matplotlib.image import imread

from lightning_merge.core.errors import InputError
from lightning_merge.evaluation.figures import (
    coefficient_heatmap,
    group_means,
    lwptv_figure,
    m_loss_map,
    mask_rows,
    pairwise_matrix,
    short_names,
)

TENSORS = [f"transformer.resblocks.{row // 12}.part_{row % 12}.weight" for row in range(150)]


def check(path, rows, columns):
    """The file is a PNG of legible size with more than one colour, alone in its folder."""
    assert path.read_bytes().startswith(b"\x89PNG")
    pixels = imread(path)
    height, width, _ = pixels.shape
    assert height >= 20 * rows
    assert width >= max(900, 10 * columns)
    assert pixels[..., :3].std() > 0.01
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("tasks", "layers"), [(8, 150), (20, 12), (2, 1)])
@pytest.mark.parametrize("centre", [0.0, 0.3])
def test_coefficient_heatmap(tasks, layers, centre, tmp_path):
    coefficients = 0.3 + 0.1 * torch.randn(tasks, layers, requires_grad=True)
    names = [f"task_{row}" for row in range(tasks)]
    path = coefficient_heatmap(
        coefficients, names, TENSORS[:layers], tmp_path / "c.png", centre=centre
    )
    check(path, tasks, layers)


def test_equal_coefficients_can_be_drawn(tmp_path):
    path = coefficient_heatmap(
        torch.full((2, 3), 0.3), ["a", "b"], TENSORS[:3], tmp_path / "c.png", centre=0.3
    )
    check(path, 2, 3)


def test_group_means_of_ragged_layers():
    losses = {"a": torch.arange(7.0), "b": torch.tensor([5.0, 7.0]), "c": torch.ones(5)}
    nan = float("nan")
    expected = torch.tensor([[1.0, 4.0, 6.0], [6.0, nan, nan], [1.0, 1.0, nan]])
    torch.testing.assert_close(group_means(losses, 3), expected, equal_nan=True)


def test_groups_weighted_by_size_average_to_the_layer():
    loss = torch.rand(3072, dtype=torch.float64)
    means = group_means({"fc": loss}, 50)
    assert means.shape == (1, 62)
    weights = torch.tensor([50.0] * 61 + [22.0])
    assert float((means[0] * weights).sum() / 3072) == pytest.approx(float(loss.mean()), rel=1e-5)


@pytest.mark.parametrize("widths", [[3072] * 12, [64, 64, 128, 30]])
def test_m_loss_map(widths, tmp_path):
    losses = {f"blocks.{row}.fc1": torch.rand(width) for row, width in enumerate(widths)}
    path = m_loss_map(losses, tmp_path / "m.png")
    check(path, len(widths), group_means(losses, 50).shape[1])


@pytest.mark.parametrize("tasks", [2, 8, 20])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_pairwise_matrix(tasks, scale, tmp_path):
    values = scale * torch.rand(tasks, tasks, dtype=torch.float64)
    names = [f"task_{row}" for row in range(tasks)]
    check(pairwise_matrix(values, names, tmp_path / "p.png", "M-Loss"), tasks, tasks)


def test_mask_rows_end_with_the_shared_mask():
    masks = torch.tensor([[True, False, False], [False, False, True]])
    rows = mask_rows(masks, masks.any(0))
    assert rows.tolist() == [[1, 0, 0], [0, 0, 1], [1, 0, 1]]


@pytest.mark.parametrize("scores", [10 ** torch.randn(8, 150), torch.zeros(8, 150)])
def test_lwptv_figure(scores, tmp_path):
    scores[:, 3] = 0  # a layer that no expert changed
    masks = scores > scores.median()
    tasks = [f"task_{row}" for row in range(8)]
    path = lwptv_figure(scores, masks, masks.any(0), tasks, TENSORS, tmp_path / "l.png")
    check(path, 17, 150)


def test_short_names_keep_what_tells_layers_apart():
    names = ["proj", *TENSORS, "a_very_long_name.of_a_module.that_repeats_itself.weight"]
    short = short_names(names)
    assert short[0] == "proj"
    assert short[1] == "…0.part_0.weight"
    assert len(set(short)) == len(names)
    assert max(map(len, short)) <= 36
    resnet = ["conv1.weight", "layer1.0.conv1.weight", "layer2.0.conv1.weight"]
    assert short_names(resnet) == resnet


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda path: coefficient_heatmap(torch.ones(2, 3), ["a"], ["x"] * 3, path), r"\(2, 3\)"),
        (lambda path: coefficient_heatmap(torch.ones(0, 0), [], [], path), "coefficients"),
        (lambda path: pairwise_matrix(torch.ones(2, 3), ["a", "b"], path, ""), "values"),
        (lambda path: m_loss_map({}, path), "losses"),
        (lambda path: m_loss_map({"a": torch.ones(2, 2)}, path), r"'a': \(2, 2\)"),
        (lambda path: m_loss_map({"a": torch.ones(2)}, path, group=0), "group=0 must be at least"),
        (
            lambda path: lwptv_figure(
                torch.ones(1, 2), torch.ones(1, 2) > 0, torch.ones(3) > 0, ["a"], ["x", "y"], path
            ),
            "shared",
        ),
    ],
)
def test_what_does_not_fit_is_an_error_and_writes_nothing(draw, message, tmp_path):
    with pytest.raises(InputError, match=message):
        draw(tmp_path / "f.png")
    assert not list(tmp_path.iterdir())
