# SPDX-License-Identifier: Apache-2.0
"""Says in one line which kernels serve on CPU: `python -m deltarec_kernels`."""

from deltarec_kernels import describe

print(describe())
