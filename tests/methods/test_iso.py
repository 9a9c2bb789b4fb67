"""Iso-C and Iso-CTS: parity, and the spectra that they promise."""

import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.methods.iso import IsoC, IsoCTS


@pytest.mark.shared
@pytest.mark.parametrize(("method", "file"), [(IsoC, "iso_c_f32"), (IsoCTS, "iso_cts_f32")])
def test_published(method, file, zoo, expected):
    base, experts, _ = zoo
    merged = method(convolutions="average")(base, experts)
    for name, want in expected(file).items():
        torch.testing.assert_close(merged[name] - base[name], want, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_all_singular_values_are_the_mean(shape):
    matrices = torch.randn(3, *shape).double()
    mean = torch.linalg.svdvals(matrices.sum(0)).mean()
    values = torch.linalg.svdvals(IsoC().merged(matrices))
    torch.testing.assert_close(values, mean.expand(12))
    values = torch.linalg.svdvals(IsoCTS(common=0.5).merged(matrices))
    torch.testing.assert_close(values, values.mean().expand(12))


def test_all_in_common_is_iso_c():
    matrices = torch.randn(3, 7, 9)
    torch.testing.assert_close(IsoCTS(common=1.0).merged(matrices), IsoC().merged(matrices))
    many = torch.randn(20, 7, 9)  # too few dimensions for any expert to have one
    torch.testing.assert_close(IsoCTS().merged(many), IsoC().merged(many))


def test_what_a_single_expert_changes_gets_a_direction():
    """Two experts agree on two large directions; each has a small one that Iso-C would mix."""
    matrices = torch.zeros(2, 4, 4).double()
    matrices[:, 0, 0], matrices[:, 1, 1] = 5.0, 4.0
    matrices[0, 2, 2], matrices[1, 3, 3] = 1.0, 0.5
    want = torch.eye(4).double() * (10 + 8 + 1 + 0.5) / 4
    torch.testing.assert_close(IsoCTS(common=0.5).merged(matrices), want)


def test_directions_that_nobody_changed_stay():
    matrices = torch.zeros(2, 5, 6)
    matrices[:, :2, :3] = torch.randn(2, 2, 3)
    for method in (IsoC(), IsoCTS()):
        update = method.merged(matrices)
        assert torch.equal(update[2:], torch.zeros(3, 6).double())
        assert update[:2].abs().sum() > 0.1


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (IsoC, {"scale": float("nan")}),
        (IsoC, {"convolutions": "x"}),
        (IsoCTS, {"scale": float("inf")}),
        (IsoCTS, {"common": 1.1}),
    ],
)
def test_bad_options_name_the_argument(method, options):
    with pytest.raises(InputError, match=next(iter(options))):
        method(**options)
