# SPDX-License-Identifier: Apache-2.0
import os

import torch

# Triton reads it when it is imported, which TorchRec does. With a GPU, kernels run there instead.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
