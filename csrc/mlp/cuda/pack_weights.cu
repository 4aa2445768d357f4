// The weights of a field in global memory, for solves in whose shared memory they do not fit.
#include <algorithm>

#include "mlp/cuda/weights.h"

namespace fastnode {
namespace {

constexpr int kPackThreads = 256;

template <class T>
__global__ void __launch_bounds__(kPackThreads)
    mlp_pack_kernel(const __grid_constant__ DeviceField<T> field, T* numbers) {
  const int first = int(blockIdx.x) * kPackThreads + int(threadIdx.x);
  for (int l = 0; l < field.count; ++l) {
    pack_layer(field.layers[l], numbers, first, int(gridDim.x) * kPackThreads);
  }
}

template <class T>
int pack(const DeviceField<T>& field, T* numbers, void* cuda_stream) {
  int most = 0;
  for (int l = 0; l < field.count; ++l) {
    most = std::max(most, padded_rows(field.layers[l]) * field.layers[l].in);
  }
  const int blocks = std::min(most / kPackThreads + 1, 1024);
  mlp_pack_kernel<<<blocks, kPackThreads, 0, static_cast<cudaStream_t>(cuda_stream)>>>(field,
                                                                                       numbers);
  return cudaGetLastError();
}

}  // namespace

int mlp_pack_cuda(const DeviceField<float>& field, float* numbers, void* cuda_stream) {
  return pack(field, numbers, cuda_stream);
}
int mlp_pack_cuda(const DeviceField<double>& field, double* numbers, void* cuda_stream) {
  return pack(field, numbers, cuda_stream);
}

}  // namespace fastnode
