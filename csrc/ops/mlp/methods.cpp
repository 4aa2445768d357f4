// The methods that solves of MLPs know, by name: a graph that torch.compile keeps can hold a name,
// but no tableau.
#include <c10/util/Exception.h>

#include <map>
#include <mutex>

#include "ops/mlp/request.h"

namespace fastnode {
namespace {

struct Methods {
  std::mutex mutex;
  // Never erased from: references stay valid.
  std::map<std::string, MlpMethod, std::less<>> of;
};

Methods& methods() {
  static Methods* const all = new Methods();
  return *all;
}

}  // namespace

void register_mlp_method(const std::string& name, MlpMethod method) {
  Methods& all = methods();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.of.emplace(name, std::move(method));
}

const MlpMethod& mlp_method(std::string_view name) {
  Methods& all = methods();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.of.find(name);
  TORCH_CHECK_VALUE(found != all.of.end(), "method must be an explicit Runge-Kutta method, got ",
                    std::string(name));
  return found->second;
}

}  // namespace fastnode
