// The compiled kernels as Python functions; timecycle/ops declares the operators and checks their arguments.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>

#include <functional>
#include <string>
#include <tuple>

#include "attention/attention.h"
#include "attention/softmax_at.h"
#include "simd/loops.h"
#include "sizes.h"
#include "topk_affinity/panels.h"
#include "topk_affinity/propagate_sequence.h"
#include "topk_affinity/topk_affinity.h"
#include "topk_affinity/topk_affinity_backward.h"

namespace {

using at::Tensor;

thread_local timecycle::TopkAffinityReport last_report;

timecycle::Problem problem_of(const Tensor& query, const Tensor& bank, const Tensor& frames, const Tensor& multiplicity,
                              int64_t k, double temperature, bool joint, bool softmax_over_all, bool keep_ties,
                              int64_t grid_width, std::vector<int64_t> half_widths) {
  TORCH_CHECK_VALUE(query.size(2) > 0, "the features have no channels");
  TORCH_CHECK_VALUE(timecycle::checked_product({frames.size(1), bank.size(1)}) < timecycle::kIndices,
                    "the slots have more positions than 32 bits number");
  TORCH_CHECK_VALUE(k > 0 && k < timecycle::kIndices, "k is ", k, "; expected 1 to ", timecycle::kIndices - 1);
  return {.query = query.const_data_ptr(),
          .bank = bank.const_data_ptr(),
          .frames = frames.const_data_ptr<int64_t>(),
          .multiplicity = multiplicity.const_data_ptr<int64_t>(),
          .targets = query.size(0),
          .queries = query.size(1),
          .channels = query.size(2),
          .bank_frames = bank.size(0),
          .positions = bank.size(1),
          .slots = frames.size(1),
          .k = k,
          .softmax_scale = static_cast<float>(1.0 / temperature),
          .joint = joint,
          .softmax_over_all = softmax_over_all,
          .keep_ties = keep_ties,
          .grid_width = grid_width,
          .half_widths = std::move(half_widths)};
}

timecycle::Products products_of(const std::string& name) {
  if (name == "fastest") return timecycle::Products::kFastest;
  if (name == "direct") return timecycle::Products::kDirect;
  TORCH_CHECK_VALUE(name == "bytes", "products is '", name, "'; expected 'fastest', 'direct' or 'bytes'");
  return timecycle::Products::kBytes;
}

// Calls run<Feature>() for the type of the features.
template <typename Function>
auto for_feature_type(const Tensor& features, const Function& run) {
  return AT_DISPATCH_SWITCH(features.scalar_type(), "the features",
                            AT_DISPATCH_CASE(at::kFloat, [&] { return run.template operator()<scalar_t>(); })
                                AT_DISPATCH_CASE(at::kBFloat16, [&] { return run.template operator()<scalar_t>(); })
                                    AT_DISPATCH_CASE(at::kHalf, [&] { return run.template operator()<scalar_t>(); }));
}

std::tuple<Tensor, Tensor, Tensor> topk_affinity(const Tensor& query, const Tensor& bank, const Tensor& frames,
                                                 const Tensor& multiplicity, int64_t k, double temperature, bool joint,
                                                 bool softmax_over_all, bool keep_ties, int64_t grid_width,
                                                 std::vector<int64_t> half_widths, const std::string& products) {
  const timecycle::Problem problem = problem_of(query, bank, frames, multiplicity, k, temperature, joint,
                                                softmax_over_all, keep_ties, grid_width, std::move(half_widths));
  Tensor weights, indices;
  Tensor denominators = at::empty({problem.targets, problem.queries, softmax_over_all ? problem.groups() : 0},
                                  query.options().dtype(at::kFloat));
  const std::function<timecycle::TopkAffinityOut(int64_t)> allocate = [&](int64_t kept) {
    weights = at::empty({problem.targets, problem.queries, problem.groups() * kept}, denominators.options());
    indices = at::empty({problem.targets, problem.queries, problem.groups() * kept}, frames.options());
    return timecycle::TopkAffinityOut{weights.mutable_data_ptr<float>(), indices.mutable_data_ptr<int64_t>(),
                                      denominators.mutable_data_ptr<float>()};
  };
  timecycle::TopkWriter writer(problem, allocate);
  last_report = for_feature_type(query, [&]<typename Feature>() {
    return timecycle::topk_affinity_cpu<Feature>(problem, products_of(products), writer);
  });
  writer.finish();
  return {weights, indices, denominators};
}

Tensor affinity_propagate(const Tensor& query, const Tensor& bank, const Tensor& frames, const Tensor& labels,
                          const Tensor& label_frames, const Tensor& multiplicity, int64_t k, double temperature,
                          bool joint, bool softmax_over_all, bool keep_ties, int64_t grid_width,
                          std::vector<int64_t> half_widths) {
  const timecycle::Problem problem = problem_of(query, bank, frames, multiplicity, k, temperature, joint,
                                                softmax_over_all, keep_ties, grid_width, std::move(half_widths));
  Tensor out = at::zeros({problem.targets, problem.queries, labels.size(2)}, labels.options());
  timecycle::LabelSink sink(problem, labels.const_data_ptr<float>(), label_frames.const_data_ptr<int64_t>(),
                            labels.size(2), out.mutable_data_ptr<float>());
  for_feature_type(query, [&]<typename Feature>() {
    timecycle::topk_affinity_cpu<Feature>(problem, timecycle::Products::kFastest, sink);
  });
  return out;
}

// Gradients of query and bank from `gradient`, that of the weights; the rest is what the forward took and gave.
std::tuple<Tensor, Tensor> topk_affinity_backward(const Tensor& gradient, const Tensor& weights, const Tensor& indices,
                                                  const Tensor& denominators, const Tensor& query, const Tensor& bank,
                                                  const Tensor& frames, const Tensor& multiplicity, double temperature,
                                                  bool joint, bool softmax_over_all, int64_t grid_width,
                                                  std::vector<int64_t> half_widths) {
  const timecycle::Problem problem = problem_of(query, bank, frames, multiplicity, 1, temperature, joint,
                                                softmax_over_all, false, grid_width, std::move(half_widths));
  Tensor d_query = at::empty_like(query), d_bank = at::empty_like(bank);
  const timecycle::TopkAffinityGradient in{.gradient = gradient.const_data_ptr<float>(),
                                           .weights = weights.const_data_ptr<float>(),
                                           .indices = indices.const_data_ptr<int64_t>(),
                                           .denominators = denominators.const_data_ptr<float>(),
                                           .kept = weights.size(2) / problem.groups()};
  for_feature_type(query, [&]<typename Feature>() {
    timecycle::topk_affinity_backward_cpu<Feature>(problem, in, d_query.mutable_data_ptr<Feature>(),
                                                   d_bank.mutable_data_ptr<Feature>());
  });
  return {d_query, d_bank};
}

// Labels of a whole video: labels [G, N, L] are changed in place, extremes [B, L, 2] is scratch.
void propagate_sequence(const Tensor& weights, const Tensor& indices, const Tensor& labels, const Tensor& frames,
                        const Tensor& targets, const Tensor& extremes, bool rescale) {
  const timecycle::Sequence call{.weights = weights.const_data_ptr<float>(),
                                 .indices = indices.const_data_ptr<int64_t>(),
                                 .frames = frames.const_data_ptr<int64_t>(),
                                 .targets = targets.const_data_ptr<int64_t>(),
                                 .labels = labels.mutable_data_ptr<float>(),
                                 .extremes = reinterpret_cast<uint32_t*>(extremes.mutable_data_ptr<int32_t>()),
                                 .target_count = weights.size(0),
                                 .positions = weights.size(1),
                                 .kept = weights.size(2),
                                 .slots = frames.size(1),
                                 .classes = labels.size(2),
                                 .rescale = rescale};
  timecycle::propagate_sequence_cpu(call, at::get_num_threads());
}

// A call of attention; its tensors, made float here, must outlive it.
struct AttentionInputs {
  Tensor query, key, value, scale;
  timecycle::AttentionProblem call;

