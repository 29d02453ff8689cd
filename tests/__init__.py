# SPDX-License-Identifier: Apache-2.0
import os

# Before torch loads OpenMP: a thread that spins while it waits takes the core from the one that it
# waits for, as workers and ranks are more than there are cores. 57 s of a test became 3.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

# Triton reads it when it is imported, which TorchRec does. With a GPU, kernels run there instead.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
