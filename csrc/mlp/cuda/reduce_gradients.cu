// Gradients of all blocks of backward.cu, added up in their order.
#include <cuda_runtime.h>

#include <algorithm>

#include "mlp/cuda/backward.h"

namespace fastnode {
namespace {

template <class T>
__device__ T total(const T* parts, int64_t blocks, int64_t stride, int64_t i) {
  double sum = 0;
  for (int64_t b = 0; b < blocks; ++b) sum += double(parts[b * stride + i]);
  return T(sum);
}

constexpr int kTotalThreads = 256;

template <class T>
__global__ void __launch_bounds__(kTotalThreads)
    mlp_sum_gradients_kernel(const __grid_constant__ MlpGradientSums<T> all) {
  const int64_t numbers = all.sums != nullptr ? mlp_numbers(all.field) : 0;
  const int64_t rates = all.rates != nullptr ? all.output_count : 0;
  const int64_t stride = int64_t(gridDim.x) * kTotalThreads;
  for (int64_t i = int64_t(blockIdx.x) * kTotalThreads + threadIdx.x; i < numbers + rates;
       i += stride) {
    if (i >= numbers) {
      const int64_t o = i - numbers;
      all.rates[o] = total(all.output_rates, all.blocks, all.output_count, o);
      continue;
    }
    int64_t left = i;
    int l = 0;
    for (; left >= layer_numbers(all.field.layers[l]); ++l) {
      left -= layer_numbers(all.field.layers[l]);
    }
    const DeviceLayer<T>& layer = all.field.layers[l];
    const int64_t of_weight = layer_numbers(layer) - layer.out;
    T* const to = left < of_weight ? all.weights[l] + left : all.biases[l];
    if (to == nullptr) continue;
    to[left < of_weight ? 0 : left - of_weight] = total(all.sums, all.blocks, numbers, i);
  }
}

template <class T>
int sum_gradients(const MlpGradientSums<T>& all, void* cuda_stream) {
  const int64_t count = mlp_numbers(all.field) + all.output_count;
  const int blocks = int(std::min<int64_t>((count + kTotalThreads - 1) / kTotalThreads, 1024));
  mlp_sum_gradients_kernel<<<blocks, kTotalThreads, 0, static_cast<cudaStream_t>(cuda_stream)>>>(
      all);
  return cudaGetLastError();
}

}  // namespace

int mlp_sum_gradients_cuda(const MlpGradientSums<float>& all, void* cuda_stream) {
  return sum_gradients(all, cuda_stream);
}
int mlp_sum_gradients_cuda(const MlpGradientSums<double>& all, void* cuda_stream) {
  return sum_gradients(all, cuda_stream);
}

}  // namespace fastnode
