# SPDX-License-Identifier: Apache-2.0
"""Text vectors of a language model that is tuned with the ranking model, beside its tables.

Wu et al., Empowering News Recommendation with Pre-trained Language Models (PLM-NR), SIGIR 2021
(arXiv 2104.07413), with LoRA.
"""

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from deltarec.models.roles import TextAdaptor
from deltarec.text.language_model import LanguageModel, LanguageModelConfig
from deltarec.text.prompt import ABSENT, left_aligned


class TunedEncoder(TextAdaptor):
    """`W pool(LM(text)) + b`: the tables are those of `text tokenise`.

    Equal texts of a rank's batch are encoded once, so no mask of a sample's own is possible.
    """

    class Config(LanguageModelConfig):
        """Options of the language_model adaptor."""

        name: Literal["language_model"]
        dim: int = Field(default=16, gt=0)
        """Columns of the field."""

    reads_codes = True

    def __init__(self, config: Config, dims: Mapping[str, int]) -> None:
        super().__init__(config, dims)
        if config.lora is not None and config.lora.dropout:
            raise ValueError(
                f"model.text.lora.dropout: {config.lora.dropout}, but equal texts of a batch are "
                "encoded once; set it to 0"
            )
        self.output_dim = config.dim
        self.language_model = LanguageModel(config)
        self.project = nn.Linear(self.language_model.dim, config.dim)

    def forward(self, table: str, vectors: Tensor) -> Tensor:
        # One row more, of no text: also a rank without any has gradients.
        rows = F.pad(vectors.round().long(), (0, 0, 1, 0)) - 1
        texts, place = rows.unique(dim=0, return_inverse=True)
        before, after = (texts.new_tensor(frame) for frame in self.language_model.frame())
        size = len(texts)
        tokens = left_aligned([before.expand(size, -1), texts, after.expand(size, -1)])[0]
        embeddings = self.language_model.embed(tokens.clamp(min=0))
        mask = tokens != ABSENT
        pooled = self.language_model.pool(self.language_model(embeddings, mask), mask)
        return self.project(pooled)[place[1:]]
