// SPDX-License-Identifier: Apache-2.0
// Eight lanes of everything, by the vector types of GCC and Clang; `kernels.inl` says why.

typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef float f32x4 __attribute__((vector_size(16)));
typedef double f64x4 __attribute__((vector_size(32)));
typedef int8_t i8x8 __attribute__((vector_size(8)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));

inline f32x8 splat(float x) { return f32x8{x, x, x, x, x, x, x, x}; }

// The first `count` of eight floats, the other lanes zero.
inline f32x8 load(const float* from, int64_t count = 8) {
  f32x8 lanes = splat(0.0f);
  if (count >= 8) {
    __builtin_memcpy(&lanes, from, 32);
  } else {
    __builtin_memcpy(&lanes, from, 4 * count);
  }
  return lanes;
}

inline void store(float* to, f32x8 lanes, int64_t count = 8) {
  if (count >= 8) {
    __builtin_memcpy(to, &lanes, 32);
  } else {
    __builtin_memcpy(to, &lanes, 4 * count);
  }
}

// Whole numbers only.
inline i32x8 to_integers(f32x8 x) {
#if defined(DELTAREC_AVX2)
  return (i32x8)_mm256_cvttps_epi32((__m256)x);
#else
  return __builtin_convertvector(x, i32x8);
#endif
}

inline i32x8 floor(f32x8 x) {
#if defined(DELTAREC_AVX2)
  return to_integers((f32x8)_mm256_floor_ps((__m256)x));
#else
  const i32x8 truncated = to_integers(x);
  return truncated + (__builtin_convertvector(truncated, f32x8) > x);
#endif
}

inline f32x8 square_root(f32x8 x) {
#if defined(DELTAREC_AVX2)
  return (f32x8)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < 8; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

inline i32x8 widen(u16x8 x) {
#if defined(DELTAREC_AVX2)
  return (i32x8)_mm256_cvtepu16_epi32((__m128i)x);
#else
  return __builtin_convertvector(x, i32x8);
#endif
}

// A sum of products of fp32 numbers in double precision.
struct Products {
  f64x4 low = {0, 0, 0, 0}, high = {0, 0, 0, 0};

  void add(f32x8 a, f32x8 b) {
    low += widen(half<0>(a)) * widen(half<0>(b));
    high += widen(half<1>(a)) * widen(half<1>(b));
  }

  double sum() const {
    const f64x4 both = low + high;
    return (both[0] + both[2]) + (both[1] + both[3]);
  }

 private:
  template <int Which>
  static f32x4 half(f32x8 x) {
    constexpr int k = 4 * Which;
    return __builtin_shufflevector(x, x, k, k + 1, k + 2, k + 3);
  }

  static f64x4 widen(f32x4 x) { return __builtin_convertvector(x, f64x4); }
};

// Eight columns of codes are `Bits` bytes: two's complement, the first column in the lowest bits.
template <int Bits>
inline i32x8 load_codes(const uint8_t* from) {
  const i32x8 lane = {0, 1, 2, 3, 4, 5, 6, 7};
  if constexpr (Bits == 8) {
#if defined(DELTAREC_AVX2)
    return (i32x8)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from));
#else
    i8x8 bytes;
    __builtin_memcpy(&bytes, from, 8);
    return __builtin_convertvector(bytes, i32x8);
#endif
  } else {
    uint32_t word = 0;
    __builtin_memcpy(&word, from, Bits);
    const u32x8 words = {word, word, word, word, word, word, word, word};
    return (i32x8)(words << (u32x8)(32 - Bits - Bits * lane)) >> (32 - Bits);
  }
}

template <int Bits>
inline void store_codes(uint8_t* to, i32x8 codes) {
  uint64_t packed;
#if defined(DELTAREC_AVX2)
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)codes),
                                        _mm256_extracti128_si256((__m256i)codes, 1));
  packed = (uint64_t)_mm_cvtsi128_si64(_mm_packs_epi16(words, words));
#else
  const i8x8 narrow = __builtin_convertvector(codes, i8x8);
  __builtin_memcpy(&packed, &narrow, 8);
#endif
  if constexpr (Bits == 4) {
    packed &= 0x0f0f0f0f0f0f0f0f;
    packed = (packed | packed >> 4) & 0x00ff00ff00ff00ff;
    packed = (packed | packed >> 8) & 0x0000ffff0000ffff;
    packed |= packed >> 16;
  } else if constexpr (Bits == 2) {
    packed &= 0x0303030303030303;
    packed = (packed | packed >> 6) & 0x000f000f000f000f;
    packed = (packed | packed >> 12) & 0x000000ff000000ff;
    packed |= packed >> 24;
  }
  __builtin_memcpy(to, &packed, Bits);
}

// The last columns of a row that is no multiple of eight: fewer bytes, and none beyond them touched.
template <int Bits>
inline i32x8 load_codes(const uint8_t* from, int64_t count) {
  if (count >= 8) return load_codes<Bits>(from);
  uint8_t bytes[8] = {0};
  for (int64_t i = 0; i < (count * Bits + 7) / 8; ++i) bytes[i] = from[i];
  return load_codes<Bits>(bytes);
}

template <int Bits>
inline void store_codes(uint8_t* to, i32x8 codes, int64_t count) {
  if (count >= 8) return store_codes<Bits>(to, codes);
  for (int64_t i = count; i < 8; ++i) codes[i] = 0;
  uint8_t bytes[8];
  store_codes<Bits>(bytes, codes);
  for (int64_t i = 0; i < (count * Bits + 7) / 8; ++i) to[i] = bytes[i];
}

