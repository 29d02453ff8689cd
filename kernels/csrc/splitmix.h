// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace deltarec {

// SplitMix64 (Steele et al., 2014): a bijection, so hashes order ids without ties.
inline uint64_t mix(int64_t id) {
  uint64_t x = static_cast<uint64_t>(id) + 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

}  // namespace deltarec
