// The compiled kernels as Python functions; timecycle/ops declares the operators and checks their arguments.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/headeronly/version.h>

#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

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

// An attribute of a Python object, as T; tensors are made contiguous.
template <typename T>
T get(pybind11::handle object, const char* name) {
  if constexpr (std::is_same_v<T, Tensor>)
    return object.attr(name).cast<Tensor>().contiguous();
  else
    return object.attr(name).cast<T>();
}

// A timecycle.ops.problem.Problem, and the tensors that it points into.
struct ProblemInputs {
  Tensor query, bank, frames, multiplicity;
  timecycle::Problem problem;

  explicit ProblemInputs(pybind11::handle object)
      : query(get<Tensor>(object, "query")),
        bank(get<Tensor>(object, "bank")),
        frames(get<Tensor>(object, "frames")),
        multiplicity(get<Tensor>(object, "multiplicity")) {
    const auto k = get<int64_t>(object, "k");
    TORCH_CHECK_VALUE(query.size(2) > 0, "the features have no channels");
    TORCH_CHECK_VALUE(timecycle::checked_product({frames.size(1), bank.size(1)}) < timecycle::kIndices,
                      "the slots have more positions than a 32-bit index can number");
    TORCH_CHECK_VALUE(k > 0 && k < timecycle::kIndices, "k is ", k, "; expected 1 to ", timecycle::kIndices - 1);
    problem = {.query = query.const_data_ptr(),
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
               .softmax_scale = static_cast<float>(1.0 / get<double>(object, "temperature")),
               .joint = get<bool>(object, "joint"),
               .softmax_over_all = get<bool>(object, "softmax_over_all"),
               .keep_ties = get<bool>(object, "keep_ties"),
               .grid_width = get<int64_t>(object, "grid_width"),
               .half_widths = get<std::vector<int64_t>>(object, "half_widths")};
  }
};

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

std::tuple<Tensor, Tensor, Tensor> topk_affinity(pybind11::handle object, const std::string& products) {
  const ProblemInputs in(object);
  const pybind11::gil_scoped_release unlocked;
  const timecycle::Problem& problem = in.problem;
  Tensor weights, indices;
  Tensor denominators = at::empty({problem.targets, problem.queries, problem.softmax_over_all ? problem.groups() : 0},
                                  in.query.options().dtype(at::kFloat));
  const std::function<timecycle::TopkAffinityOut(int64_t)> allocate = [&](int64_t kept) {
    weights = at::empty({problem.targets, problem.queries, problem.groups() * kept}, denominators.options());
    indices = at::empty({problem.targets, problem.queries, problem.groups() * kept}, in.frames.options());
    return timecycle::TopkAffinityOut{weights.mutable_data_ptr<float>(), indices.mutable_data_ptr<int64_t>(),
                                      denominators.mutable_data_ptr<float>()};
  };
  timecycle::TopkWriter writer(problem, allocate);
  last_report = for_feature_type(in.query, [&]<typename Feature>() {
    return timecycle::topk_affinity_cpu<Feature>(problem, products_of(products), writer);
  });
  writer.finish();
  return {weights, indices, denominators};
}

Tensor affinity_propagate(pybind11::handle object, const Tensor& labels_in, const Tensor& label_frames_in) {
  const ProblemInputs in(object);
  const pybind11::gil_scoped_release unlocked;
  const Tensor labels = labels_in.contiguous(), label_frames = label_frames_in.contiguous();
  Tensor out = at::zeros({in.problem.targets, in.problem.queries, labels.size(2)}, labels.options());
  timecycle::LabelSink sink(in.problem, labels.const_data_ptr<float>(), label_frames.const_data_ptr<int64_t>(),
                            labels.size(2), out.mutable_data_ptr<float>());
  for_feature_type(in.query, [&]<typename Feature>() {
    timecycle::topk_affinity_cpu<Feature>(in.problem, timecycle::Products::kFastest, sink);
  });
  return out;
}

