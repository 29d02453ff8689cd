// SPDX-License-Identifier: Apache-2.0
// Memory of a thread that its next call takes again. Given back to the system, every page of it would
// be a page fault in the next call: on a virtual machine 1 to 3 microseconds for 4 KiB, which made
// these buffers a twentieth of an update's time.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace deltarec {

// Random accesses to large memory miss the translation cache of small pages nearly every time.
inline void advise_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (begin + kHuge - 1) / kHuge * kHuge, last = (begin + bytes) / kHuge * kHuge;
  // Only advice: a kernel without huge pages refuses it, and nothing is lost.
  if (first < last) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

enum class Slot {
  kItems,
  kOtherItems,
  kGradient,
  kBagPlaces,
  kPlaces,
  kWeights,
  kHashes,
  kMissing,
  kSorted
};

// Room for `count` numbers, of any values, until the same thread asks for the slot again.
template <Slot, typename T>
T* scratch(int64_t count) {
  struct Buffer {
    void* memory = nullptr;
    size_t bytes = 0;
    ~Buffer() { std::free(memory); }
  };
  static thread_local Buffer buffer;
  const size_t needed = static_cast<size_t>(count) * sizeof(T);
  if (needed > buffer.bytes) {
    constexpr size_t kHuge = size_t{2} << 20;
    std::free(buffer.memory);
    buffer.bytes = (needed + kHuge - 1) / kHuge * kHuge;
    buffer.memory = std::aligned_alloc(kHuge, buffer.bytes);
    if (buffer.memory == nullptr) {
      buffer.bytes = 0;
      throw std::bad_alloc();
    }
    advise_huge_pages(buffer.memory, buffer.bytes);
  }
  return static_cast<T*>(buffer.memory);
}

}  // namespace deltarec