// Philox4x32-10's keys of every round, made once for many calls.
struct PhiloxKeys {
  alignas(32) uint64_t first[10][4], second[10][4];  // in each 64-bit lane the same

  explicit PhiloxKeys(uint64_t seed) {
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      for (int lane = 0; lane < 4; ++lane) {
        first[round][lane] = key0;
        second[round][lane] = key1;
      }
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
  }
};

// Philox4x32-10, eight calls at once. The four words of call i go to `words + 4 * i`.
inline void philox(u32x8 c0, u32x8 c1, uint32_t c2, uint32_t c3, const PhiloxKeys& keys,
                   uint32_t* words) {
#if defined(DELTAREC_AVX2)
  // Four calls, one in each 64-bit lane: a product's two halves are then the words of the next round
  // where they stand, since the multiplication reads only the low half of a lane. Two times four
  // side by side, for a round is one long chain of latencies.
  const __m256i left = _mm256_set1_epi64x(0xD2511F53), right = _mm256_set1_epi64x(0xCD9E8D57);
  const auto widen = [](u32x8 x, bool high) {
    return _mm256_cvtepu32_epi64(high ? _mm256_extracti128_si256((__m256i)x, 1)
                                      : _mm256_castsi256_si128((__m256i)x));
  };
  __m256i a0 = widen(c0, false), a1 = widen(c1, false), a2 = _mm256_set1_epi64x(c2);
  __m256i b0 = widen(c0, true), b1 = widen(c1, true), b2 = a2;
  __m256i a3 = _mm256_set1_epi64x(c3), b3 = a3;
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const __m256i key0 = _mm256_load_si256((const __m256i*)keys.first[round]);
    const __m256i key1 = _mm256_load_si256((const __m256i*)keys.second[round]);
    const __m256i al = _mm256_mul_epu32(a0, left), ar = _mm256_mul_epu32(a2, right);
    const __m256i bl = _mm256_mul_epu32(b0, left), br = _mm256_mul_epu32(b2, right);
    a0 = _mm256_srli_epi64(ar, 32) ^ a1 ^ key0;
    b0 = _mm256_srli_epi64(br, 32) ^ b1 ^ key0;
    a2 = _mm256_srli_epi64(al, 32) ^ a3 ^ key1;
    b2 = _mm256_srli_epi64(bl, 32) ^ b3 ^ key1;
    a1 = ar, a3 = al, b1 = br, b3 = bl;
  }
  const auto write = [](__m256i w0, __m256i w1, __m256i w2, __m256i w3, uint32_t* to) {
    const __m256i low = _mm256_blend_epi32(w0, _mm256_slli_epi64(w1, 32), 0xaa);
    const __m256i high = _mm256_blend_epi32(w2, _mm256_slli_epi64(w3, 32), 0xaa);
    const __m256i even = _mm256_unpacklo_epi64(low, high);  // calls 0 and 2
    const __m256i odd = _mm256_unpackhi_epi64(low, high);   // calls 1 and 3
    _mm256_storeu_si256((__m256i*)to, _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_storeu_si256((__m256i*)to + 1, _mm256_permute2x128_si256(even, odd, 0x31));
  };
  write(a0, a1, a2, a3, words);
  write(b0, b1, b2, b3, words + 16);
#else
  for (int i = 0; i < 8; ++i) {
    uint32_t w0 = c0[i], w1 = c1[i], w2 = c2, w3 = c3;
    for (int round = 0; round < 10; ++round) {
      const uint64_t left = (uint64_t)w0 * 0xD2511F53u, right = (uint64_t)w2 * 0xCD9E8D57u;
      w0 = (uint32_t)(right >> 32) ^ w1 ^ (uint32_t)keys.first[round][0];
      w1 = (uint32_t)right;
      w2 = (uint32_t)(left >> 32) ^ w3 ^ (uint32_t)keys.second[round][0];
      w3 = (uint32_t)left;
    }
    const uint32_t call[4] = {w0, w1, w2, w3};
    __builtin_memcpy(words + 4 * i, call, 16);
  }
#endif
}

inline void store_output(Output type, void* output, int64_t at, f32x8 lanes, int64_t count) {
  if (type == Output::kFloat) return store((float*)output + at, lanes, count);
  u16x8 narrow;
  if (type == Output::kBFloat16) {
    const u32x8 raw = (u32x8)lanes;
    const u32x8 rounded = (raw + 0x7fffu + ((raw >> 16) & 1u)) >> 16;
    const u32x8 chosen = (u32x8)(lanes == lanes) & rounded;
    narrow = __builtin_convertvector(chosen | ((u32x8)(lanes != lanes) & 0x7fc0u), u16x8);
  } else {
#if defined(DELTAREC_AVX2)
    const __m128i half = _mm256_cvtps_ph((__m256)lanes, _MM_FROUND_TO_NEAREST_INT);
    __builtin_memcpy(&narrow, &half, 16);
#else
    for (int i = 0; i < 8; ++i) narrow[i] = c10::detail::fp16_ieee_from_fp32_value(lanes[i]);
#endif
  }
  uint16_t* to = (uint16_t*)output + at;
  if (count >= 8) {
    __builtin_memcpy(to, &narrow, 16);
  } else {
    __builtin_memcpy(to, &narrow, 2 * count);
  }
}
