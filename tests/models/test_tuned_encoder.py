# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch

from deltarec.layers.lora import LoRAConfig
from deltarec.models.tuned_encoder import TunedEncoder
from tests.text.tiny import save_tiny_encoder


def test_it_is_a_projection_of_the_encoders_mean(tmp_path: Path):
    """Each text alone as the model reads it; equal and absent ones too; none at all."""
    folder = save_tiny_encoder(tmp_path)
    config = TunedEncoder.Config(name="language_model", model=str(folder), dim=3)
    adaptor = TunedEncoder(config, {"title": 5}).eval()
    tokens = [[9, 10, 11], [], [7, 8, 9, 10, 11], [9, 10, 11]]
    rows = torch.tensor([[t + 1 for t in ts] + [0] * (5 - len(ts)) for ts in tokens])
    got = adaptor("title", rows.float())
    for row, ts in enumerate(tokens):
        states = adaptor.language_model.backbone(torch.tensor([[1, *ts, 2]])).last_hidden_state
        torch.testing.assert_close(got[row], adaptor.project(states[0].mean(0)))
    assert adaptor("title", rows[:0].float()).shape == (0, 3)
    lossy = config.model_copy(update={"lora": LoRAConfig(dropout=0.1)})
    with pytest.raises(ValueError, match="encoded once; set it to 0"):
        TunedEncoder(lossy, {"title": 5})