// Gradients of query and bank from that of the weights; the other tensors are the forward's outputs.
std::tuple<Tensor, Tensor> topk_affinity_backward(pybind11::handle object, const Tensor& gradient_in,
                                                  const Tensor& weights_in, const Tensor& indices_in,
                                                  const Tensor& denominators_in) {
  const ProblemInputs in(object);
  const pybind11::gil_scoped_release unlocked;
  const Tensor gradient = gradient_in.contiguous(), weights = weights_in.contiguous();
  const Tensor indices = indices_in.contiguous(), denominators = denominators_in.contiguous();
  Tensor d_query = at::empty_like(in.query), d_bank = at::empty_like(in.bank);
  const timecycle::TopkAffinityGradient results{.gradient = gradient.const_data_ptr<float>(),
                                                .weights = weights.const_data_ptr<float>(),
                                                .indices = indices.const_data_ptr<int64_t>(),
                                                .denominators = denominators.const_data_ptr<float>(),
                                                .kept = weights.size(2) / in.problem.groups()};
  for_feature_type(in.query, [&]<typename Feature>() {
    timecycle::topk_affinity_backward_cpu<Feature>(in.problem, results, d_query.mutable_data_ptr<Feature>(),
                                                   d_bank.mutable_data_ptr<Feature>());
  });
  return {d_query, d_bank};
}

// Labels of a whole video: labels [G, N, L] are updated in place; extremes [B, L, 2] is temporary memory.
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

// A timecycle.ops.attention.AttentionProblem, and its tensors, converted to float.
struct AttentionInputs {
  Tensor query, key, value, scale;
  at::ScalarType type;
  timecycle::AttentionProblem problem;

  explicit AttentionInputs(pybind11::handle object)
      : query(get<Tensor>(object, "query")),
        key(get<Tensor>(object, "key").to(at::kFloat)),
        value(get<Tensor>(object, "value").to(at::kFloat)),
        scale(get<Tensor>(object, "scale")),
        type(query.scalar_type()) {
    query = query.to(at::kFloat);
    problem = {.query = query.const_data_ptr<float>(),
               .key = key.const_data_ptr<float>(),
               .value = value.const_data_ptr<float>(),
               .scale = scale.const_data_ptr<float>(),
               .samples = query.size(0),
               .queries = query.size(1),
               .keys = key.size(1),
               .channels = query.size(2),
               .columns = value.size(-1),
               .shared = value.dim() == 3,
               .shifts = get<std::vector<int64_t>>(object, "shifts"),
               .softmax_scale = static_cast<float>(1.0 / get<double>(object, "temperature")),
               .threshold = static_cast<uint32_t>(get<int64_t>(object, "threshold")),
               .seed = static_cast<uint32_t>(get<int64_t>(object, "seed"))};
  }
};

std::tuple<Tensor, Tensor> attention(pybind11::handle object) {
  const AttentionInputs in(object);
  const pybind11::gil_scoped_release unlocked;
  Tensor out = at::empty({in.problem.samples, in.problem.rows(), in.problem.columns}, in.scale.options());
  Tensor lse = at::empty({in.problem.samples, in.problem.queries}, in.scale.options());
  timecycle::attention_cpu(in.problem, out.mutable_data_ptr<float>(), lse.mutable_data_ptr<float>());
  return {out.to(in.type), lse};
}

// Gradients of query, key, value and scale from those of the forward's outputs, out and lse.
std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(pybind11::handle object, const Tensor& d_out_in,
                                                              const Tensor& d_lse_in, const Tensor&,
                                                              const Tensor& lse_in) {
  const AttentionInputs in(object);
  const pybind11::gil_scoped_release unlocked;
  const Tensor d_out = d_out_in.to(at::kFloat).contiguous(), d_lse = d_lse_in.contiguous(), lse = lse_in.contiguous();
  const at::TensorOptions options = in.scale.options();
  Tensor d_query = at::empty(in.query.sizes(), options), d_key = at::empty(in.key.sizes(), options);
  // Values for all samples have a gradient, 0, even if there is no sample.
  Tensor d_value = in.problem.samples > 0 ? at::empty(in.value.sizes(), options) : at::zeros(in.value.sizes(), options);
  Tensor d_scale = at::empty(in.scale.sizes(), options);
  timecycle::attention_backward_cpu(in.problem, {.d_out = d_out.const_data_ptr<float>(),
                                                 .d_lse = d_lse.const_data_ptr<float>(),
                                                 .lse = lse.const_data_ptr<float>(),
                                                 .d_query = d_query.mutable_data_ptr<float>(),
                                                 .d_key = d_key.mutable_data_ptr<float>(),
                                                 .d_value = d_value.mutable_data_ptr<float>(),
                                                 .d_scale = d_scale.mutable_data_ptr<float>()});
  return {d_query.to(in.type), d_key.to(in.type), d_value.to(in.type), d_scale};
}

