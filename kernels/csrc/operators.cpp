// SPDX-License-Identifier: Apache-2.0
// The operators on CPU: checks, arguments, and the division of the work among the threads.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <string_view>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "group.h"
#include "scratch.h"
#include "share.h"

namespace deltarec {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

const RowKernels& row_kernels() {
#if defined(__x86_64__)
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  if (avx2) return kAvx2;
#endif
  return kBaseline;
}

template <typename T>
T* pointer(const Tensor& tensor) {
  TORCH_INTERNAL_ASSERT(tensor.is_contiguous() && tensor.is_cpu());
  return tensor.data_ptr<T>();
}

template <typename T>
T* pointer(const OptionalTensor& tensor) {
  return tensor ? pointer<T>(*tensor) : nullptr;
}

const Table* tables_of(const Tensor& tables) {
  TORCH_CHECK(tables.dim() == 2 && tables.size(1) == sizeof(Table) / 8, "tables: wrong layout");
  return reinterpret_cast<const Table*>(pointer<int64_t>(tables));
}

const Feature* features_of(const Tensor& features) {
  return reinterpret_cast<const Feature*>(pointer<int64_t>(features));
}

Tensor longs(const Tensor& tensor) { return tensor.to(at::kLong).contiguous(); }

// [features]: the position in ids where each feature ends.
Tensor feature_ends(const Tensor& features, const Tensor& offsets) {
  const int64_t count = features.size(0), batch = (offsets.numel() - 1) / count;
  Tensor ends = at::empty({count}, at::kLong);
  for (int64_t f = 0; f < count; ++f)
    ends.data_ptr<int64_t>()[f] = offsets.data_ptr<int64_t>()[(f + 1) * batch];
  return ends;
}

// The row kernels skip a bag with an id outside its table, and say where that id stands.
void check_ids(const LookupArguments& a) {
  if (a.invalid < 0) return;
  int64_t feature = 0;
  while (a.invalid >= a.feature_ends[feature]) ++feature;
  TORCH_CHECK_INDEX(false, "id ", a.ids[a.invalid], " is outside its table of ",
                    a.tables[a.features[feature].table].rows, " rows");
}

LookupArguments lookup_arguments(const Tensor& codes, const Tensor& step, const Tensor& tables,
                                 const Tensor& features, const Tensor& ids, const Tensor& offsets,
                                 const Tensor& ends, const OptionalTensor& weights) {
  LookupArguments a{};
  a.codes = pointer<uint8_t>(codes);
  a.step = pointer<float>(step);
  a.tables = tables_of(tables);
  a.features = features_of(features);
  a.ids = pointer<int64_t>(ids);
  a.offsets = pointer<int64_t>(offsets);
  a.feature_ends = pointer<int64_t>(ends);
  a.weights = pointer<float>(weights);
  a.num_features = features.size(0);
  a.num_ids = ids.numel();
  a.batch = (offsets.numel() - 1) / a.num_features;
  a.invalid = -1;
  return a;
}

Tensor lookup(const Tensor& codes, const Tensor& step, const Tensor& tables, const Tensor& features,
              const Tensor& ids_in, const Tensor& offsets_in, const OptionalTensor& weights,
              int64_t bits, std::string_view pooling, int64_t columns, at::ScalarType dtype) {
  const Tensor ids = longs(ids_in), offsets = longs(offsets_in);
  const Tensor ends = feature_ends(features, offsets);
  LookupArguments a =
      lookup_arguments(codes, step, tables, features, ids, offsets, ends, weights);
  const bool pooled = pooling != "none";
  Tensor output = at::empty({pooled ? a.batch : a.num_ids, columns}, codes.options().dtype(dtype));
  a.output = output.data_ptr();
  a.columns = columns;
  a.mean = pooling == "mean";
  a.output_type = dtype == at::kFloat  ? Output::kFloat
                  : dtype == at::kHalf ? Output::kHalf
                                       : Output::kBFloat16;
  if (pooled) {
    share(a.offsets, a.num_features * a.batch, 2, [&](int64_t first, int64_t last) {
      row_kernels().lookup(a, static_cast<int>(bits), first, last);
    });
  } else {
    a.offsets = nullptr;
    at::parallel_for(0, a.num_ids, 1024, [&](int64_t first, int64_t last) {
      row_kernels().lookup(a, static_cast<int>(bits), first, last);
    });
  }
  check_ids(a);
  return output;
}

Tensor lookup_weights_gradient(const Tensor& codes, const Tensor& step, const Tensor& tables,
                               const Tensor& features, const Tensor& ids_in,
                               const Tensor& offsets_in, const Tensor& gradient_in, int64_t bits) {
  const Tensor ids = longs(ids_in), offsets = longs(offsets_in);
  const Tensor ends = feature_ends(features, offsets);
  const Tensor gradient = gradient_in.to(at::kFloat).contiguous();
  LookupArguments a =
      lookup_arguments(codes, step, tables, features, ids, offsets, ends, std::nullopt);
  Tensor output = at::empty({a.num_ids}, gradient.options());
  a.output = output.data_ptr();
  a.columns = gradient.size(1);
  share(a.offsets, a.num_features * a.batch, 2, [&](int64_t first, int64_t last) {
    row_kernels().lookup_weights(a, static_cast<int>(bits), gradient.data_ptr<float>(), first,
                                 last);
  });
  check_ids(a);
  return output;
}

std::tuple<Tensor, Tensor, Tensor> group_rows(const Tensor& tables, const Tensor& features,
                                              const Tensor& ids_in, const Tensor& offsets_in) {
  const Tensor ids = longs(ids_in), offsets = longs(offsets_in);
  TORCH_CHECK_VALUE(ids.numel() < INT32_MAX, "a batch of ", ids.numel(),
                    " ids is too large: one call takes fewer than 2^31");
  const Tensor ends = feature_ends(features, offsets);
  const Table* last = tables_of(tables) + tables.size(0) - 1;
  Tensor order = at::empty({ids.numel()}, at::kInt);
  Tensor runs = at::empty({ids.numel() + 1}, at::kLong), rows = at::empty({ids.numel()}, at::kLong);
  const int64_t distinct = group({tables_of(tables), features_of(features), pointer<int64_t>(ends),
                                  pointer<int64_t>(ids), features.size(0), ids.numel(),
                                  last->first_row + last->rows, pointer<int32_t>(order),
                                  pointer<int64_t>(runs), pointer<int64_t>(rows)});
  TORCH_CHECK_INDEX(distinct >= 0, "id ", distinct < 0 ? ids[-1 - distinct].item<int64_t>() : 0,
                    " is outside its table");
  return {order, runs.resize_({distinct + 1}), rows.resize_({distinct})};
}

Optimizer optimizer_of(std::string_view name) {
  if (name == "sgd") return Optimizer::kSgd;
  if (name == "adagrad") return Optimizer::kAdagrad;
  if (name == "rowwise_adagrad") return Optimizer::kRowwiseAdagrad;
  if (name == "adam") return Optimizer::kAdam;
  if (name == "rowwise_adam") return Optimizer::kRowwiseAdam;
  TORCH_CHECK_VALUE(name == "none", "optimizer ", name, " is not known");
  return Optimizer::kNone;
}

Rates rates_of(at::ArrayRef<double> rates) {
  TORCH_CHECK_VALUE(rates.size() == 8, "rates: expected 8 numbers, got ", rates.size());
  Rates r;
  float* to[] = {&r.learning_rate, &r.eps,   &r.beta1,       &r.rest1,
                 &r.beta2,         &r.rest2, &r.correction1, &r.correction2};
  for (size_t i = 0; i < 8; ++i) *to[i] = static_cast<float>(rates[i]);
  return r;
}

// What the three phases of an update share: where the gradient of every occurrence lies, and the
// rows' sharing among the threads.
struct Update {
  UpdateArguments arguments{};
  int64_t bits;
  Tensor gradient;

