# SPDX-License-Identifier: Apache-2.0
import torch

from deltarec.layers.dropout import sample_keys, set_sample_keys
from deltarec.layers.noise import SampleNoise


def test_it_is_normal_and_the_samples_own():
    noise = SampleNoise()
    index = torch.arange(20_000)
    set_sample_keys(noise, sample_keys(index, seed=1, epoch=0))
    found = noise(torch.empty(20_000, 4, dtype=torch.float64))
    assert found.mean().abs() < 0.01 and (found.std() - 1).abs() < 0.01
    assert (found.pow(4).mean() - 3).abs() < 0.1 and found.isfinite().all()
    assert torch.corrcoef(found.T).fill_diagonal_(0).abs().max() < 0.02
    order = torch.tensor([77, 3, 19_999])
    set_sample_keys(noise, sample_keys(order, seed=1, epoch=0))
    assert torch.equal(noise(torch.empty(3, 4, dtype=torch.float64)), found[order])
    set_sample_keys(noise, sample_keys(order, seed=1, epoch=1))
    assert not torch.equal(noise(torch.empty(3, 4, dtype=torch.float64)), found[order])
