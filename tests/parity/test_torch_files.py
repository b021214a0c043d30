"""What PyTorch saves is read here as it was, by code that never loads a pickle."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from vidjax.weights.torch_files import Tensors  # noqa: E402


def test_whatever_a_training_run_saves_comes_out_as_it_went_in(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv3d(3, 5, 3), torch.nn.BatchNorm3d(5), torch.nn.Linear(4, 7))
    optimizer = torch.optim.Adam(model.parameters())
    sum(p.square().sum() for p in model.parameters()).backward()
    optimizer.step()
    base = torch.arange(60.0).reshape(3, 4, 5)
    kinds = {
        str(d): base.to(d) for d in (torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)
    }
    extra = {"view": base[1:, ::2].transpose(0, 2), "tied": base, "again": base, "scalar": torch.tensor(2.5)}
    wanted = {**model.state_dict(), **kinds, **extra, "empty": torch.zeros(0, 3), "weight": model[2].weight}
    whole = {"state_dict": wanted, "optimizer": optimizer.state_dict(), "epoch": 3, "args": slice(1, 2)}
    torch.save(whole, tmp_path / "a.ckpt")
    found = Tensors(tmp_path / "a.ckpt")
    assert set(found) == set(wanted)
    for key, value in wanted.items():
        got = found[key]
        assert got.dtype == value.detach().numpy().dtype and got.shape == tuple(value.shape)
        np.testing.assert_array_equal(got, value.detach().numpy())


def test_bf16_is_read(tmp_path):
    value = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    torch.save({"w": value}, tmp_path / "a.pt")
    np.testing.assert_array_equal(np.asarray(Tensors(tmp_path / "a.pt")["w"], np.float32), value.float().numpy())