  Update(Phase phase, const Tensor& codes, const Tensor& step, const Tensor& tables,
         const Tensor& features, const Tensor& order, const Tensor& runs, const Tensor& rows,
         const Tensor& offsets, const OptionalTensor& weights_in, const Tensor& gradient_in,
         int64_t bits, std::string_view pooling)
      : bits(bits), gradient(gradient_in.to(at::kFloat).contiguous()) {
    UpdateArguments& a = arguments;
    a.phase = phase;
    a.codes = pointer<uint8_t>(codes);
    a.step = pointer<float>(step);
    a.tables = tables_of(tables);
    a.runs = pointer<int64_t>(runs);
    a.rows = pointer<int64_t>(rows);
    a.num_distinct = rows.numel();
    for (int64_t t = 0; t < tables.size(0); ++t) a.width = std::max(a.width, a.tables[t].dim);
    if (weights_in)
      a.weights = by_row<Slot::kWeights>(order, pointer<float>(*weights_in));
    if (pooling == "none") {
      a.gradient = pointer<float>(gradient);
      a.places = place_rows(order);
    } else {
      place_bags(features, order, longs(offsets), pooling == "mean");
    }
  }

  // Gathered once, in a loop that keeps many misses in flight; the row kernel then reads in order.
  template <Slot slot, typename T>
  static const T* by_row(const Tensor& order, const T* from) {
    T* to = scratch<slot, T>(order.numel());
    const int32_t* positions = pointer<int32_t>(order);
    at::parallel_for(0, order.numel(), 16384, [&](int64_t first, int64_t last) {
      for (int64_t at = first; at < last; ++at) to[at] = from[positions[at]];
    });
    return to;
  }

