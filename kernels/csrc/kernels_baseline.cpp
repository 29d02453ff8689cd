// SPDX-License-Identifier: Apache-2.0
// The row kernels for any machine.
#include <c10/util/Half.h>

#include "arguments.h"

namespace deltarec {
namespace baseline {
namespace {
#include "kernels.inl"
}
}  // namespace baseline

const RowKernels kBaseline = {
    "baseline",          baseline::lookup,        baseline::lookup_weights,
    baseline::update,    baseline::fake_quantise, baseline::fake_quantise_backward};
}  // namespace deltarec