  AttentionInputs(const Tensor& query_in, const Tensor& key_in, const Tensor& value_in, const Tensor& scale_in,
                  double temperature, std::vector<int64_t> shifts, int64_t threshold, int64_t seed)
      : query(query_in.to(at::kFloat)), key(key_in.to(at::kFloat)), value(value_in.to(at::kFloat)), scale(scale_in) {
    call = {.query = query.const_data_ptr<float>(),
            .key = key.const_data_ptr<float>(),
            .value = value.const_data_ptr<float>(),
            .scale = scale.const_data_ptr<float>(),
            .samples = query.size(0),
            .queries = query.size(1),
            .keys = key.size(1),
            .channels = query.size(2),
            .columns = value.size(-1),
            .shared = value.dim() == 3,
            .shifts = std::move(shifts),
            .softmax_scale = static_cast<float>(1.0 / temperature),
            .threshold = static_cast<uint32_t>(threshold),
            .seed = static_cast<uint32_t>(seed)};
  }
};

std::tuple<Tensor, Tensor> attention(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& scale,
                                     double temperature, std::vector<int64_t> shifts, int64_t threshold, int64_t seed) {
  const AttentionInputs in(query, key, value, scale, temperature, std::move(shifts), threshold, seed);
  Tensor out = at::empty({in.call.samples, in.call.rows(), in.call.columns}, scale.options());
  Tensor lse = at::empty({in.call.samples, in.call.queries}, scale.options());
  timecycle::attention_cpu(in.call, out.mutable_data_ptr<float>(), lse.mutable_data_ptr<float>());
  return {out.to(value.scalar_type()), lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(const Tensor& d_out, const Tensor& d_lse,
                                                              const Tensor& query, const Tensor& key,
                                                              const Tensor& value, const Tensor& scale, const Tensor&,
                                                              const Tensor& lse, double temperature,
                                                              std::vector<int64_t> shifts, int64_t threshold,
                                                              int64_t seed) {
  const AttentionInputs in(query, key, value, scale, temperature, std::move(shifts), threshold, seed);
  const Tensor d_rows = d_out.to(at::kFloat);
  Tensor d_query = at::empty(query.sizes(), scale.options()), d_key = at::empty(key.sizes(), scale.options());
  // Values for all samples have a gradient, 0, even if there is no sample.
  Tensor d_value =
      in.call.samples > 0 ? at::empty(value.sizes(), scale.options()) : at::zeros(value.sizes(), scale.options());
  Tensor d_scale = at::empty(scale.sizes(), scale.options());
  timecycle::attention_backward_cpu(in.call, {.d_out = d_rows.const_data_ptr<float>(),
                                              .d_lse = d_lse.const_data_ptr<float>(),
                                              .lse = lse.const_data_ptr<float>(),
                                              .d_query = d_query.mutable_data_ptr<float>(),
                                              .d_key = d_key.mutable_data_ptr<float>(),
                                              .d_value = d_value.mutable_data_ptr<float>(),
                                              .d_scale = d_scale.mutable_data_ptr<float>()});
  const at::ScalarType type = query.scalar_type();
  return {d_query.to(type), d_key.to(type), d_value.to(type), d_scale};
}

timecycle::SoftmaxAtProblem edges_of(const Tensor& query, const Tensor& key, const Tensor& scale, const Tensor& lse,
                                     const Tensor& indices, double temperature) {
  return {.scale = scale.const_data_ptr<float>(),
          .lse = lse.const_data_ptr<float>(),
          .indices = indices.const_data_ptr<int64_t>(),
          .samples = query.size(0),
          .queries = query.size(1),
          .keys = key.size(1),
          .channels = query.size(2),
          .edges = indices.size(2),
          .softmax_scale = static_cast<float>(1.0 / temperature)};
}

Tensor softmax_at(const Tensor& query, const Tensor& key, const Tensor& scale, const Tensor& lse, const Tensor& indices,
                  double temperature) {
  Tensor out = at::empty(indices.sizes(), lse.options());
  for_feature_type(query, [&]<typename Feature>() {
    timecycle::softmax_at_cpu<Feature>(edges_of(query, key, scale, lse, indices, temperature),
                                       query.const_data_ptr<Feature>(), key.const_data_ptr<Feature>(),
                                       out.mutable_data_ptr<float>());
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> softmax_at_backward(const Tensor& gradient, const Tensor& query,
                                                               const Tensor& key, const Tensor& scale,
                                                               const Tensor& lse, const Tensor& indices,
                                                               const Tensor& out, double temperature) {
  Tensor d_query = at::empty_like(query), d_key = at::empty_like(key);
  Tensor d_scale = at::empty_like(scale), d_lse = at::empty_like(lse);
  for_feature_type(query, [&]<typename Feature>() {
    timecycle::softmax_at_backward_cpu<Feature>(edges_of(query, key, scale, lse, indices, temperature),
                                                gradient.const_data_ptr<float>(), out.const_data_ptr<float>(),
                                                query.const_data_ptr<Feature>(), key.const_data_ptr<Feature>(),
                                                d_query.mutable_data_ptr<Feature>(), d_key.mutable_data_ptr<Feature>(),
                                                d_scale.mutable_data_ptr<float>(), d_lse.mutable_data_ptr<float>());
  });
  return {d_query, d_key, d_scale, d_lse};
}

// The time of every product of `topk_affinity` alone: queries [N, D] by keys [M, D], tile by tile, nothing written.
void tile_product(const Tensor& query, const Tensor& keys) {
  const auto run = [&]<typename Feature>() {
    timecycle::tile_product_cpu<Feature>(query.size(0), keys.size(0), query.size(1), query.const_data_ptr<Feature>(),
                                         keys.const_data_ptr<Feature>());
  };
  AT_DISPATCH_SWITCH(query.scalar_type(), "tile_product", AT_DISPATCH_CASE(at::kFloat, [&] {
                       run.operator()<scalar_t>();
                     }) AT_DISPATCH_CASE(at::kBFloat16, [&] { run.operator()<scalar_t>(); }));
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  using pybind11::arg;
  using Unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;
  module.doc() = "timecycle's compiled kernels; all tensors contiguous, on the CPU";
  module.def(
      "product_rates",
      [] {
        const timecycle::ProductRates& rates = timecycle::product_rates();
        return pybind11::dict(arg("float32") = rates.float32, arg("bfloat16") = rates.bfloat16,
                              arg("int8") = rates.int8);
      },
      "Multiply-adds per nanosecond and thread, as measured here; 0 for what cannot be multiplied");
  module.def("topk_affinity", topk_affinity, arg("query"), arg("bank"), arg("frames"), arg("multiplicity"), arg("k"),
             arg("temperature"), arg("joint"), arg("softmax_over_all"), arg("keep_ties"), arg("grid_width"),
             arg("half_widths"), arg("products") = "fastest", Unlocked());
  module.def(
      "last_report",
      [] {
        return pybind11::dict(arg("bytes") = last_report.bytes, arg("tightened") = last_report.tightened,
                              arg("overflown") = last_report.overflown);
      },
      "How the lists of this thread's last topk_affinity were found");
  module.def("switch_avx512_off", timecycle::switch_avx512_off,
             "For tests: let the plain loops serve where AVX-512's own instructions would");
  module.def("affinity_propagate", affinity_propagate, Unlocked());
  module.def("topk_affinity_backward", topk_affinity_backward, Unlocked());
  module.def("attention", attention, Unlocked());
  module.def("attention_backward", attention_backward, Unlocked());
  module.def("softmax_at", softmax_at, Unlocked());
  module.def("softmax_at_backward", softmax_at_backward, Unlocked());
  module.def("propagate_sequence", propagate_sequence, Unlocked());
  module.def("tile_product", tile_product, Unlocked());
}