  const int64_t* place_rows(const Tensor& order) const {
    int64_t* place = scratch<Slot::kPlaces, int64_t>(order.numel());
    const int32_t* positions = pointer<int32_t>(order);
    const int64_t columns = gradient.size(1);
    for (int64_t at = 0; at < order.numel(); ++at) place[at] = positions[at] * columns;
    return place;
  }

  // Where bags have several ids, their gradients are copied feature by feature, so that those of one
  // table lie in few pages; and for the mean every bag is divided here, once, not once for each id.
  // Bags of one id are read where they are: that is once, and the copy took half of the update.
  void place_bags(const Tensor& features, const Tensor& order, const Tensor& offsets, bool mean) {
    const Feature* feature = features_of(features);
    const int64_t count = offsets.numel() - 1, batch = count / features.size(0);
    const int64_t columns = gradient.size(1);
    const bool copied = mean || order.numel() > count;
    const int64_t* starts = offsets.data_ptr<int64_t>();
    float* by_feature = copied ? scratch<Slot::kGradient, float>(batch * columns) : nullptr;
    int64_t* place = scratch<Slot::kBagPlaces, int64_t>(order.numel());
    share(starts, count, 4, [&](int64_t first, int64_t last) {
      int64_t f = first / batch, sample = first % batch;
      for (int64_t bag = first; bag < last; ++bag) {
        const Feature& own = feature[f];
        const int64_t dim = arguments.tables[own.table].dim, length = starts[bag + 1] - starts[bag];
        int64_t at = sample * columns + own.column;
        if (copied) {
          const float* from = gradient.data_ptr<float>() + at;
          const float scale = mean && length > 0 ? 1.0f / static_cast<float>(length) : 1.0f;
          at = batch * own.column + sample * dim;
          std::transform(from, from + dim, by_feature + at,
                         [scale](float value) { return value * scale; });
        }
        std::fill_n(place + starts[bag], length, at);
        if (++sample == batch) sample = 0, ++f;
      }
    });
    arguments.gradient = copied ? by_feature : pointer<float>(gradient);
    arguments.places = by_row<Slot::kPlaces>(order, static_cast<const int64_t*>(place));
  }

  void learn_step(const OptionalTensor& moment1, const OptionalTensor& moment2,
                  const Tensor& gradient_scale, std::string_view optimizer,
                  at::ArrayRef<double> rates, double factor) {
    arguments.step_moment1 = pointer<float>(moment1);
    arguments.step_moment2 = pointer<float>(moment2);
    arguments.gradient_scale = pointer<float>(gradient_scale);
    arguments.step_optimizer = optimizer_of(optimizer);
    arguments.step_rates = rates_of(rates);
    arguments.step_factor = static_cast<float>(factor);
  }

  void optimise(const OptionalTensor& moment1, const OptionalTensor& moment2,
                std::string_view optimizer, at::ArrayRef<double> rates) {
    arguments.moment1 = pointer<float>(moment1);
    arguments.moment2 = pointer<float>(moment2);
    arguments.optimizer = optimizer_of(optimizer);
    arguments.rates = rates_of(rates);
  }

  void round(bool stochastic, int64_t seed, int64_t number) {
    arguments.stochastic = stochastic;
    arguments.seed = static_cast<uint64_t>(seed);
    arguments.number = static_cast<uint32_t>(number);
  }

