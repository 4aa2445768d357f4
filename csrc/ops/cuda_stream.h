// The CUDA stream on which torch works now.
#pragma once

#include <c10/core/Device.h>
#include <c10/util/Exception.h>

#include <cstdint>

// torch's C shim, which exists in CUDA builds of torch alone: the weak reference lets one source
// build and load everywhere, also beside a torch without CUDA.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                            void** ret_stream);

namespace fastnode {

inline void* current_cuda_stream(c10::Device device, const char* op) {
  TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, op,
              ": this torch was built without CUDA");
  void* stream = nullptr;
  TORCH_CHECK(aoti_torch_get_current_cuda_stream(device.index(), &stream) == 0, op,
              ": torch gave no CUDA stream");
  return stream;
}

}  // namespace fastnode
