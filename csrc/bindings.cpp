// Attaches the compiled kernels to the operators that timecycle/ops declares; arguments are checked there.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <pybind11/pybind11.h>
#include <torch/library.h>

#include <tuple>

#include "topk_affinity.h"

namespace {

std::tuple<at::Tensor, at::Tensor> topk_affinity(const at::Tensor& query, const at::Tensor& bank,
                                                 const at::Tensor& frames, int64_t k, double temperature, bool joint,
                                                 bool all) {
  const at::Tensor queries = query.contiguous(), keys = bank.contiguous(), context = frames.contiguous();
  const timecycle::TopkAffinity shape{queries.size(0),
                                      queries.size(1),
                                      queries.size(2),
                                      keys.size(1),
                                      context.size(1),
                                      k,
                                      static_cast<float>(1.0 / temperature),
                                      joint,
                                      all};
  const int64_t kept = joint ? k : shape.slots * k;
  at::Tensor weights = at::empty({shape.targets, shape.queries, kept}, queries.options().dtype(at::kFloat));
  at::Tensor indices = at::empty({shape.targets, shape.queries, kept}, context.options());
  const auto run = [&]<typename Feature>() {
    timecycle::topk_affinity_cpu<Feature>(shape, queries.const_data_ptr<Feature>(), keys.const_data_ptr<Feature>(),
                                          context.const_data_ptr<int64_t>(), weights.mutable_data_ptr<float>(),
                                          indices.mutable_data_ptr<int64_t>());
  };
  AT_DISPATCH_SWITCH(queries.scalar_type(), "topk_affinity",
                     AT_DISPATCH_CASE(at::kFloat, [&] { run.operator()<scalar_t>(); })
                         AT_DISPATCH_CASE(at::kBFloat16, [&] { run.operator()<scalar_t>(); })
                             AT_DISPATCH_CASE(at::kHalf, [&] { run.operator()<scalar_t>(); }));
  return {weights, indices};
}

}  // namespace

TORCH_LIBRARY_IMPL(timecycle, CPU, library) { library.impl("topk_affinity", topk_affinity); }

// Importing the module runs the registration above; it has nothing else to offer.
PYBIND11_MODULE(_C, module) { module.doc() = "timecycle's compiled kernels"; }
