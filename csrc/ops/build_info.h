// How this binary was built, for `fastnode info`.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace fastnode {

inline std::vector<std::pair<const char*, std::string>> build_info() {
#if defined(__clang__)
  const std::string compiler = std::string("clang ") + __clang_version__;
#else
  const std::string compiler = std::string("gcc ") + __VERSION__;
#endif
  const char* isa = "baseline";
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) {
    isa = "x86-64-v4 (AVX-512)";
  } else if (__builtin_cpu_supports("x86-64-v3")) {
    isa = "x86-64-v3 (AVX2)";
  }
#endif
#ifdef FASTNODE_WITH_CUDA
  const char* cuda = "yes";
#else
  const char* cuda = "no";
#endif
  return {{"compiler", compiler}, {"instruction set", isa}, {"cuda", cuda}};
}

}  // namespace fastnode