  void run() const {
    const UpdateArguments& a = arguments;
    share(a.runs, a.num_distinct, 2, [&](int64_t first, int64_t last) {
      std::vector<float> scratch(scratch_floats(a.width));
      row_kernels().update(a, static_cast<int>(bits), first, last, scratch.data());
    });
  }
};

void update(const Tensor& codes, const Tensor& step, const OptionalTensor& moment1,
            const OptionalTensor& moment2, const OptionalTensor& step_moment1,
            const OptionalTensor& step_moment2, const Tensor& tables, const Tensor& features,
            const Tensor& gradient_scale, const Tensor& order, const Tensor& runs,
            const Tensor& rows, const Tensor& offsets, const OptionalTensor& weights,
            const Tensor& gradient, int64_t bits, std::string_view pooling,
            std::string_view optimizer, at::ArrayRef<double> rates,
            std::string_view step_optimizer, at::ArrayRef<double> step_rates, double step_factor,
            bool stochastic, int64_t seed, int64_t number) {
  Update work(Phase::kWhole, codes, step, tables, features, order, runs, rows, offsets, weights,
              gradient, bits, pooling);
  work.optimise(moment1, moment2, optimizer, rates);
  work.learn_step(step_moment1, step_moment2, gradient_scale, step_optimizer, step_rates,
                  step_factor);
  work.round(stochastic, seed, number);
  work.run();
}

Tensor update_rows(const Tensor& codes, const Tensor& step, const OptionalTensor& moment1,
                   const OptionalTensor& moment2, const Tensor& tables, const Tensor& features,
                   const Tensor& order, const Tensor& runs, const Tensor& rows,
                   const Tensor& offsets, const OptionalTensor& weights, const Tensor& gradient,
                   int64_t width, int64_t bits, std::string_view pooling,
                   std::string_view optimizer, at::ArrayRef<double> rates) {
  Update work(Phase::kRows, codes, step, tables, features, order, runs, rows, offsets, weights,
              gradient, bits, pooling);
  work.optimise(moment1, moment2, optimizer, rates);
  Tensor updated = at::empty({rows.numel(), width}, step.options());
  work.arguments.updated = updated.data_ptr<float>();
  work.arguments.width = width;
  work.run();
  return updated;
}

void update_step(const Tensor& codes, const Tensor& step, const OptionalTensor& step_moment1,
                 const OptionalTensor& step_moment2, const Tensor& tables, const Tensor& features,
                 const Tensor& gradient_scale, const Tensor& order, const Tensor& runs,
                 const Tensor& rows, const Tensor& offsets, const OptionalTensor& weights,
                 const Tensor& gradient, const Tensor& updated, int64_t bits,
                 std::string_view pooling, std::string_view step_optimizer,
                 at::ArrayRef<double> step_rates, double step_factor, bool stochastic,
                 int64_t seed, int64_t number) {
  Update work(Phase::kStep, codes, step, tables, features, order, runs, rows, offsets, weights,
              gradient, bits, pooling);
  work.learn_step(step_moment1, step_moment2, gradient_scale, step_optimizer, step_rates,
                  step_factor);
  work.round(stochastic, seed, number);
  work.arguments.updated = pointer<float>(updated);
  work.arguments.width = updated.size(1);
  work.run();
}

FakeQuantiseArguments fake_arguments(const Tensor& weight, const Tensor& step, int64_t bits) {
  FakeQuantiseArguments a{};
  a.weight = pointer<float>(weight);
  a.step = pointer<float>(step);
  a.dim = weight.size(1);
  a.block = weight.size(1) / step.size(1);
  a.bits = static_cast<int>(bits);
  return a;
}

// The factor is backward's.
Tensor fake_quantise(const Tensor& weight_in, const Tensor& step_in, int64_t bits, double) {
  const Tensor weight = weight_in.contiguous(), step = step_in.contiguous();
  Tensor output = at::empty_like(weight);
  FakeQuantiseArguments a = fake_arguments(weight, step, bits);
  a.output = output.data_ptr<float>();
  at::parallel_for(0, step.numel(), 256, [&](int64_t first, int64_t last) {
    row_kernels().fake_quantise(a, first, last);
  });
  return output;
}

std::tuple<Tensor, Tensor> fake_quantise_backward(const Tensor& gradient_in,
                                                  const Tensor& weight_in, const Tensor& step_in,
                                                  int64_t bits, double factor) {
  const Tensor gradient = gradient_in.contiguous();
  const Tensor weight = weight_in.contiguous(), step = step_in.contiguous();
  Tensor output = at::empty_like(weight), step_gradient = at::empty_like(step);
  FakeQuantiseArguments a = fake_arguments(weight, step, bits);
  a.gradient = gradient.data_ptr<float>();
  a.output = output.data_ptr<float>();
  a.step_gradient = step_gradient.data_ptr<float>();
  a.factor = static_cast<float>(factor);
  at::parallel_for(0, step.numel(), 256, [&](int64_t first, int64_t last) {
    row_kernels().fake_quantise_backward(a, first, last);
  });
  return {output, step_gradient};
}

void advise_huge_pages_for(const Tensor& tensor) {
  advise_huge_pages(tensor.data_ptr(), tensor.nbytes());
}

std::string instruction_set() { return row_kernels().name; }

}  // namespace

TORCH_LIBRARY_IMPL(deltarec, CPU, m) {
  m.impl("lookup", lookup);
  m.impl("lookup_weights_gradient", lookup_weights_gradient);
  m.impl("group_rows", group_rows);
  m.impl("update", update);
  m.impl("update_rows", update_rows);
  m.impl("update_step", update_step);
  m.impl("fake_quantise", fake_quantise);
  m.impl("fake_quantise_backward", fake_quantise_backward);
}

TORCH_LIBRARY(deltarec_native, m) {
  m.def("advise_huge_pages(Tensor tensor) -> ()", advise_huge_pages_for);
  m.def("instruction_set() -> str", instruction_set);
}

}  // namespace deltarec