// A timecycle.ops.softmax_at.SoftmaxAtProblem, and the tensors that it points into.
struct SoftmaxAtInputs {
  Tensor query, key, scale, lse, indices;
  timecycle::SoftmaxAtProblem problem;

  explicit SoftmaxAtInputs(pybind11::handle object)
      : query(get<Tensor>(object, "query")),
        key(get<Tensor>(object, "key")),
        scale(get<Tensor>(object, "scale")),
        lse(get<Tensor>(object, "lse")),
        indices(get<Tensor>(object, "indices")) {
    problem = {.scale = scale.const_data_ptr<float>(),
               .lse = lse.const_data_ptr<float>(),
               .indices = indices.const_data_ptr<int64_t>(),
               .samples = query.size(0),
               .queries = query.size(1),
               .keys = key.size(1),
               .channels = query.size(2),
               .edges = indices.size(2),
               .softmax_scale = static_cast<float>(1.0 / get<double>(object, "temperature"))};
  }
};

Tensor softmax_at(pybind11::handle object) {
  const SoftmaxAtInputs in(object);
  const pybind11::gil_scoped_release unlocked;
  Tensor out = at::empty(in.indices.sizes(), in.lse.options());
  for_feature_type(in.query, [&]<typename Feature>() {
    timecycle::softmax_at_cpu<Feature>(in.problem, in.query.const_data_ptr<Feature>(), in.key.const_data_ptr<Feature>(),
                                       out.mutable_data_ptr<float>());
  });
  return out;
}

// Gradients of query, key, scale and lse from that of the forward's output, `out`.
std::tuple<Tensor, Tensor, Tensor, Tensor> softmax_at_backward(pybind11::handle object, const Tensor& gradient_in,
                                                               const Tensor& out_in) {
  const SoftmaxAtInputs in(object);
  const pybind11::gil_scoped_release unlocked;
  const Tensor gradient = gradient_in.contiguous(), out = out_in.contiguous();
  Tensor d_query = at::empty_like(in.query), d_key = at::empty_like(in.key);
  Tensor d_scale = at::empty_like(in.scale), d_lse = at::empty_like(in.lse);
  for_feature_type(in.query, [&]<typename Feature>() {
    timecycle::softmax_at_backward_cpu<Feature>(
        in.problem, gradient.const_data_ptr<float>(), out.const_data_ptr<float>(), in.query.const_data_ptr<Feature>(),
        in.key.const_data_ptr<Feature>(), d_query.mutable_data_ptr<Feature>(), d_key.mutable_data_ptr<Feature>(),
        d_scale.mutable_data_ptr<float>(), d_lse.mutable_data_ptr<float>());
  });
  return {d_query, d_key, d_scale, d_lse};
}

// For benchmarks: the products of `topk_affinity` alone, queries [N, D] by keys [M, D], tile by tile; no output.
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
  module.doc() = "timecycle's compiled kernels; tensors on the CPU";
  module.attr("torch_version") = TORCH_VERSION;  // that of the build
  module.def(
      "product_rates",
      [] {
        const timecycle::ProductRates& rates = timecycle::product_rates();
        return pybind11::dict(arg("float32") = rates.float32, arg("bfloat16") = rates.bfloat16,
                              arg("int8") = rates.int8);
      },
      "Multiply-adds per nanosecond and thread, measured on this machine; 0 for types that it cannot multiply");
  module.def("topk_affinity", topk_affinity, arg("problem"), arg("products") = "fastest");
  module.def(
      "last_report",
      [] {
        return pybind11::dict(arg("bytes") = last_report.bytes, arg("tightened") = last_report.tightened,
                              arg("overflown") = last_report.overflown);
      },
      "How the lists of this thread's last topk_affinity were found");
  module.def("switch_avx512_off", timecycle::switch_avx512_off,
             "For tests: use the plain loops even if the CPU has AVX-512");
  module.def("affinity_propagate", affinity_propagate);
  module.def("topk_affinity_backward", topk_affinity_backward);
  module.def("attention", attention);
  module.def("attention_backward", attention_backward);
  module.def("softmax_at", softmax_at);
  module.def("softmax_at_backward", softmax_at_backward);
  module.def("propagate_sequence", propagate_sequence, Unlocked());
  module.def("tile_product", tile_product, Unlocked());
}
