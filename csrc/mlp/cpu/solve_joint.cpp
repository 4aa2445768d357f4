#include "mlp/cpu/solve_joint.h"

#include <deque>

#include "mlp/cpu/barrier.h"
#include "mlp/cpu/solve_joint_adaptive.h"

namespace fastnode {

template <class T>
bool MlpSolve<T>::prefers_rows(const std::vector<typename MlpField<T>::Source>& layers,
                               int64_t batch, int64_t lanes) {
  // An activation costs about twenty multiplications.
  int64_t rows = 0, columns = 0;
  for (const auto& each : layers) {
    const int64_t work = each.in + 20;
    rows += batch * round_up(each.out, lanes) / lanes * work;
    columns += each.out * round_up(batch, lanes) / lanes * work;
  }
  return batch < lanes && rows < columns;
}

template <class T>
MlpSolve<T>::MlpSolve(const MlpField<T>& field, bool by_sample, int64_t batch, MlpOptions options)
    : field_(&field),
      options_(std::move(options)),
      batch_(batch),
      dim_(field.dim()),
      by_sample_(by_sample) {
  const Tableau& tableau = *options_.tableau;
  const int64_t lanes = field.kernels->lanes, width = tile_width(by_sample, batch, lanes);
  const size_t slopes = tableau.stages.size() + tableau.further.size();
  // y, y1 and, where the last stage is not at the end of the step, one more.
  const int64_t states = tableau.fsal ? 2 : 3;
  int64_t bytes = 0, own_slopes = 0;
  for (size_t i = 0; i < slopes; ++i) own_slopes += owns(i);
  for (int64_t first = 0; first < batch; first += width) {
    Tile<T> tile{make_frame(by_sample, std::min(width, batch - first), lanes),
                 first,
                 nullptr,
                 nullptr,
                 nullptr,
                 std::vector<T*>(slopes)};
    const Frame& frame = tile.frame;
    bytes += states * Arena::bytes<T>(frame.front() + frame.size(dim_)) +
             own_slopes * Arena::bytes<T>(frame.size(dim_));
    tiles_.push_back(std::move(tile));
  }
  // Where features stand side by side, none may meet what lies between them.
  memory_.reserve(bytes, by_sample);
  for (Tile<T>& tile : tiles_) {
    const Frame& frame = tile.frame;
    const auto state = [&] {
      return memory_.take<T>(frame.front() + frame.size(dim_)) + frame.front();
    };
    tile.y = state();
    tile.y1 = state();
    tile.stage = tableau.fsal ? tile.y1 : state();
    for (size_t i = 0; i < slopes; ++i) {
      if (owns(i)) tile.k[i] = memory_.take<T>(frame.size(dim_));
    }
  }
  sums_.resize(6 * tiles_.size());
}

template <class T>
MlpTrace MlpSolve<T>::run(const T* y0, T* ys, int threads, const Parallel& parallel) {
  MlpTrace trace;
  if (options_.adaptive) {
    for (auto* each : {&trace.edges, &trace.error, &trace.stiffness}) each->reserve(Worker::kRoom);
  }
  trace.edges.push_back(options_.times.front());
  if (options_.keep_states) {
    const int64_t steps = options_.adaptive ? Worker::kRoom : int64_t(options_.grid.size()) - 1;
    kept_.reserve(steps * options_.parts() * batch_ * dim_);
  }
  if (options_.tape) {
    const int64_t stages = int64_t(options_.tableau->stages.size());
    options_.tape->begin(*field_, tiles_.front().frame, stages, tiles(),
                         options_.adaptive ? 1 : int64_t(options_.grid.size()) - 1);
  }
  const auto work = [&](Adaptive& worker) {
    worker.begin_tiles(y0);
    if (options_.adaptive) {
      worker.adaptive();
    } else {
      worker.fixed();
    }
  };
  threads = int(std::min<int64_t>(threads, tiles()));
  if (threads <= 1) {
    Barrier barrier(1);
    Adaptive alone(*this, barrier, ys, trace, 0, 1);
    work(alone);
  } else {
    std::optional<Barrier> barrier;
    // Made one after the other, so that each finds the memory that it had in the solve before, in
    // the cache of its core.
    std::deque<Adaptive> workers;
    const auto prepare = [&](int count) {
      barrier.emplace(count);
      for (int i = 0; i < count; ++i) workers.emplace_back(*this, *barrier, ys, trace, i, count);
    };
    parallel(threads, prepare, [&](int thread, int) { work(workers[size_t(thread)]); });
  }
  trace.saw_nan = saw_nan_;
  trace.saw_infinity = saw_infinity_;
  return trace;
}

template class MlpSolve<float>;
template class MlpSolve<double>;

}  // namespace fastnode
